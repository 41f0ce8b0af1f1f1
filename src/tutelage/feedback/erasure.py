"""Erasing a person: what identifies them and what they wrote goes, their choices stay under a number; it is logged."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Connection, delete, select, update

from tutelage.feedback.projects import log
from tutelage.feedback.queue import lock_annotator
from tutelage.feedback.schema import annotator, assignment, draft, entry, flag, judgment_event, session, slot

FREE_TEXT = ("text", "rewrite", "note", "quote", "skip")
"""What people wrote themselves; an erasure removes it from their judgments."""


def erase(c: Connection, who: int, by: int | None, now: float | None = None) -> int:
    """Remove what identifies a person: name, links, sessions, drafts, notes and every text they wrote; returns how many
    judgments were redacted. Choices stay under a number without a name. It is logged and cannot be taken back."""
    now = time.time() if now is None else now
    lock_annotator(c, who)
    for table in (session, entry):
        c.execute(delete(table).where(table.c.annotator_id == who))
    mine = select(assignment.c.id).where(assignment.c.annotator_id == who)
    c.execute(delete(draft).where(draft.c.assignment_id.in_(mine)))
    c.execute(update(flag).where(flag.c.annotator_id == who).values(note=""))
    c.execute(update(slot).where(slot.c.who == who, slot.c.done == 0).values(who=None, lease_until=None))
    events = c.execute(
        select(judgment_event.c.seq, judgment_event.c.payload).where(judgment_event.c.annotator_id == who)
    ).all()
    for row in events:
        c.execute(
            update(judgment_event)
            .where(judgment_event.c.seq == row.seq)
            .values(payload=redact(row.payload), redacted=1)
        )
    c.execute(update(annotator).where(annotator.c.id == who).values(name=f"erased {who}", status="erased"))
    log(c, by, "erase annotator", {"annotator": who, "judgments": len(events)}, now)
    return len(events)


def redact(payload: Any) -> Any:
    """A payload without what a person wrote; choices, numbers and tags stay."""
    if isinstance(payload, dict):
        return {k: "" if k in FREE_TEXT and isinstance(v, str) else redact(v) for k, v in payload.items()}
    return [redact(v) for v in payload] if isinstance(payload, list) else payload
