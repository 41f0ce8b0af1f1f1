"""Hand-out: overlap exact, nobody twice, leases, late work, expert, check and repeat shares; on both databases."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, select

from tutelage.feedback.judging import Measured, submit
from tutelage.feedback.queue import Handed, heartbeat, lease_seconds, next_task
from tutelage.feedback.schema import assignment, item, judgment_current, judgment_event, slot
from tutelage.feedback.schema import project as projects
from tutelage.feedback.sides import falls_on

FIRST = {"choice": "first"}
HOUR = 3600.0


def claim(place: Any, project: int, who: int, ahead: int = 0, now: float | None = None) -> Any:
    """The assignment's id, or the reason why there is none."""
    with place.db.write() as c:
        found = next_task(c, project, who, ahead, now)
    return found.assignment if isinstance(found, Handed) else found.reason


def judge(place: Any, assignment_id: int, who: int, key: str = "", payload: Any = None, **more: Any) -> Any:
    """Submit a judgment."""
    with place.db.write() as c:
        return submit(
            c, assignment_id, who, key or f"key-{time.monotonic_ns()}", payload or FIRST, measured=Measured(), **more
        )


def item_of(place: Any, assignment_id: int) -> int:
    """The item of an assignment."""
    return place.rows(select(assignment.c.item_id).where(assignment.c.id == assignment_id))[0]["item_id"]


def all_of(place: Any, project: int, who: int) -> list[int]:
    """Judge until nothing is left; the items in their order."""
    items = []
    while isinstance(found := claim(place, project, who), int):
        items.append(item_of(place, found))
        judge(place, found, who)
    return items


def test_every_item_is_judged_by_exactly_overlap_different_people(place: Any) -> None:
    project = place.project(place.pairs(7), overlap=2)
    people = [place.person(project, name) for name in ("Ann", "Ben", "Cem")]
    judged = [all_of(place, project, who) for who in people]
    assert [len(items) for items in judged] == [7, 7, 0]
    assert all(len(set(items)) == len(items) for items in judged)
    assert set(Counter(x for items in judged for x in items).values()) == {2}
    assert place.rows(select(func.count().label("count")).select_from(slot).where(slot.c.done == 0))[0]["count"] == 0
    assert [claim(place, project, who) for who in people] == ["done"] * 3


def test_what_a_person_holds_comes_first_and_the_one_ahead_next(place: Any) -> None:
    project = place.project(place.pairs(4))
    who = place.person(project)
    first = claim(place, project, who)
    assert claim(place, project, who) == first
    second = claim(place, project, who, ahead=1)
    assert second != first
    assert claim(place, project, who, ahead=1) == second
    judge(place, first, who)
    assert claim(place, project, who) == second


def test_an_expired_lease_goes_to_somebody_else_and_late_work_is_surplus(place: Any) -> None:
    project = place.project(place.pairs(1))
    ann, ben = place.person(project, "Ann"), place.person(project, "Ben")
    now = time.time()
    slow = claim(place, project, ann, now=now)
    assert claim(place, project, ben, now=now + 599) == "wait"
    quick = claim(place, project, ben, now=now + 601)
    assert item_of(place, quick) == item_of(place, slow)
    assert judge(place, quick, ben).late is False
    late = judge(place, slow, ann)
    assert late.late is True
    kept = place.rows(select(judgment_current))
    assert sorted((row["annotator_id"], row["late"]) for row in kept) == sorted([(ann, 1), (ben, 0)])


def test_late_work_fills_a_slot_that_is_free_and_an_expired_lease_that_nobody_took_is_still_held(place: Any) -> None:
    project = place.project(place.pairs(1), overlap=2)
    ann, ben = place.person(project, "Ann"), place.person(project, "Ben")
    now = time.time()
    held = claim(place, project, ann, now=now - 2 * HOUR)
    assert claim(place, project, ann, now=now) == held
    lost = claim(place, project, ben, now=now - 2 * HOUR)
    cem = place.person(project, "Cem")
    taken = claim(place, project, cem, now=now + 1)
    assert item_of(place, taken) == item_of(place, lost)
    judge(place, held, ann)
    assert judge(place, lost, ben).late is True  # Ann and Cem have both slots
    assert place.rows(select(func.count().label("count")).select_from(slot).where(slot.c.who == ben))[0]["count"] == 0


def test_a_heartbeat_extends_the_lease_and_says_when_it_was_lost(place: Any) -> None:
    project = place.project(place.pairs(1))
    ann, ben = place.person(project, "Ann"), place.person(project, "Ben")
    now = time.time()
    held = claim(place, project, ann, now=now)
    with place.db.write() as c:
        assert heartbeat(c, held, ann, now + 500)
    assert claim(place, project, ben, now=now + 900) == "wait"
    assert isinstance(claim(place, project, ben, now=now + 1101), int)
    with place.db.write() as c:
        assert not heartbeat(c, held, ann, now + 1102)


def test_the_lease_is_three_times_the_slow_tenth(lite: Any) -> None:
    project = lite.project(lite.pairs(10))
    who = lite.person(project)
    for seconds in range(100, 1100, 100):
        with lite.db.write() as c:
            handed = next_task(c, project, who)
            assert isinstance(handed, Handed)
            measured = Measured(active_ms=seconds * 1000)
            submit(c, handed.assignment, who, f"key-{seconds}", FIRST, measured=measured)
    with lite.db.read() as c:
        assert lease_seconds(c, project) == 3 * 900  # times 100, 200 ... 1000 s


def test_a_skipped_item_goes_to_others_and_never_back(place: Any) -> None:
    project = place.project(place.pairs(1))
    ann, ben = place.person(project, "Ann"), place.person(project, "Ben")
    judge(place, claim(place, project, ann), ann, payload={"skip": "unclear"})
    assert claim(place, project, ann) == "done"
    judge(place, claim(place, project, ben), ben)
    assert claim(place, project, ann) == "done"
    assert [r["kind"] for r in place.rows(select(judgment_event.c.kind).order_by(judgment_event.c.seq))] == [
        "skip",
        "judgment",
    ]


def test_an_expert_share_is_exact_and_for_experts_alone(place: Any) -> None:
    project = place.project(place.pairs(20), expert_share=0.15)
    ann, eve = place.person(project, "Ann"), place.person(project, "Eve", role="researcher")
    experts = place.rows(select(slot.c.item_id).where(slot.c.pool == "expert"))
    assert len(experts) == 3
    assert len(all_of(place, project, ann)) == 20
    assert sorted(all_of(place, project, eve)) == sorted(row["item_id"] for row in experts)
    counts = Counter(row["item_id"] for row in place.rows(select(judgment_current.c.item_id)))
    assert Counter(counts.values()) == {1: 17, 2: 3}


def test_check_items_come_at_their_share_to_everybody_and_count_for_no_overlap(place: Any) -> None:
    checks = [replace(one, key=f"check-{i}", check_answer=FIRST) for i, one in enumerate(place.pairs(4, start=100))]
    project = place.project([*place.pairs(40), *checks], check_share=0.1, overlap=2)
    known = {row["id"] for row in place.rows(select(item.c.id).where(item.c.check_answer.is_not(None)))}
    for name in ("Ann", "Ben"):
        seen = all_of(place, project, place.person(project, name))
        assert len(seen) == 44
        places = [n for n, one in enumerate(seen) if one in known]
        assert [n // 10 for n in places] == [0, 1, 2, 3]  # one in each ten, and each but once
        assert {seen[n] for n in places} == known


def test_repeats_are_shown_in_the_reverse_order_after_a_while(lite: Any) -> None:
    project = lite.project(lite.pairs(60), repeat_share=0.1)
    who = lite.person(project)
    seen = all_of(lite, project, who)
    repeats = {
        r["id"]: r["repeat_of"] for r in lite.rows(select(item.c.id, item.c.repeat_of)) if r["repeat_of"] is not None
    }
    (seed,) = (r["seed"] for r in lite.rows(select(projects.c.seed).where(projects.c.id == project)))
    due = [turn for turn in range(len(seen)) if falls_on(seed, "repeat", who, turn, 0.1)]
    assert len(due) in (len(seen) // 10, len(seen) // 10 + 1), "one in ten assignments"
    assert len(repeats) == sum(turn > 10 for turn in due), "as soon as something was judged ten judgments ago"
    shown = {r["item_id"]: r["permutation"] for r in lite.rows(select(assignment.c.item_id, assignment.c.permutation))}
    for copy, original in repeats.items():
        assert shown[copy] == shown[original][::-1]
        assert seen.index(copy) - seen.index(original) > 10
    assert len(set(repeats.values())) == len(repeats)


def test_priority_goes_first_and_what_expired_or_was_withdrawn_goes_not_at_all(place: Any) -> None:
    first, second, urgent, stale = place.pairs(4)
    items = [first, second, replace(urgent, priority=-1), replace(stale, expires_at=time.time() - 1)]
    project = place.project(items)
    keys = {row["id"]: row["client_key"] for row in place.rows(select(item.c.id, item.c.client_key))}
    assert [keys[one] for one in all_of(place, project, place.person(project))] == ["item-2", "item-0", "item-1"]


@pytest.mark.parametrize(("status", "reason"), [("paused", "paused"), ("closed", "done")])
def test_a_project_that_is_not_open_hands_nothing_out_and_keeps_what_comes(lite: Any, status: str, reason: str) -> None:
    from tutelage.feedback.projects import set_status

    project = lite.project(lite.pairs(2))
    who = lite.person(project)
    held = claim(lite, project, who)
    with lite.db.write() as c:
        set_status(c, project, status, None)
    assert claim(lite, project, who) == reason
    assert judge(lite, held, who).late is False
    with lite.db.write() as c:
        set_status(c, project, "open", None)
    assert isinstance(claim(lite, project, who), int)


def test_sides_are_balanced_for_each_person(lite: Any) -> None:
    project, first_of_two = lite.project(lite.pairs(40)), []
    for name in ("Ann", "Ben"):
        who = lite.person(project, name)
        for _ in range(20):
            judge(lite, claim(lite, project, who), who)
        mine = select(assignment.c.permutation).where(assignment.c.annotator_id == who).order_by(assignment.c.id)
        orders = [tuple(row["permutation"]) for row in lite.rows(mine)]
        assert Counter(orders) == {(0, 1): 10, (1, 0): 10}
        first_of_two += orders[::2]
    assert len(set(first_of_two)) == 2, "balanced, not alternating (by chance once in half a million)"
