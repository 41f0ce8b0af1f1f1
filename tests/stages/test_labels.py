"""`tutelage labels` on a database that people (simulated) filled through the real hand-out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tutelage.data.readers import load_records
from tutelage.feedback.database import open_database
from tutelage.feedback.items import NewItem, NewResponse
from tutelage.feedback.judging import Measured, submit
from tutelage.feedback.people import join, new_invite, owner
from tutelage.feedback.projects import Project, add_items, create_project, set_instructions
from tutelage.feedback.quality import quality_page
from tutelage.feedback.queue import Handed, next_task
from tutelage.feedback.schema import assignment, item, response
from tutelage.feedback.simulated import SimulatedAnnotator
from tutelage.records import user
from tutelage.stages.labels import main

PEOPLE = {
    "Ada": SimulatedAnnotator("Ada", temperature=0.02),
    "Bo": SimulatedAnnotator("Bo", temperature=0.1, side_bias=0.5),
    "Cy": SimulatedAnnotator("Cy", lapse=1.0),
}
PAIRS = 40


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A project of 40 pairs (and 8 check items) that three people judged; Cy is held out; answer `good` is the better one."""
    url = f"sqlite:///{tmp_path_factory.mktemp('labels') / 'feedback.db'}"
    db = open_database(url)
    with db.write() as c:
        shares = {"check_share": 0.2, "repeat_share": 0.1}
        project = create_project(c, Project("colours", "preference", overlap=3, **shares))
        set_instructions(c, project, "Prefer what is true.", None)
        add_items(c, project, [_item(i, i < 8) for i in range(PAIRS + 8)])
        admin = owner(c)
        who = {
            name: join(
                c,
                new_invite(c, admin, "researcher" if name == "Ada" else "labeller", project, held_out=name == "Cy"),
                name,
            )
            for name in PEOPLE
        }
    rng = np.random.default_rng(0)
    for name, person in PEOPLE.items():
        _work(db, project, who[name], person, rng)
    db.close()
    return url


def _item(i: int, known: bool) -> NewItem:
    answers = (NewResponse(f"good {i}", {"author": "model A"}), NewResponse(f"bad {i}", {"author": "model B"}))
    return NewItem(user(f"question {i}", id=f"q{i}"), answers, f"k{i}", {"choice": "first"} if known else None)


def _work(db, project: int, who: int, person: SimulatedAnnotator, rng: np.random.Generator) -> None:
    """Judge what is handed out, as it stands on the screen, until nothing is left."""
    for turn in range(200):
        with db.write() as c:
            handed = next_task(c, project, who)
            if not isinstance(handed, Handed):
                return
            work = c.execute(assignment.select().where(assignment.c.id == handed.assignment)).mappings().one()
            ids = c.execute(item.select().where(item.c.id == work["item_id"])).mappings().one()["responses"]
            texts = [
                c.execute(response.select().where(response.c.id == ids[k])).mappings().one()["text"]
                for k in work["permutation"]
            ]
            utilities = tuple(1.0 if text.startswith("good") else 0.8 for text in texts)
            first = person.judge_pair(utilities, (6, 6), 0, rng, turn)
            payload = {"choice": "first" if first == 1.0 else "second", "strength": 2}
            measured = Measured(active_ms=4000, instructions_version=1)
            submit(c, handed.assignment, who, f"{who}/{turn}", payload, measured=measured)
    raise AssertionError("the queue never ends")


@pytest.mark.slow
def test_export_says_who_was_right_and_trains(url: str, tmp_path: Path, capsys) -> None:
    out = tmp_path / "export"
    assert main(["export", "--db", url, "--out", str(out), "--weights", "reliability", "--valid-share", "0.2"]) == 0
    printed = capsys.readouterr().out.replace("\n", " ")
    assert f"tutelage reward --data {out / 'train.jsonl'} --heldout {out / 'valid.jsonl'}" in " ".join(printed.split())
    manifest = json.loads((out / "manifest.json").read_text())
    assert sum(manifest["rows"].values()) == 3 * PAIRS
    assert manifest["left_out"]["check items"] > 0
    train = load_records(out / "train.jsonl", "comparison").records
    valid = load_records(out / "valid.jsonl", "comparison").records
    assert {r.prompt.id for r in train}.isdisjoint({r.prompt.id for r in valid})
    right = {
        who: [r.chosen.text.startswith("good") for r in train if r.annotator == who] for who in manifest["weights"]
    }
    ada, bo, cy = manifest["weights"]  # in the order in which they joined
    assert all(right[ada])
    assert not right[cy]  # held out
    assert manifest["weights"][cy] < 0.6 < min(manifest["weights"][ada], manifest["weights"][bo])
    assert {r.weight for r in train} == {manifest["weights"][ada], manifest["weights"][bo]}
    assert {r.chosen.author for r in train} <= {"model A", "model B"}
    held = load_records(out / "heldout_annotators_valid.jsonl", "comparison").records
    assert len(held) == len({r.prompt.id for r in valid})


def test_report_prints_and_draws(url: str, tmp_path: Path, capsys) -> None:
    page = tmp_path / "quality.html"
    assert main(["report", "--db", url, "--out", str(page), "--draws", "100"]) == 0
    printed = capsys.readouterr().out
    assert "Agreement with experts" in printed
    text = page.read_text()
    assert all(name in text for name in PEOPLE)
    assert "<svg" in text


def test_the_dashboard_reads_the_same(url: str) -> None:
    db = open_database(url)
    page = quality_page(db, 1)
    db.close()
    versions = next(part for part in page["sections"] if part["title"] == "Versions of the instructions")
    assert versions["rows"][0][0] == "1"
    people = next(part for part in page["sections"] if part["title"] == "Annotators")
    checks = {row[0]: row[4] for row in people["rows"]}
    assert checks["Ada"].startswith("1.00")
    assert sorted(checks) == sorted(PEOPLE)


def test_screened_annotators_alone(url: str, tmp_path: Path, capsys) -> None:
    with pytest.raises(ValueError, match=r"--format critique: no rows"):
        main(["export", "--db", url, "--format", "critique"])
    main(["export", "--db", url, "--out", str(tmp_path / "u"), "--annotators", "unscreened"])
    manifest = json.loads((tmp_path / "u" / "manifest.json").read_text())
    assert manifest["settings"]["annotators"] == "unscreened"
    assert manifest["left_out"].get("by annotators not chosen", 0) >= 0
    with pytest.raises(ValueError, match="no conversation is left to train on"):
        main(["export", "--db", url, "--valid-share", "0.6", "--test-share", "0.5"])


def test_import_report_export_in_one_go(tmp_path: Path, capsys) -> None:
    files, url = Path(__file__).parents[1] / "feedback" / "imports", f"sqlite:///{tmp_path / 'new.db'}"
    main(["import", "--db", url, "--data", str(files / "hh.jsonl")])
    main(["import", "--db", url, "--data", str(files / "alpaca_eval.json"), "--project", "alpaca"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "read as pairs (guessed" in printed
    assert "read as alpaca_eval (guessed" in printed
    with pytest.raises(ValueError, match="which one\\? In this database: 'hh', 'alpaca'"):
        main(["report", "--db", url, "--out", str(tmp_path / "r.html")])
    main(["report", "--db", url, "--project", "hh", "--out", str(tmp_path / "r.html"), "--draws", "100"])
    main(["export", "--db", url, "--project", "hh", "--out", str(tmp_path / "e"), "--valid-share", "0"])
    (dialogue, short) = load_records(tmp_path / "e" / "train.jsonl", "comparison").records
    assert [m.content for m in dialogue.prompt.messages] == ["Hi", "Hello!", "Help me ✓"]
    assert (dialogue.chosen.text, dialogue.rejected.text) == ("Gladly.", "No.")
    assert (short.chosen.text, short.rejected.text) == ("2", "3")


def test_mistakes_at_the_door(url: str, tmp_path: Path) -> None:
    broken = tmp_path / "x.json"
    broken.write_text(
        '[{"data": {"prompt": "a"}, "annotations": [{"result": [{"type": "pairwise", "to_name": "b"}]}]}]'
    )
    cases = [
        (["sum"], "unknown action 'sum'; known: report, export, import"),
        (["report", "--db", f"sqlite:///{tmp_path / 'none.db'}"], "there is no such file"),
        (["export"], "--db: which database"),
        (["import", "--db", "sqlite:///x.db"], "--data: no file given"),
        (["report", "--db", "mysql://x"], "allowed: sqlite"),
        (["report", "--db", url, "--project", "no"], "'no' is not in this database; allowed: 'colours'"),
        (["import", "--db", f"sqlite:///{tmp_path / 'm.db'}", "--data", str(broken)], "1 of 1 rows are bad"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            main(arguments)
