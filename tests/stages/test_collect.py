"""`tutelage collect`: every shape of data as something to judge, the guessed task, projects that go on, errors at the door."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tutelage.feedback.database import open_database
from tutelage.feedback.server.serve import bind, only_server
from tutelage.stages.collect import Collect, bring_in, main, media_folder, read_content, refuse_bomb
from tutelage.stages.collect_rows import check_items, guess_task, read_groups, to_items

SOURCE = Path(__file__).resolve().parents[2] / "src"
FIXTURES = Path(__file__).resolve().parents[1] / "data" / "fixtures"


def write(path: Path, *rows: Any) -> str:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(path: str, media: Path | None = None) -> list[Any]:
    """Its groups."""
    return read_groups([path], "error", media)


def test_our_own_rows(tmp_path: Path) -> None:
    source = write(
        tmp_path / "own.jsonl",
        {
            "prompt": "Say hi",
            "responses": ["Hi", {"text": "Hello", "policy": "sft", "step": 3}],
            "id": "a",
            "category": "Chat",
        },
        {
            "prompt": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "2+2"}],
            "responses": ["4", "5"],
        },
    )
    first, second = read(source)
    assert (first.prompt.id, first.prompt.category) == ("a", "Chat")
    assert [r.text for r in first.responses] == ["Hi", "Hello"]
    assert [r.origin for r in first.responses] == [{}, {"policy": "sft", "step": 3}]
    assert [m.role for m in second.prompt.messages] == ["system", "user"]
    assert guess_task([first, second]) == ("preference", "two answers a prompt")


@pytest.mark.parametrize(
    ("fixture", "task", "count"),
    [
        ("prompt_only.jsonl", "demonstration", 3),
        ("question_answer.jsonl", "demonstration", 3),
        ("prompt_completion.jsonl", "rating", 3),
        ("messages.jsonl", "rating", 3),
        ("rating_records.jsonl", "rating", 2),
        ("prompt_chosen_rejected.jsonl", "preference", 3),
        ("hh_rlhf.jsonl", "preference", 2),
        ("comparison_records.jsonl", "preference", 2),
    ],
)
def test_every_shape_of_the_data_page(fixture: str, task: str, count: int) -> None:
    groups = read(str(FIXTURES / fixture))
    guessed, _ = guess_task(groups)
    items, notes = to_items(groups, guessed)
    assert (guessed, len(items), notes) == (task, count, [])


def test_answers_that_were_sampled(tmp_path: Path) -> None:
    """answers.jsonl of the quickstart: four answers a prompt are ranked, or compared in every pair, or rated one by one."""
    answers = [{"text": t, "tokens": [1], "author": "sft"} for t in ("a", "b", "c", "b")]
    prompt = {"messages": [{"role": "user", "content": "x"}]}
    groups = read(write(tmp_path / "answers.jsonl", {"prompt": prompt, "answers": answers}))
    assert guess_task(groups)[0] == "ranking"
    items, notes = to_items(groups, "ranking")
    assert [[r.text for r in one.responses] for one in items] == [["a", "b", "c"]]
    assert notes == ["1 row: equal answers to one prompt are shown once"]
    pairs, _ = to_items(groups, "preference")
    assert [[r.text for r in one.responses] for one in pairs] == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert [[r.text for r in one.responses] for one in to_items(groups, "yesno")[0]] == [["a"], ["b"], ["c"]]
    assert [one.responses for one in to_items(groups, "demonstration")[0]] == [()]
    assert items[0].responses[0].origin == {"author": "sft", "stop_reason": "stop"}


def test_rows_without_enough_answers_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [
        {"prompt": "x", "responses": ["a", "b"]},
        {"prompt": "y", "responses": ["a", "a"]},
        {"prompt": "z", "responses": []},
    ]
    items, notes = to_items(read(write(tmp_path / "few.jsonl", *rows)), "preference")
    assert len(items) == 1
    assert "2 rows: has fewer than 2 different answers and is left out" in notes
    with pytest.raises(ValueError, match="no row has 2 different answers"):
        to_items(read(write(tmp_path / "none.jsonl", {"prompt": "x", "responses": ["a"]})), "preference")


def test_bad_rows_are_named_by_file_and_line(tmp_path: Path) -> None:
    good = {"prompt": "x", "responses": ["a", "b"]}
    bad = [
        {"prompt": "x", "responses": "a"},
        {"prompt": "", "responses": ["a"]},
        {"prompt": "x", "responses": ["", "b"]},
    ]
    source = write(tmp_path / "bad.jsonl", good, *bad)
    with pytest.raises(
        ValueError, match=r"3 of 4 rows are bad:\n.*bad.jsonl:2: key `responses`.*\n.*:3: key `prompt`.*\n.*:4: key"
    ):
        read(source)
    assert len(read_groups([source], "skip", None)) == 1
    with pytest.raises(ValueError, match="documents have no prompt"):
        read(write(tmp_path / "text.jsonl", {"text": "Once upon a time"}))


def test_media_are_copied_under_names_that_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "policy-7.gif").write_bytes(b"GIF89a")
    row = {
        "prompt": "Which is better?",
        "responses": [{"media": "policy-7.gif"}, {"text": "b", "media": ["policy-7.gif"]}],
    }
    source = write(tmp_path / "clips.jsonl", row)
    group = read(source, tmp_path / "kept")[0]
    kept = group.responses[0].media[0]
    assert kept["type"] == "image/gif"
    assert "policy" not in kept["path"]
    assert (tmp_path / "kept" / kept["path"]).read_bytes() == b"GIF89a"
    for name in ("absent.gif", "../outside.gif", "/etc/passwd", "clips.jsonl"):
        with pytest.raises(ValueError, match="allowed: a file in the folder of the data"):
            read(
                write(tmp_path / "wrong.jsonl", {"prompt": "x", "responses": [{"media": name}, "b"]}), tmp_path / "kept"
            )


def test_check_items_know_their_answer(tmp_path: Path) -> None:
    def known(task: Any, *rows: Any) -> list[Any]:
        groups = read(write(tmp_path / "check.jsonl", *rows))
        return [one.check_answer for one in check_items(groups, task, "check.jsonl")]

    pair = {"prompt": "x", "responses": ["a", "b"]}
    assert known("preference", {**pair, "answer": "second"}, {**pair, "answer": "tie"}) == [
        {"choice": "second"},
        {"choice": "tie"},
    ]
    assert known("preference", {"prompt": "x", "chosen": "a", "rejected": "b"}) == [{"choice": "first"}]
    assert known("ranking", {"prompt": "x", "responses": ["a", "b", "c"], "answer": [2, 1, 3]}) == [
        {"ranks": [2, 1, 3]}
    ]
    assert known("yesno", {"prompt": "x", "completion": "a", "label": True}) == [{"value": True}]
    assert known("rating", {"prompt": "x", "responses": ["a"], "answer": 5}) == [{"value": 5}]
    with pytest.raises(ValueError, match="allowed for preference: first, second, tie or both_bad"):
        known("preference", pair)
    with pytest.raises(ValueError, match="no check items for this task"):
        known("critique", {"prompt": "x", "responses": ["a"], "answer": "x"})


def collect(tmp_path: Path, **flags: Any) -> tuple[Any, list[dict[str, Any]]]:
    """What the flags bring into the database of `tmp_path`: (content, the projects with their item counts)."""
    from sqlalchemy import text

    url = f"sqlite:///{tmp_path / 'feedback.db'}"
    cfg, db = Collect(**{"db": url} | flags), open_database(url)
    content = read_content(cfg, db, media_folder(cfg, url))
    if content is not None:
        bring_in(db, content)
    with db.read() as c:
        counted = (
            "SELECT p.*, (SELECT COUNT(*) FROM item i WHERE i.project_id = p.id) AS items FROM project p ORDER BY id"
        )
        rows = [dict(row) for row in c.execute(text(counted)).mappings()]
    db.close()
    return content, rows


def test_data_is_added_once_to_a_project_that_goes_on(tmp_path: Path) -> None:
    pair = {"prompt": "x", "responses": ["a", "b"]}
    first, more = write(tmp_path / "first.jsonl", pair), write(tmp_path / "more.jsonl", pair, {**pair, "prompt": "y"})
    _, made = collect(tmp_path, data=(first,), overlap=3, project="helpful")
    assert [(p["name"], p["task"], p["overlap"], p["items"]) for p in made] == [("helpful", "preference", 3, 1)]
    for _ in range(2):
        _, made = collect(tmp_path, data=(more,), project="helpful")
        assert [(p["name"], p["overlap"], p["items"]) for p in made] == [("helpful", 3, 2)]
    _, made = collect(tmp_path, data=(more,))
    assert [(p["name"], p["items"]) for p in made] == [("helpful", 2), ("more", 2)]
    with pytest.raises(ValueError, match="'helpful' is there already"):
        collect(tmp_path, data=(more,), project="helpful", overlap=2)


def test_files_beside_the_data(tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", {"prompt": "x", "responses": ["a"]})
    (tmp_path / "guide.md").write_text("# Be kind")
    (tmp_path / "screen.yaml").write_text("scale: [1, 3]\nanchors: [bad, fair, good]\n")
    checks = write(tmp_path / "c.jsonl", {"prompt": "y", "responses": ["a"], "answer": 3})
    content, made = collect(
        tmp_path,
        data=(data,),
        instructions=str(tmp_path / "guide.md"),
        options=str(tmp_path / "screen.yaml"),
        check_items=checks,
    )
    assert content.notes == ["task: rating (one answer a prompt; another with --task)"]
    assert made[0]["items"] == 2
    assert json.loads(made[0]["options"]) == {"scale": [1, 3], "anchors": ["bad", "fair", "good"]}
    (tmp_path / "screen.yaml").write_text("scales: [1, 3]\n")
    with pytest.raises(ValueError, match=r"options\.scales"):
        collect(tmp_path, data=(data,), options=str(tmp_path / "screen.yaml"), project="new")
    wrong = write(tmp_path / "c.jsonl", {"prompt": "y", "responses": ["a"], "answer": 9})
    with pytest.raises(ValueError, match="allowed: 1 to 7"):
        collect(tmp_path, data=(data,), check_items=wrong, project="new")
    with pytest.raises(ValueError, match="belong to a project: give --data too"):
        collect(tmp_path, check_items=checks)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({}, "--data FILE to start a project, or --db URL"),
        ({"data": ("absent.jsonl",)}, "absent.jsonl: no such file"),
        ({"data": ("x",), "host": "0.0.0.0"}, "--public-url"),
        ({"db": "feedback.db"}, "allowed: sqlite:///FILE"),
    ],
)
def test_errors_at_the_door_leave_no_folder(tmp_path: Path, monkeypatch: Any, flags: Any, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said):
        main(Collect(**flags))
    assert list(tmp_path.iterdir()) == []


def test_a_parquet_file_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    bomb = tmp_path / "bomb.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"prompt": ["x" * 1_000_000] * 50}), bomb, compression="zstd", use_dictionary=False
    )
    assert bomb.stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"unpacks to 50,\d{3},\d{3} bytes; allowed: 1,000,000"):
        refuse_bomb(bomb, 1_000_000)
    bomb.write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match="not a Parquet file"):
        refuse_bomb(bomb)


def test_one_server_for_a_database_and_a_port(tmp_path: Path) -> None:
    db = open_database(f"sqlite:///{tmp_path / 'feedback.db'}")
    with (
        only_server(db),
        pytest.raises(ValueError, match="another `tutelage collect` serves this database"),
        only_server(db),
    ):
        pass
    db.close()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match="in use"):
            bind("127.0.0.1", taken.getsockname()[1])


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """Start the command in `tmp_path`; gives the process and the admin link that it opened in the browser."""
    started: list[subprocess.Popen[str]] = []
    opener = tmp_path / "browser.sh"
    opener.write_text(
        f'#!/bin/sh\necho "$1" > "{tmp_path}/opened.new" && mv "{tmp_path}/opened.new" "{tmp_path}/opened"\n'
    )
    opener.chmod(0o755)

    def start(*flags: str) -> tuple[subprocess.Popen[str], str]:
        (tmp_path / "opened").unlink(missing_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(SOURCE), "BROWSER": f"{opener} %s"}
        command = [sys.executable, "-m", "tutelage.cli", "collect", *flags]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
        started.append(process)
        end = time.monotonic() + 60
        while not (tmp_path / "opened").exists():
            assert process.poll() is None
            assert time.monotonic() < end, "no browser was opened"
            time.sleep(0.01)
        return process, (tmp_path / "opened").read_text().strip()

    yield start
    for process in started:
        process.kill()
        process.wait()


def cpu_seconds(pid: int) -> float:
    """What a process has computed so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def judge_one(browser: httpx.Client, home: str) -> dict[str, int]:
    """Somebody who is signed in judges the next item; how far the project is then."""
    csrf = browser.get(f"{home}/").text.split('name="csrf" content="')[1].split('"')[0]
    task = browser.get(f"{home}/api/task/next?project=1").json()
    body = {"key": f"key-{task['assignment']}-once", "payload": {"choice": "first"}}
    path = f"{home}/api/task/{task['assignment']}/submit"
    progress = browser.post(path, json=body, headers={"x-csrf-token": csrf}).json()["next"]["progress"]
    return {name: progress[name] for name in ("done", "total")}


@pytest.mark.slow
def test_from_a_file_to_the_browser_and_on_after_a_stop(tmp_path: Path, run: Any) -> None:
    write(tmp_path / "pairs.jsonl", *({"prompt": f"q{i}", "responses": ["a", "b"]} for i in range(20)))
    process, link = run("--data", "pairs.jsonl")
    assert cpu_seconds(process.pid) < 3, "the browser opens within three seconds of computing"
    browser = httpx.Client(follow_redirects=True)
    assert "pairs" in browser.get(link).text
    assert judge_one(browser, link.split("/enter/")[0]) == {"done": 1, "total": 20}
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[0]
    assert "task: preference (two answers a prompt; another with --task)" in said
    database = re.search(r"database: (sqlite:///(runs/collect-\d{8}-\d{6})/feedback\.db)", said)
    assert database is not None
    copies = list((tmp_path / database[2] / "backups").iterdir())
    assert len(copies) == 1, "a copy at the end"
    assert process.returncode == 0
    process, fresh = run("--db", database[1])
    assert fresh != link
    assert httpx.get(fresh.rpartition("/")[0] + "/" + link.rpartition("/")[2]).status_code == 404, (
        "the old link was used"
    )
    again = httpx.Client(follow_redirects=True)
    again.get(fresh)
    assert judge_one(again, fresh.split("/enter/")[0]) == {"done": 2, "total": 20}
    process.terminate()
    assert process.wait(30) == 0
    assert len(list((tmp_path / database[2] / "backups").iterdir())) == 2, "also when the system stops it"


def test_what_the_data_preferred_is_kept_on_the_server_and_read_back(tmp_path: Path) -> None:
    from tutelage.feedback.database import open_database
    from tutelage.feedback.label_store import _items
    from tutelage.feedback.projects import Project, add_items, create_project
    from tutelage.feedback.schema import project
    from tutelage.stages.collect_rows import read_groups, to_items

    data = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": "a", "chosen": "yes", "rejected": "no"},
        {"prompt": "b", "responses": ["one", "two"]},
        {"prompt": "c", "chosen": "x", "rejected": "y", "preference": 0.5},
    ]
    made = []
    for row in rows:
        data.write_text(json.dumps(row) + "\n")
        made += to_items(read_groups([str(data)], "error", None), "preference")[0]
    db = open_database(f"sqlite:///{tmp_path / 'feedback.db'}")
    with db.write() as c:
        number = create_project(c, Project("pairs", "preference"))
        add_items(c, number, made)
        found = _items(c, c.execute(project.select().where(project.c.id == number)).mappings().one())
    db.close()
    earlier = {one.answers[0].text: one.earlier for one in found.values()}  # items have random ids, so no order
    assert earlier == {"yes": "first", "one": None, "x": None}
    assert [a.author for one in found.values() for a in one.answers] == [""] * 6
