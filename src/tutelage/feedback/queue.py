"""Hand-out: which item an annotator gets next. One row (`slot`) per required judgment makes the overlap exact by structure."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Connection,
    RowMapping,
    and_,
    bindparam,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)

from tutelage.feedback.extras import OFFERED, extra, repeat, unseen_check
from tutelage.feedback.qualification import Qualification, standing_before_work
from tutelage.feedback.schema import annotator, assignment, instructions, item, judgment_event, project, slot
from tutelage.feedback.sides import falls_on, permutation

SHORTEST_LEASE, LONGEST_LEASE = 600.0, 4 * 3600.0
"""Seconds. A lease is three times the slowest tenth's time for a judgment, within these."""
FURTHEST = 2
"""How many items beyond the present one may be held, so that the next is there at once."""

# The statements of every hand-out, built once: building them anew cost more than running them.
_PROJECT, _WHO, _NOW = bindparam("project"), bindparam("annotator"), bindparam("now")
_HELD = (
    select(assignment.c.id, assignment.c.slot_id)
    .join(slot, and_(slot.c.id == assignment.c.slot_id, slot.c.who == assignment.c.annotator_id))
    .join(item, item.c.id == slot.c.item_id)
    .where(slot.c.who == _WHO, slot.c.project_id == _PROJECT, slot.c.done == 0, *OFFERED)
    .order_by(assignment.c.id)
)
_TIMES = (
    select(judgment_event.c.active_ms)
    .where(judgment_event.c.project_id == _PROJECT, judgment_event.c.kind == "judgment")
    .order_by(judgment_event.c.seq.desc())
    .limit(200)
).cte("times")
_SLOW = (  # the database sorts: two hundred rows less to bring over for every hand-out
    select(_TIMES.c.active_ms)
    .order_by(_TIMES.c.active_ms)
    .limit(1)
    .offset(select((9 * (func.count() - 1)) // 10).select_from(_TIMES).scalar_subquery())
)
_TURNS = select(func.count()).where(assignment.c.annotator_id == _WHO, assignment.c.project_id == _PROJECT)
_VERSION = select(func.max(instructions.c.version)).where(instructions.c.project_id == _PROJECT)
_ASKED = select(project, _VERSION.scalar_subquery().label("version"), _SLOW.scalar_subquery().label("slow_ms")).where(
    project.c.id == _PROJECT
)
_PERSON = select(annotator).where(annotator.c.id == _WHO).with_for_update()
_ANSWERS = select(item.c.responses).where(item.c.id == bindparam("item"))
_EXTEND = (
    update(slot)
    .where(slot.c.id == bindparam("held_slot"), slot.c.who == _WHO, slot.c.done == 0)
    .values(lease_until=bindparam("until"))
)
_OTHER = slot.alias("other")
_OPEN = (
    select(slot.c.id)
    .join(item, item.c.id == slot.c.item_id)
    .where(slot.c.project_id == _PROJECT, slot.c.pool == bindparam("in_pool"), slot.c.done == 0, *OFFERED)
    .where(~exists().where(_OTHER.c.item_id == slot.c.item_id, _OTHER.c.who == _WHO))
    .where(~exists().where(judgment_event.c.item_id == slot.c.item_id, judgment_event.c.annotator_id == _WHO))
)
"""Slots of a pool that are not done, on items that the annotator neither holds nor has ever judged or skipped."""
_FREE = (
    _OPEN.where(or_(slot.c.who.is_(None), slot.c.lease_until < _NOW))
    .order_by(slot.c.priority, slot.c.id)
    .limit(1)
    .with_for_update(skip_locked=True, of=slot)  # SQLite needs and knows no such clause
)
_TAKE = (
    update(slot)
    .where(slot.c.id == _FREE.scalar_subquery())
    .values(who=_WHO, lease_until=bindparam("until"))
    .returning(slot.c.id, slot.c.item_id)
)
_ASSIGN = insert(assignment).returning(assignment.c.id)


@dataclass(frozen=True)
class Handed:
    """An assignment in hand."""

    assignment: int
    lease_seconds: float


@dataclass(frozen=True)
class Nothing:
    """No item now: all `done`, the project `paused`, `wait` (others hold what is left, or more will come), or
    `unqualified`: the qualification test was not passed."""

    reason: str


def next_task(c: Connection, project_id: int, who: int, ahead: int = 0, now: float | None = None) -> Handed | Nothing:
    """The annotator's live assignment (`ahead` = 1: the one after it), or a fresh one. Runs in a write transaction.

    What a person already holds comes first, so that a reload, a second tab or a restart shows the same item.
    """
    now = time.time() if now is None else now
    one = c.execute(_ASKED, {"project": project_id}).mappings().one()
    person = lock_annotator(c, who)
    if one["status"] != "open":
        return Nothing("paused" if one["status"] == "paused" else "done")
    lease = _lease(one["slow_ms"])
    place = min(ahead, FURTHEST)
    held = live(c, project_id, who, now)
    if len(held) > place:
        if _extend(c, held[place]["slot_id"], who, now + lease):
            return Handed(held[place]["id"], lease)
        del held[place:]  # an expired lease that someone else took at this moment
    test = standing_before_work(c, one, person) if len(held) <= place else None
    if test is not None and held:
        return Nothing("wait")  # nothing ahead: whether the test goes on is known after this one
    while len(held) <= place:
        taken = _take_one(c, one, person, now, now + lease, test=test)
        if taken is None:
            return Nothing(_why_nothing(c, one, person, now) if test is None else "unqualified")
        held.append(taken)
    return Handed(held[place]["id"], lease)


def lock_annotator(c: Connection, who: int) -> RowMapping:
    """The annotator's row; what one person does in two tabs takes turns. On SQLite the transaction itself is the lock."""
    return c.execute(_PERSON, {"annotator": who}).mappings().one()


def live(c: Connection, project_id: int, who: int, now: float) -> list[Any]:
    """The assignments that the annotator holds and has not judged, oldest first; an expired lease that nobody took counts."""
    return list(c.execute(_HELD, {"annotator": who, "project": project_id, "now": now}).mappings())


def heartbeat(c: Connection, assignment_id: int, who: int, now: float | None = None) -> bool:
    """Extend the lease of an assignment; False where it was lost to someone else (work on it is still kept)."""
    now = time.time() if now is None else now
    found = c.execute(select(assignment).where(assignment.c.id == assignment_id)).mappings().one()
    return _extend(c, found["slot_id"], who, now + lease_seconds(c, found["project_id"]))


def _extend(c: Connection, slot_id: int, who: int, until: float) -> bool:
    return c.execute(_EXTEND, {"held_slot": slot_id, "annotator": who, "until": until}).rowcount == 1


def lease_seconds(c: Connection, project_id: int) -> float:
    """Three times the 90th percentile of the last 200 judgments' active time, at least ten minutes."""
    return _lease(c.execute(_SLOW, {"project": project_id}).scalar_one_or_none())


def _lease(slow_ms: int | None) -> float:
    return min(max(SHORTEST_LEASE, 3 * (slow_ms or 0) / 1000), LONGEST_LEASE)


def _take_one(
    c: Connection, one: RowMapping, person: RowMapping, now: float, until: float, *, test: Qualification | None
) -> Any:
    """Lease a slot and write the assignment: the qualification test where there is one to pass, a check item or a repeat
    where it is time for one, then what is open."""
    turn = turns(c, one["id"], person["id"])
    taken, order = None, None
    if test is not None:
        unseen = unseen_check(one["id"], person["id"], now)
        taken = None if test.failed else extra(c, one, person["id"], "qualify", unseen, until=until)
    elif falls_on(one["seed"], "check", person["id"], turn, one["check_share"]):
        taken = extra(c, one, person["id"], "check", unseen_check(one["id"], person["id"], now), until=until)
    elif falls_on(one["seed"], "repeat", person["id"], turn, one["repeat_share"]):
        taken, order = repeat(c, one, person["id"], now, until)
    pools = ("any",) if person["role"] == "labeller" else ("expert", "any")
    for pool in pools if test is None else ():
        taken = taken or _take(c, one["id"], person["id"], pool, now=now, until=until)
    if taken is None:
        return None
    slot_id, item_id = taken
    if order is None:
        size = len(c.execute(_ANSWERS, {"item": item_id}).scalar_one())
        order = permutation(one["seed"], person["id"], size, turn)
    row = {"slot_id": slot_id, "item_id": item_id, "project_id": one["id"], "annotator_id": person["id"]}
    row |= {"permutation": order, "turn": turn, "handed_at": now, "instructions_version": one["version"] or 0}
    made = c.execute(_ASSIGN, row).scalar_one()
    return {"id": made, "slot_id": slot_id}


def turns(c: Connection, project_id: int, who: int) -> int:
    """How many assignments the annotator was handed in the project."""
    return c.execute(_TURNS, {"project": project_id, "annotator": who}).scalar_one()


def instructions_version(c: Connection, project_id: int) -> int:
    """The newest version of the instructions; 0 where there are none."""
    return c.execute(_VERSION, {"project": project_id}).scalar_one() or 0


def _take(c: Connection, project_id: int, who: int, pool: str, *, now: float, until: float) -> tuple[int, int] | None:
    """Lease the first slot that is free or whose lease has run out; two servers never take the same one."""
    given = {"project": project_id, "annotator": who, "in_pool": pool, "now": now, "until": until}
    row = c.execute(_TAKE, given).first()
    return None if row is None else (row.id, row.item_id)


def _why_nothing(c: Connection, one: RowMapping, person: RowMapping, now: float) -> str:
    if one["options"].get("live"):
        return "wait"
    pools = ("any",) if person["role"] == "labeller" else ("any", "expert")
    given = {"project": one["id"], "annotator": person["id"], "now": now}
    left = (c.execute(_OPEN.limit(1), given | {"in_pool": pool}).first() for pool in pools)
    return "wait" if any(left) else "done"
