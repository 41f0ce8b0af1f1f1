"""`tutelage collect --policy`: fresh answers from a worker process while people judge; when the policy moves, the old ones go."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from tutelage.config import build
from tutelage.feedback.database import Database, open_database
from tutelage.feedback.http import Http
from tutelage.feedback.people import new_invite, owner
from tutelage.feedback.schema import api_token, item, judgment_event, response
from tutelage.feedback.simulated import SimulatedAnnotator
from tutelage.feedback.simulated_person import SimulatedPerson
from tutelage.models.load import save_policy
from tutelage.models.tiny import tiny
from tutelage.stages.collect import Collect
from tutelage.stages.collect_live import check_live, live_task

SOURCE = Path(__file__).resolve().parents[2] / "src"


def until(what: Callable[[], Any], seconds: float = 120) -> Any:
    """Its first true value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.2)
    raise AssertionError("it did not happen in time")


def column(db: Database, query: Any) -> list[Any]:
    """What a query finds."""
    with db.read() as c:
        return list(c.execute(query).scalars())


@pytest.mark.slow
def test_people_judge_fresh_answers_and_the_policy_moves(tmp_path: Path) -> None:
    model, tokenizer = tiny()
    save_policy(model, tokenizer, tmp_path / "policy")
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"Say {n}"}) + "\n" for n in range(4)))
    url = f"sqlite:///{tmp_path / 'live.db'}"
    flags = ["--data", str(data), "--policy", str(tmp_path / "policy"), "--db", url, "--no-browser"]
    flags += ["--live.buffer", "3", "--live.max-new-tokens", "8"]
    command = [sys.executable, "-m", "tutelage.cli", "collect", *flags]
    server = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(SOURCE)}, stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        assert server.stdout is not None
        said = ""
        while "Ctrl-C stops" not in said:
            said += server.stdout.readline()
        assert "task: preference (2 fresh answers a prompt" in said
        home = Http(re.findall(r"http://\S+/enter/\S+", said)[0]).url
        db = open_database(url)
        with db.write() as c:
            link = f"{home}/join/{new_invite(c, owner(c), 'labeller', 1)}"
        rng = np.random.default_rng(0)
        person = SimulatedPerson(link, SimulatedAnnotator("Ann"), lambda prompt, answer: len(answer.text), rng)
        for _ in range(4):  # more than the buffer holds
            until(lambda: person.judge_next(1))
        steps = set(column(db, select(item.c.policy_step)))
        assert len(steps) == 1
        libraries = Path(f"/proc/{server.pid}/maps")
        if libraries.exists():
            assert "libtorch" not in libraries.read_text(), "the web process loaded torch"

        other, _ = tiny(seed=1)
        save_policy(other, tokenizer, tmp_path / "policy")
        old = steps.pop()
        until(lambda: max(column(db, select(item.c.policy_step))) > old)
        assert set(column(db, select(item.c.withdrawn).where(item.c.policy_step == old))) == {1}
        until(lambda: person.judge_next(1))
        newest = select(item.c.policy_step).join(judgment_event, judgment_event.c.item_id == item.c.id)
        judged = column(db, newest.order_by(judgment_event.c.seq))
        assert judged[:4] == [old] * 4, "judgments of the old policy were lost"
        assert judged[4] > old
        assert {origin["version"] for origin in column(db, select(response.c.origin))} == {old, judged[4]}

        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
        assert None not in column(db, select(api_token.c.revoked_at))
        db.close()
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "dir"}, "give --data"),
        ({"data": ("x",), "live": {"answers": 3}}, "give --policy"),
    ],
)
def test_settings_that_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_live(build(Collect, settings, "test"))


def test_the_task_of_fresh_answers() -> None:
    def of(**settings: Any) -> str:
        return live_task(build(Collect, {"data": ("x",), "policy": "dir", **settings}, "test"))[0]

    assert of() == "preference"
    assert of(live={"answers": 4}) == "ranking"
    with pytest.raises(ValueError, match=r"for ranking; set --live\.answers"):
        of(live={"answers": 4}, task="preference")
