"""Any order of claims, submissions, skips, undos and expiries keeps the hand-out's laws (a Hypothesis state machine)."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import select

from tutelage.feedback.judging import Measured, submit, undo
from tutelage.feedback.queue import Handed, next_task
from tutelage.feedback.schema import assignment, judgment_current, judgment_event, slot

PEOPLE, ITEMS, OVERLAP = 3, 4, 2
WHO = st.integers(0, PEOPLE - 1)


def machine(place: Any) -> type[RuleBasedStateMachine]:
    """The machine on one open database; each run has a project of its own."""
    numbers = itertools.count()

    class HandOut(RuleBasedStateMachine):
        """People who work, stop, come back late, skip and take back."""

        def __init__(self) -> None:
            super().__init__()
            self.project = place.project(place.pairs(ITEMS), overlap=OVERLAP)
            self.people = [place.person(self.project, f"person {n}") for n in range(PEOPLE)]
            self.now = 1e9
            self.held: dict[int, list[int]] = {who: [] for who in range(PEOPLE)}
            self.sent = 0

        @rule(who=WHO, ahead=st.integers(0, 1))
        def claim(self, who: int, ahead: int) -> None:
            """Hand-out never gives an item to somebody who has said something of it, but to take it back."""
            with place.db.write() as c:
                found = next_task(c, self.project, self.people[who], ahead, self.now)
            if isinstance(found, Handed) and found.assignment not in self.held[who]:
                self.held[who].append(found.assignment)

        @precondition(lambda self: any(self.held.values()))
        @rule(who=WHO, which=st.integers(0, 9), skips=st.booleans(), again=st.booleans())
        def send(self, who: int, which: int, skips: bool, again: bool) -> None:
            """Whatever was ever in hand may be sent, at any time, twice."""
            if not self.held[who]:
                return
            work = self.held[who].pop(which % len(self.held[who]))
            key, payload = f"key-{next(numbers)}", {"skip": "unclear"} if skips else {"choice": "first"}
            for _ in range(1 + again):
                with place.db.write() as c:
                    submit(c, work, self.people[who], key, payload, measured=Measured(), now=self.now)
            self.sent += 1

        @rule(who=WHO)
        def take_back(self, who: int) -> None:
            """Undo what was said last."""
            with place.db.write() as c:
                found = undo(c, self.project, self.people[who], f"undo-{next(numbers)}", self.now)
            if found is not None:
                self.sent += 1
                self.held[who].append(found.assignment)

        @rule()
        def wait(self) -> None:
            """Every lease runs out."""
            self.now += 10_000

        @invariant()
        def holds(self) -> None:
            """Never more than the overlap in time, never one person twice, a slot done for each, every event there."""
            mine = judgment_current.c.project_id == self.project
            rows = place.rows(select(judgment_current).where(mine))
            in_time = Counter(r["item_id"] for r in rows if r["kind"] == "judgment" and not r["late"])
            assert not in_time or max(in_time.values()) <= OVERLAP
            spoken = Counter((r["item_id"], r["annotator_id"]) for r in rows)
            assert not spoken or max(spoken.values()) == 1
            slots = place.rows(select(slot).where(slot.c.project_id == self.project))
            assert Counter(s["item_id"] for s in slots if s["done"]) == in_time
            done = {(s["item_id"], s["who"]) for s in slots if s["done"]}
            assert done == {
                (r["item_id"], r["annotator_id"]) for r in rows if r["kind"] == "judgment" and not r["late"]
            }
            holders = Counter((s["item_id"], s["who"]) for s in slots if s["who"] is not None)
            assert not holders or max(holders.values()) == 1
            count = place.rows(select(judgment_event.c.seq).where(judgment_event.c.project_id == self.project))
            assert len(count) == self.sent
            turns = place.rows(
                select(assignment.c.annotator_id, assignment.c.turn).where(assignment.c.project_id == self.project)
            )
            assert len({(t["annotator_id"], t["turn"]) for t in turns}) == len(turns)

    return HandOut


@pytest.mark.slow
def test_the_laws_of_the_hand_out(place: Any) -> None:
    quiet = [HealthCheck.too_slow]
    run_state_machine_as_test(
        machine(place),
        settings=settings(max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=quiet),
    )
