"""Judgments: once however often sent, revised and taken back by events, never changed; payloads checked by task."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import delete, select, text, update
from sqlalchemy.exc import DatabaseError

from tutelage.feedback.erasure import erase
from tutelage.feedback.judging import KeyConflictError, Measured, save_draft, submit, undo
from tutelage.feedback.payloads import DEFAULTS, TASKS, check
from tutelage.feedback.queue import Handed, next_task
from tutelage.feedback.schema import audit, draft, flag, judgment_current, judgment_event, slot

FIRST, SECOND = {"choice": "first"}, {"choice": "second"}


def claim(place: Any, project: int, who: int) -> int:
    """The assignment that is handed out."""
    with place.db.write() as c:
        found = next_task(c, project, who)
    assert isinstance(found, Handed)
    return found.assignment


def judge(place: Any, work: int, who: int, key: str, payload: Any) -> Any:
    """Submit a judgment."""
    with place.db.write() as c:
        return submit(c, work, who, key, payload, measured=Measured("raw", 1200, 1500, 3, 1, 2))


def take_back(place: Any, project: int, who: int, key: str) -> Any:
    """Undo."""
    with place.db.write() as c:
        return undo(c, project, who, key)


def events(place: Any) -> list[dict[str, Any]]:
    """All events, oldest first."""
    return place.rows(select(judgment_event).order_by(judgment_event.c.seq))


def current(place: Any) -> list[Any]:
    """The payloads that count."""
    return [row["payload"] for row in place.rows(select(judgment_current).order_by(judgment_current.c.seq))]


def test_the_same_key_again_changes_nothing(place: Any) -> None:
    project = place.project(place.pairs(2))
    who = place.person(project)
    work = claim(place, project, who)
    stored = judge(place, work, who, "key-0001", FIRST)
    again = judge(place, work, who, "key-0001", SECOND)
    assert (again.seq, again.repeated, stored.repeated) == (stored.seq, True, False)
    assert current(place) == [FIRST]
    found = events(place)[0]
    measured = ("view", "active_ms", "visible_ms", "keys", "clicks", "instructions_version")
    assert [found[k] for k in measured] == ["raw", 1200, 1500, 3, 1, 2]


def test_a_key_names_one_judgment_of_one_person(place: Any) -> None:
    project = place.project(place.pairs(2), overlap=2)
    ann, ben = place.person(project, "Ann"), place.person(project, "Ben")
    work = claim(place, project, ann)
    judge(place, work, ann, "key-0001", FIRST)
    for who in (ann, ben):
        with pytest.raises(KeyConflictError, match="key-0001"):
            judge(place, claim(place, project, who), who, "key-0001", FIRST)
    assert len(events(place)) == 1


def test_a_second_judgment_supersedes_the_first_and_both_stay(place: Any) -> None:
    project = place.project(place.pairs(1))
    who = place.person(project)
    work = claim(place, project, who)
    first = judge(place, work, who, "key-0001", FIRST)
    second = judge(place, work, who, "key-0002", SECOND)
    assert [e["supersedes"] for e in events(place)] == [None, first.seq]
    assert current(place) == [SECOND]
    assert second.late is False


def test_undo_is_an_event_that_reopens_with_what_was_said(place: Any) -> None:
    project = place.project(place.pairs(3))
    who = place.person(project)
    works = []
    for n in range(2):
        works.append(claim(place, project, who))
        judge(place, works[-1], who, f"key-000{n}", FIRST)
    for n, work in enumerate(reversed(works)):  # one after the other, back to the first
        assert take_back(place, project, who, f"undo-000{n}").assignment == work
    assert take_back(place, project, who, "undo-0001").assignment == works[0], "the same key again"
    assert take_back(place, project, who, "undo-0009") is None
    assert [e["kind"] for e in events(place)] == ["judgment", "judgment", "undo", "undo"]
    assert current(place) == []
    assert [row["payload"] for row in place.rows(select(draft))] == [FIRST, FIRST]
    assert claim(place, project, who) == works[0]
    judge(place, works[0], who, "key-0010", SECOND)
    judge(place, works[1], who, "key-0011", SECOND)
    assert current(place) == [SECOND, SECOND]
    done = place.rows(select(slot.c.item_id).where(slot.c.done == 1))
    assert len(done) == 2, "the overlap of each is met once, not twice"


def test_a_skip_can_be_taken_back(place: Any) -> None:
    project = place.project(place.pairs(1))
    who = place.person(project)
    work = claim(place, project, who)
    judge(place, work, who, "key-0001", {"skip": "unclear"})
    assert take_back(place, project, who, "undo-0001").assignment == work
    assert claim(place, project, who) == work
    assert judge(place, work, who, "key-0002", FIRST).late is False
    assert current(place) == [FIRST]


def test_events_are_append_only_but_for_redaction(place: Any) -> None:
    project = place.project(place.pairs(1))
    who = place.person(project)
    judge(place, claim(place, project, who), who, "key-0001", FIRST)
    forbidden = [
        delete(judgment_event),
        update(judgment_event).values(payload=SECOND),
        update(judgment_event).values(payload=SECOND, redacted=1, annotator_id=1),
        update(judgment_event).values(redacted=1, at=0.0),
    ]
    for statement in forbidden:
        with pytest.raises(DatabaseError, match="append-only"), place.db.write() as c:
            c.execute(statement)
    if not place.db.is_sqlite:
        with pytest.raises(DatabaseError, match="append-only"), place.db.write() as c:
            c.execute(text("TRUNCATE judgment_event CASCADE"))
    assert current(place) == [FIRST]


def test_a_draft_is_kept_until_the_judgment(place: Any) -> None:
    project = place.project(place.pairs(1))
    who = place.person(project)
    work = claim(place, project, who)
    for choice in (FIRST, {"choice": None, "note": "not sure \u0000 yet"}):
        with place.db.write() as c:
            save_draft(c, work, choice)
    assert [row["payload"] for row in place.rows(select(draft))] == [{"choice": None, "note": "not sure \u0000 yet"}]
    judge(place, work, who, "key-0001", FIRST)
    assert place.rows(select(draft)) == []


def test_an_erasure_removes_words_and_name_and_keeps_choices(place: Any) -> None:
    project = place.project(place.pairs(2))
    who = place.person(project, "Ann Onymous")
    said = FIRST | {"strength": 2, "flag": {"tags": ["unsafe"], "note": "my phone is 555"}}
    judge(place, claim(place, project, who), who, "key-0001", said)
    held = claim(place, project, who)
    with place.db.write() as c:
        save_draft(c, held, {"text": "my draft"})
        assert erase(c, who, None) == 1
    assert current(place) == [FIRST | {"strength": 2, "flag": {"tags": ["unsafe"], "note": ""}}]
    assert [row["note"] for row in place.rows(select(flag))] == [""]
    everything = " ".join(
        str(place.rows(text(f"SELECT * FROM {t}"))) for t in ("annotator", "draft", "judgment_event", "audit", "flag")
    )
    assert all(secret not in everything for secret in ("Ann", "my phone", "my draft"))
    assert [row["detail"] for row in place.rows(select(audit).where(audit.c.action == "erase annotator"))] == [
        {"annotator": who, "judgments": 1}
    ]
    assert place.rows(select(slot).where(slot.c.who == who, slot.c.done == 0)) == []


GOOD: list[tuple[str, Any]] = [
    ("preference", {"choice": "tie"}),
    ("preference", {"choice": "both_bad", "strength": None}),
    ("ranking", {"ranks": [1, 2, 2]}),
    ("ranking", {"ranks": [1, 1, 1], "none_acceptable": True}),
    ("rating", {"value": 7, "flags": ["Hallucination"]}),
    ("yesno", {"value": False}),
    ("critique", {"text": "", "spans": [{"start": 1, "end": 4, "tag": "wrong", "quote": "bcd"}]}),
    ("demonstration", {"text": "مرحبا"}),
]
TEXTS = {"ranking": ["a", "b", "c"], "critique": ["abcde"], "demonstration": []}


@pytest.mark.parametrize(("task", "payload"), GOOD)
def test_payloads_of_each_task(task: Any, payload: Any) -> None:
    read = check(task, payload, DEFAULTS[task], TEXTS.get(task, ["a", "b"]))
    assert {k: read[k] for k in payload if payload[k] is not None} == {
        k: v if k != "spans" else [{**v[0], "note": ""}] for k, v in payload.items() if v is not None
    }


BAD: list[tuple[str, Any, str]] = [
    ("preference", {"choice": "third"}, "payload.choice"),
    ("preference", {"choice": "first", "strength": 4}, "payload.strength"),
    ("preference", {"choice": "first", "model": "x"}, "payload.model"),
    ("preference", {}, "payload.choice"),
    ("preference", [1], "payload"),
    ("ranking", {"ranks": [1, 2]}, "2 ranks; allowed: 3"),
    ("ranking", {"ranks": [1, 3, 3]}, r"here \[1, 2, 2\]"),
    ("ranking", {"ranks": [1, 2, True]}, "payload.ranks.2"),
    ("rating", {"value": 8}, "allowed: 1 to 7"),
    ("rating", {"value": 3.5}, "payload.value"),
    ("yesno", {"value": 1}, "payload.value"),
    ("critique", {"text": " "}, "empty"),
    ("critique", {"text": "x", "spans": [{"start": 2, "end": 9, "tag": "wrong"}]}, "start < end <= 5"),
    ("critique", {"text": "x", "spans": [{"start": 0, "end": 2, "tag": "wrong", "quote": "xy"}]}, "quote"),
    ("demonstration", {"text": "  "}, "blank"),
    ("demonstration", {"text": "a\u0000b"}, "NUL"),
    ("demonstration", {"text": "x" * 100_001}, "100000"),
    ("yesno", {"skip": "", "value": True}, "payload.value"),
]


@pytest.mark.parametrize(("task", "payload", "said"), BAD)
def test_a_payload_that_the_task_does_not_allow_is_refused(task: Any, payload: Any, said: str) -> None:
    assert task in TASKS
    with pytest.raises(ValueError, match=said):
        check(task, payload, DEFAULTS[task], TEXTS.get(task, ["a", "b"]))


def test_options_take_choices_away() -> None:
    options = {"ties": False, "both_bad": False}
    for choice in ("tie", "both_bad"):
        with pytest.raises(ValueError, match="allowed: first, second"):
            check("preference", {"choice": choice}, options, ["a", "b"])
    with pytest.raises(ValueError, match="ties"):
        check("ranking", {"ranks": [1, 1]}, {"ties": False}, ["a", "b"])
