"""The qualification test: who is tested, what they are told, when it is passed or over; nothing can be judged twice to pass."""

from __future__ import annotations

from typing import Any

import pytest

from tutelage.feedback.items import NewItem, NewResponse
from tutelage.feedback.judging import Measured, submit, undo
from tutelage.feedback.qualification import agreement, standing_of
from tutelage.feedback.queue import Handed, Nothing, next_task
from tutelage.records import user

TEST = {"qualify": 8, "qualify_threshold": 0.6}
"""8 of 8 right: Wilson's lower bound is 8 / (8 + 1.96^2) = .676, above .6; 7 of 8: .529, below."""


def known(count: int) -> list[NewItem]:
    """Check items; the canonical first is right."""
    made = []
    for i in range(count):
        answers = NewResponse(f"right {i}"), NewResponse(f"wrong {i}")
        right = {"choice": "first"}
        made.append(NewItem(user(f"known {i}"), answers, f"known-{i}", right, f"Because **{i}** is right."))
    return made


def hand(place: Any, project: int, who: int) -> Any:
    """What somebody is handed: (assignment, pool, item's key, order), or why nothing."""
    with place.db.write() as c:
        found = next_task(c, project, who)
    if isinstance(found, Nothing):
        return found.reason
    assert isinstance(found, Handed)
    from sqlalchemy import select

    from tutelage.feedback.schema import assignment, item, slot

    of = select(assignment.c.id, slot.c.pool, item.c.client_key, assignment.c.permutation)
    of = of.join_from(assignment, slot, slot.c.id == assignment.c.slot_id).join(item, item.c.id == assignment.c.item_id)
    return tuple(place.rows(of.where(assignment.c.id == found.assignment))[0].values())


def judge(place: Any, work: Any, who: int, right: bool, key: str = "") -> Any:
    """Choose the canonical first answer, or the other, wherever it stands."""
    choice = "first" if (work[3][0] == 0) == right else "second"
    with place.db.write() as c:
        name = key or f"key-{who}-{work[0]}"
        return submit(c, work[0], who, name, {"choice": choice}, measured=Measured())


def test_a_labeller_passes_and_then_works(place: Any) -> None:
    project = place.project([*place.pairs(3), *known(12)], options=TEST)
    who = place.person(project)
    for n in range(8):
        work = hand(place, project, who)
        assert work[1] == "qualify", n
        assert judge(place, work, who, True).tested
    keys = set()
    for _ in range(3):
        work = hand(place, project, who)
        assert work[1] == "any"
        keys.add(work[2])
        assert not judge(place, work, who, True).tested
    assert keys == {"item-0", "item-1", "item-2"}
    assert hand(place, project, who) == "done"


def test_one_mistake_asks_for_more_known_answers_and_many_end_it(place: Any) -> None:
    project = place.project([*place.pairs(3), *known(15)], options=TEST)
    careful, careless = place.person(project), place.person(project, "Bob")
    for n in range(8):
        judge(place, hand(place, project, careful), careful, n > 0)
    assert hand(place, project, careful)[1] == "qualify"  # 7 of 8: lower bound .529
    for _ in range(3):
        judge(place, hand(place, project, careful), careful, True)
    assert hand(place, project, careful)[1] == "any"  # 10 of 11: .623
    for n in range(8):
        judge(place, hand(place, project, careless), careless, n < 1)
    assert hand(place, project, careless) == "unqualified"  # 1 of 8: even the upper bound, .471, is below .6


def test_who_runs_out_of_known_answers_has_not_passed(place: Any) -> None:
    project = place.project([*place.pairs(3), *known(8)], options=TEST)
    who = place.person(project)
    for n in range(8):
        judge(place, hand(place, project, who), who, n > 0)
    assert hand(place, project, who) == "unqualified"


def test_experts_and_the_held_out_group_are_not_tested(place: Any) -> None:
    project = place.project([*place.pairs(3), *known(8)], options=TEST)
    for role, held_out in (("researcher", False), ("labeller", True)):
        assert hand(place, project, place.person(project, f"{role} x", role, held_out))[1] == "any"


def test_what_was_said_after_the_answer_was_shown_does_not_count(place: Any) -> None:
    project = place.project([*place.pairs(3), *known(12)], options=TEST)
    who = place.person(project)
    work = hand(place, project, who)
    judge(place, work, who, False)
    with place.db.write() as c:
        assert undo(c, project, who, "undo-key-1") is None, "the answer was told: nothing is taken back"
    judge(place, work, who, True, "a-second-try")
    with place.db.read() as c:
        test = standing_of(c, project, who, TEST)
    assert (test.judged, test.right, test.passed, test.failed) == (1, 0.0, False, False)


def test_over_http_the_answer_comes_after_the_judgment_and_not_before(serving: Any) -> None:
    place = serving.place
    project = place.project([*place.pairs(3), *known(9)], options=TEST)
    client = serving.client(place.person(project))
    task = client.next(project)
    assert "Because" not in str(task)
    assert "explanation" not in str(task)
    assert task["test"] | {"passed": 0} == {
        "judged": 0,
        "right": 0,
        "least": 8,
        "threshold": 0.6,
        "passed": 0,
        "failed": False,
    }
    for n in range(8):
        first_right = task["item"]["responses"][0]["text"].startswith("right")
        said = "first" if first_right == (n != 5) else "second"
        reply = client.judge(task["assignment"], f"answer-{project}-{n}", {"choice": said}).json()
        told = reply["feedback"]
        assert told["right"] is (n != 5)
        assert told["answer"] == {"choice": "first" if first_right else "second"}
        number = task["item"]["prompt"][0]["content"].split()[1]
        assert told["explanation"] == f"<p>Because <strong>{number}</strong> is right.</p>\n"
        again = client.judge(task["assignment"], f"answer-{project}-{n}", {"choice": said}).json()
        assert again["feedback"] == told, "a retry is told the same"
        task = reply["next"]
    assert told["test"]["right"] == 7
    assert not told["test"]["passed"]


@pytest.mark.parametrize(
    ("kind", "said", "share"),
    [
        ("preference", {"choice": "tie"}, 0.0),
        ("rating", {"value": 4}, 1.0),
        ("yesno", {"value": True}, 0.0),
        ("ranking", {"ranks": [1, 3, 2]}, 2 / 3),  # of three pairs, 2 against 3 stands wrong
    ],
)
def test_agreement_with_a_known_answer(kind: Any, said: Any, share: float) -> None:
    right = {"preference": {"choice": "first"}, "rating": {"value": 4}, "yesno": {"value": False}}
    assert agreement(kind, said, right.get(kind, {"ranks": [1, 2, 3]})) == pytest.approx(share)


def test_bad_settings_are_refused_at_the_door(lite: Any) -> None:
    for options in ({"qualify": -1}, {"qualify_threshold": 0.3}, {"qualify": "8"}):
        with pytest.raises(ValueError, match="qualify"):
            lite.project(lite.pairs(1), options=options)


def test_nothing_is_held_ahead_during_the_test(place: Any) -> None:
    project = place.project([*place.pairs(3), *known(9)], options=TEST)
    who = place.person(project)
    work = hand(place, project, who)
    with place.db.write() as c:
        assert next_task(c, project, who, ahead=1) == Nothing("wait")
    assert hand(place, project, who) == work
