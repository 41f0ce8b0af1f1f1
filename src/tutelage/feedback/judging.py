"""Judgments: submitted, skipped, taken back. Events are only added, each once however often it is sent."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, and_, bindparam, delete, exists, insert, or_, select, update

from tutelage.feedback.database import lock_events
from tutelage.feedback.payloads import DEFAULTS, check
from tutelage.feedback.queue import Handed, lease_seconds, lock_annotator
from tutelage.feedback.schema import (
    annotator,
    assignment,
    draft,
    flag,
    item,
    judgment_current,
    judgment_event,
    project,
    response,
    slot,
)


@dataclass(frozen=True)
class Measured:
    """How a judgment was made, as the page measured it."""

    view: str = "rendered"
    active_ms: int = 0
    visible_ms: int = 0
    keys: int = 0
    clicks: int = 0
    instructions_version: int = 0


@dataclass(frozen=True)
class Accepted:
    """A stored event; `late`: its lease was lost and the item had all the judgments it asked for."""

    seq: int
    late: bool
    project: int
    tested: bool = False
    """It was part of a qualification test: the person is told the right answer now."""
    repeated: bool = False


class KeyConflictError(ValueError):
    """An idempotency key that already names another judgment."""


def submit(
    c: Connection, assignment_id: int, who: int, key: str, payload: Any, *, measured: Measured, now: float | None = None
) -> Accepted:
    """Store a judgment (or a skip). Runs in a write transaction; the same key again changes nothing and says the same.

    Work is never refused because it is late: it fills a slot of its item where one is free and is kept as surplus where
    none is. A second judgment of the same item by the same person supersedes the first, which stays. Raises ValueError
    for a payload that the task does not allow, KeyConflictError for a key that names another assignment.
    """
    now = time.time() if now is None else now
    lock_annotator(c, who)
    before = c.execute(_KNOWN, {"key": key}).mappings().one_or_none()
    if before is not None:
        if before["annotator_id"] != who or before["assignment_id"] != assignment_id or before["kind"] == "undo":
            raise KeyConflictError(f"key: {key!r} names another judgment; allowed: a fresh one")
        tested = before["kind"] == "judgment" and in_test(c, assignment_id)
        return Accepted(before["seq"], bool(before["late"]), before["project_id"], tested, repeated=True)
    work = c.execute(_WORK, {"assignment": assignment_id}).mappings().one()
    assert work["annotator_id"] == who, "the caller checks whose assignment it is"
    payload = checked(c, work, payload)
    kind = "skip" if "skip" in payload else "judgment"
    previous = current(c, work["item_id"], who)
    late = _settle(c, work, who, kind, now)
    row = _event(work, key, kind, now) | {
        "payload": payload,
        "late": int(late),
        "supersedes": previous and previous["seq"],
    }
    row |= vars(measured)
    lock_events(c)
    seq = c.execute(_STORE, row).scalar_one()
    c.execute(_FORGET, {"assignment": assignment_id})
    if payload.get("flag"):
        said = {k: work[k] for k in ("project_id", "item_id", "annotator_id")} | {"assignment_id": work["id"]}
        c.execute(
            insert(flag).values(said | {"at": now, "tags": payload["flag"]["tags"], "note": payload["flag"]["note"]})
        )
    return Accepted(seq, late, work["project_id"], kind == "judgment" and work["pool"] == "qualify")


# The statements of every submission, built once (see queue.py).
_KNOWN = select(judgment_event).where(judgment_event.c.key == bindparam("key"))
_WORK = (
    select(assignment, item.c.kind, item.c.options, item.c.responses, project.c.options.label("shared"), slot.c.pool)
    .join(item, item.c.id == assignment.c.item_id)
    .join(project, project.c.id == item.c.project_id)
    .join(slot, slot.c.id == assignment.c.slot_id)
    .where(assignment.c.id == bindparam("assignment"))
)
_DONE = (
    update(slot)
    .where(slot.c.item_id == bindparam("item"), slot.c.who == bindparam("annotator"))
    .values(done=1, lease_until=None)
)
_STORE = insert(judgment_event).returning(judgment_event.c.seq)
_FORGET = delete(draft).where(draft.c.assignment_id == bindparam("assignment"))
_CURRENT = (
    select(judgment_current)
    .where(judgment_current.c.item_id == bindparam("item"), judgment_current.c.annotator_id == bindparam("annotator"))
    .order_by(judgment_current.c.seq.desc())
    .limit(1)
)


def in_test(c: Connection, assignment_id: int) -> bool:
    """Whether an assignment belongs to a qualification test."""
    of = select(slot.c.pool).join(assignment, assignment.c.slot_id == slot.c.id)
    return c.execute(of.where(assignment.c.id == assignment_id)).scalar_one() == "qualify"


def checked(c: Connection, work: RowMapping, payload: Any) -> dict[str, Any]:
    """The payload as the task of the assignment (a row of `_WORK`) allows it. Raises ValueError."""
    kind, texts = work["kind"], [""] * len(work["responses"])
    if kind == "critique":  # spans point into the text
        texts = [c.execute(select(response.c.text).where(response.c.id == work["responses"][0])).scalar_one()]
    return check(kind, payload, DEFAULTS[kind] | work["shared"] | work["options"], texts)


def current(c: Connection, item_id: int, who: int) -> RowMapping | None:
    """What the annotator last said of an item and did not take back."""
    return c.execute(_CURRENT, {"item": item_id, "annotator": who}).mappings().one_or_none()


def _event(work: RowMapping, key: str, kind: str, now: float) -> dict[str, Any]:
    same = {k: work[k] for k in ("project_id", "item_id", "annotator_id", "permutation")}
    return same | {"assignment_id": work["id"], "key": key, "kind": kind, "at": now}


def _settle(c: Connection, work: RowMapping, who: int, kind: str, now: float) -> bool:
    """Close the slot that this work fills; True where none is left for it. A skip gives the slot back."""
    if kind == "skip":
        mine = and_(slot.c.item_id == work["item_id"], slot.c.who == who)
        c.execute(update(slot).where(mine).values(who=None, lease_until=None, done=0))
        return False
    if c.execute(_DONE, {"item": work["item_id"], "annotator": who}).rowcount:
        return False
    done = {"who": who, "done": 1, "lease_until": None}
    free = _free_slot(c, work["item_id"], who, now)
    return c.execute(update(slot).where(slot.c.id == free.scalar_subquery()).values(done)).rowcount == 0


def _free_slot(c: Connection, item_id: int, who: int, now: float) -> Any:
    role = c.execute(select(annotator.c.role).where(annotator.c.id == who)).scalar_one()
    pools = ["any"] if role == "labeller" else ["expert", "any"]
    free = or_(slot.c.who.is_(None), slot.c.lease_until < now)
    found = select(slot.c.id).where(slot.c.item_id == item_id, slot.c.done == 0, slot.c.pool.in_(pools), free)
    return found.order_by(slot.c.pool.desc(), slot.c.id).limit(1).with_for_update(skip_locked=True)


def undo(c: Connection, project_id: int, who: int, key: str, now: float | None = None) -> Handed | None:
    """Take back the annotator's last judgment or skip in a project: the assignment, reopened, what was said its draft.

    An event is added, none is changed; the same key again reopens the same assignment. None where nothing is left to take
    back, the project is closed, or the right answer was told already (qualification test).
    """
    now = time.time() if now is None else now
    lock_annotator(c, who)
    before = c.execute(_KNOWN, {"key": key}).mappings().one_or_none()
    if before is not None:
        if before["annotator_id"] != who or before["kind"] != "undo":
            raise KeyConflictError(f"key: {key!r} names another judgment; allowed: a fresh one")
        return Handed(before["assignment_id"], lease_seconds(c, project_id))
    if c.execute(select(project.c.status).where(project.c.id == project_id)).scalar_one() == "closed":
        return None
    mine = and_(judgment_current.c.project_id == project_id, judgment_current.c.annotator_id == who)
    last = (
        c.execute(select(judgment_current).where(mine).order_by(judgment_current.c.seq.desc()).limit(1))
        .mappings()
        .first()
    )
    if last is None or (last["kind"] == "judgment" and in_test(c, last["assignment_id"])):
        return None
    work = c.execute(select(assignment).where(assignment.c.id == last["assignment_id"])).mappings().one()
    lease = lease_seconds(c, project_id)
    lock_events(c)
    c.execute(
        insert(judgment_event).values(_event(work, key, "undo", now) | {"payload": {}, "supersedes": last["seq"]})
    )
    _reopen(c, work, who, now, now + lease)
    if last["kind"] == "judgment":
        save_draft(c, work["id"], last["payload"], now)
    return Handed(work["id"], lease)


def _reopen(c: Connection, work: RowMapping, who: int, now: float, until: float) -> None:
    """The slot is the annotator's again: the one that was done, or after a skip the one skipped if it is still free."""
    held = {"who": who, "done": 0, "lease_until": until}
    mine = and_(slot.c.item_id == work["item_id"], slot.c.who == who)
    if c.execute(update(slot).where(mine).values(held)).rowcount:
        return
    taken = slot.alias("taken")
    elsewhere = exists().where(taken.c.item_id == work["item_id"], taken.c.who == who)
    free = and_(slot.c.id == work["slot_id"], slot.c.done == 0, or_(slot.c.who.is_(None), slot.c.lease_until < now))
    c.execute(update(slot).where(free, ~elsewhere).values(held))


def save_draft(c: Connection, assignment_id: int, payload: Any, now: float | None = None) -> None:
    """Keep what was written so far; a finished judgment removes it."""
    now = time.time() if now is None else now
    values = {"payload": payload, "at": now}
    if c.execute(update(draft).where(draft.c.assignment_id == assignment_id).values(values)).rowcount == 0:
        c.execute(insert(draft).values(values | {"assignment_id": assignment_id}))
