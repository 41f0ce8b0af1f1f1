"""The whole loop with people in it, over real HTTP: a collect process, `rl --reward human`, two simulated annotators, a reward model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, select

from tutelage.cli import dispatch
from tutelage.feedback.client import Program
from tutelage.feedback.database import open_database
from tutelage.feedback.http import Http
from tutelage.feedback.schema import item, judgment_event, project
from tutelage.feedback.simulated import SimulatedAnnotator
from tutelage.feedback.simulated_person import SimulatedPerson
from tutelage.models.load import save_policy
from tutelage.models.tiny import tiny
from tutelage.records import Answer, Prompt
from tutelage.stages.human import check_human
from tutelage.stages.lineage import labels_in
from tutelage.stages.rl import RL

SOURCE = Path(__file__).resolve().parents[2] / "src"


def many_vowels(prompt: Prompt, answer: Answer) -> float:
    """A taste that a random model's answers differ in."""
    return sum(letter in "aeiou" for letter in answer.text.lower()) / 10


@dataclass
class Desk:
    """A running annotation server."""

    url: str
    token: str
    db: str
    admin: Http
    csrf: str
    process: subprocess.Popen[str]

    def invite(self, number: int) -> str:
        """A labeller's link, made on the admin page."""
        form = {"csrf": self.csrf, "role": "labeller"}
        page = self.admin.send("POST", f"/admin/p/{number}/invite", form=form).text
        return re.findall(r"http://127[^\"<\s]*/join/[\w-]+", page)[0]

    def count(self, table: Any) -> int:
        """Rows of a table."""
        db = open_database(self.db)
        with db.read() as c:
            found = c.execute(select(func.count()).select_from(table)).scalar_one()
        db.close()
        return found


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """`tutelage collect` on an empty database, as a process of its own."""
    db = f"sqlite:///{tmp_path / 'people.db'}"
    flags = ["--db", db, "--api-token", "--no-browser", *port_flags()]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-m", "tutelage.cli", "collect", *flags]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    said = ""
    assert process.stdout is not None
    while "Ctrl-C stops" not in said:
        line = process.stdout.readline()
        assert line, f"collect ended: {said}"
        said += line
    link, token = re.findall(r"http://\S+/enter/\S+", said)[0], re.findall(r"tut_\S+", said)[0]
    admin = Http(link)
    assert admin.send("GET", "/enter/" + link.rpartition("/")[2]).status == 303
    csrf = re.findall(r'name="csrf" content="([^"]+)"', admin.send("GET", "/").text)[0]
    yield Desk(admin.url, token, db, admin, csrf, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0


def port_flags() -> list[str]:
    """A free port."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return ["--port", str(free.getsockname()[1])]


@contextmanager
def at_work(desk: Desk, number: int) -> Iterator[list[SimulatedPerson]]:
    """Two people with faults who judge whatever comes, until the block ends."""
    faults = [
        SimulatedAnnotator("careful", temperature=0.05, lapse=0.02),
        SimulatedAnnotator("hasty", temperature=0.2, lapse=0.1, side_bias=0.5, length_bias=0.2, drift=0.01),
    ]
    people = [
        SimulatedPerson(desk.invite(number), one, many_vowels, np.random.default_rng(n)) for n, one in enumerate(faults)
    ]
    over, problems = threading.Event(), []

    def work(person: SimulatedPerson) -> None:
        try:
            while not over.is_set():
                if not person.judge_next(number):
                    over.wait(0.1)
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    try:
        yield people
    finally:
        over.set()
        for thread in threads:
            thread.join(30)
    assert not problems


@pytest.fixture
def train(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`tutelage rl --reward human` for two steps of three prompts and four answers, in the run folder `loop`."""
    monkeypatch.setenv("TUTELAGE_TOKEN", desk.token)
    model, tokenizer = tiny()
    save_policy(model, tokenizer, tmp_path / "model")
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"Say {n} vowels"}) + "\n" for n in range(6)))
    fixed = ["--model", str(tmp_path / "model"), "--data", str(data), "--out", str(tmp_path / "loop")]
    fixed += ["--reward", "human", "--human.url", desk.url, "--human.overlap", "2", "--steps", "2", "--batch-size", "3"]
    fixed += ["--max-new-tokens", "12", "--algorithm.group-size", "4"]
    return lambda *more: dispatch("rl", [*fixed, *more])


@pytest.mark.slow
def test_people_rank_while_it_trains_and_a_reward_model_learns_from_their_labels(
    desk: Desk, train: Callable[..., int], tmp_path: Path
) -> None:
    number = Program(desk.url, desk.token).project("loop", "ranking", 2)
    with at_work(desk, number) as people:
        assert train() == 0
    rows = [json.loads(line) for line in (tmp_path / "loop" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1]
    assert all(row["reward/fallback_share"] == 0 for row in rows)
    assert all(row["reward/mean"] == pytest.approx(0.5, abs=1e-6) for row in rows), "a ranking's mean is one half"
    assert (desk.count(item), desk.count(judgment_event)) == (6, 12)
    assert [person.judged for person in people] == [6, 6]
    used = [json.loads(line) for line in (tmp_path / "loop" / "human.jsonl").read_text().splitlines()]
    assert sorted(seq for row in used for seq in row["judgments"]) == list(range(1, 13))
    samples = [json.loads(line) for line in (tmp_path / "loop" / "samples.jsonl").read_text().splitlines()]
    better = [
        (many_vowels(Prompt(()), Answer(a["text"])) - many_vowels(Prompt(()), Answer(b["text"])))
        * (a["reward"] - b["reward"])
        for row in samples
        for a in row["answers"]
        for b in row["answers"]
    ]
    assert sum(better) > 0, "rewards do not follow what the annotators like"
    assert "Share of answers that no person judged" in (tmp_path / "loop" / "report.html").read_text()

    labels = tmp_path / "labels"
    assert dispatch("labels", ["export", "--db", desk.db, "--project", "loop", "--out", str(labels)]) == 0
    flags = ["--model", str(tmp_path / "model"), "--data", str(labels / "train.jsonl"), "--out", str(tmp_path / "rm")]
    assert dispatch("reward", [*flags, "--steps", "2", "--batch-size", "2"]) == 0
    assert (tmp_path / "rm" / "reward_model" / "config.json").is_file()
    lineage = json.loads((tmp_path / "rm" / "reward_model" / "lineage.json").read_text())
    assert [(one["project"], one["last_judgment"]) for one in labels_in(lineage)] == [("loop", 12)]
    rl = json.loads((tmp_path / "loop" / "lineage.json").read_text())
    assert rl["people"] == {"url": desk.url, "project": "loop", "judgments": "human.jsonl"}


@pytest.mark.slow
def test_at_the_deadline_it_saves_and_the_resumed_run_finds_its_items(
    desk: Desk, train: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train("--human.deadline", "0.0003") == 130
    said = capfd.readouterr().err
    assert re.search(r"step 0: the deadline has passed with 0 of 6 judgments", said)
    assert re.search(r"go on with:\s+tutelage rl \S+/config.yaml --out \S+ --resume", said)
    assert desk.count(item) == 3
    with at_work(desk, 1):
        assert train("--resume") == 0
    assert desk.count(item) == 6, "the resumed run asked about step 0 again"
    rows = [json.loads(line) for line in (tmp_path / "loop" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1]
    assert desk.count(project) == 1


@pytest.mark.slow
def test_a_fallback_judge_is_counted_in_the_metrics(desk: Desk, train: Callable[..., int], tmp_path: Path) -> None:
    assert train("--human.deadline", "0.0003", "--human.fallback", "brevity") == 0
    rows = [json.loads(line) for line in (tmp_path / "loop" / "metrics.jsonl").read_text().splitlines()]
    assert [row["reward/fallback_share"] for row in rows] == [1.0, 1.0]
    db = open_database(desk.db)
    with db.read() as c:
        assert list(c.execute(select(item.c.withdrawn)).scalars()) == [1] * 6
    db.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward": ("human", "human=2")}, "once"),
        ({"reward": ("human(deadline=3)",)}, "--human"),
        ({"reward": ("brevity",), "human": {"deadline": 3.0}}, "--reward human"),
        ({"reward": ("human",), "algorithm": {"name": "nash_md"}}, "nash_md"),
        ({"reward": ("human",), "algorithm": {"name": "grpo", "group_size": 40}}, "2 to 26"),
        ({"reward": ("human",), "human": {"fallback": "human"}}, "needs no people"),
    ],
)
def test_settings_that_people_cannot_work_with(settings: dict[str, Any], message: str) -> None:
    from tutelage.config import build

    with pytest.raises(ValueError, match=message):
        check_human(build(RL, settings, "test"))
