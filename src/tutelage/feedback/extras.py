"""What a person is handed beyond the overlap, each in a slot of their own: check items and repeats."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, RowMapping, Select, bindparam, exists, insert, or_, select

from tutelage.feedback.schema import assignment, item, judgment_event, slot

OFFERED = (item.c.withdrawn == 0, or_(item.c.expires_at.is_(None), item.c.expires_at > bindparam("now")))
"""Items that are handed out at the time `now`."""


def unseen_check(project_id: int, who: int, now: float) -> Select[Any]:
    """The first check item that the annotator was never handed."""
    seen = exists().where(assignment.c.item_id == item.c.id, assignment.c.annotator_id == who)
    fits = (item.c.project_id == project_id, item.c.check_answer.is_not(None), ~seen, *OFFERED)
    return select(item.c.id).where(*fits).order_by(item.c.priority, item.c.id).limit(1).params(now=now)


def extra(
    c: Connection, one: RowMapping, who: int, pool: str, item_query: Select[Any], *, until: float
) -> tuple[int, int] | None:
    """A slot of the annotator's own, beyond the overlap: everybody may judge every check item."""
    found = c.execute(item_query).scalar_one_or_none()
    if found is None:
        return None
    row = {"project_id": one["id"], "item_id": found, "k": who, "pool": pool, "who": who, "lease_until": until}
    return c.execute(insert(slot).values(row).returning(slot.c.id)).scalar_one(), found


def repeat(
    c: Connection, one: RowMapping, who: int, now: float, until: float
) -> tuple[tuple[int, int] | None, list[int] | None]:
    """A copy of an item that the annotator judged at least ten judgments ago, shown in the reverse order."""
    copies = item.alias("copies")
    repeated = exists().where(
        copies.c.repeat_of == judgment_event.c.item_id, slot.c.item_id == copies.c.id, slot.c.who == who
    )
    mine = (judgment_event.c.project_id == one["id"], judgment_event.c.annotator_id == who)
    judged = (
        select(judgment_event.c.item_id, judgment_event.c.permutation)
        .join(item, item.c.id == judgment_event.c.item_id)
        .where(*mine, judgment_event.c.kind == "judgment", item.c.repeat_of.is_(None), ~repeated, *OFFERED)
        .where(item.c.check_answer.is_(None))
        .order_by(judgment_event.c.seq.desc())
        .limit(1)
        .offset(10)
    )
    found = c.execute(judged, {"now": now}).first()
    if found is None or len(found.permutation) < 2:
        return None, None
    old = c.execute(select(item).where(item.c.id == found.item_id)).mappings().one()
    row = {k: v for k, v in old.items() if k != "id"} | {"repeat_of": old["id"], "created_at": now}
    row["client_key"] = f"repeat/{old['id']}/{who}"
    made = c.execute(insert(item).values(row).returning(item.c.id)).scalar_one()
    leased = extra(c, one, who, "repeat", select(item.c.id).where(item.c.id == made), until=until)
    return leased, list(reversed(found.permutation))
