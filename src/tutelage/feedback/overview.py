"""What the pages say of projects and people: progress, pace and time per person, invites, flags."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from statistics import median
from typing import Any

from sqlalchemy import Connection, RowMapping, and_, func, select

from tutelage.feedback.queue import instructions_version
from tutelage.feedback.schema import annotator, api_token, flag, invite, item, judgment_current, member, project
from tutelage.feedback.tasks import slot_counts


def when(at: float | None) -> str:
    """A time as people read it, UTC."""
    return "" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


def summary(c: Connection, one: RowMapping, who: int | None = None) -> dict[str, Any]:
    """A project with its counts; `mine`: what `who` judged of it."""
    counts = slot_counts(c, one["id"])
    judged = and_(judgment_current.c.project_id == one["id"], judgment_current.c.kind == "judgment")
    people = select(func.count(judgment_current.c.annotator_id.distinct())).where(judged)
    mine = (
        select(func.count()).select_from(judgment_current).where(judged, judgment_current.c.annotator_id == (who or 0))
    )
    items = select(func.count()).select_from(item).where(item.c.project_id == one["id"], item.c.repeat_of.is_(None))
    return {
        "id": one["id"],
        "name": one["name"],
        "kind": one["task"],
        "state": one["status"],
        "overlap": one["overlap"],
        "done": counts.get(1, 0),
        "total": sum(counts.values()),
        "items": c.execute(items).scalar_one(),
        "annotators": c.execute(people).scalar_one(),
        "mine": c.execute(mine).scalar_one(),
        "instructions_version": instructions_version(c, one["id"]) or None,
    }


def project_row(c: Connection, project_id: int) -> RowMapping:
    """A project."""
    return c.execute(select(project).where(project.c.id == project_id)).mappings().one()


def people(c: Connection, project_ids: list[int]) -> list[dict[str, Any]]:
    """Everybody who belongs to one of the projects or judged in it, with judgments and active time there, in seconds."""
    e = judgment_current.c
    times: dict[int, list[float]] = defaultdict(list)
    last: dict[int, float] = {}
    query = select(e.annotator_id, e.kind, e.active_ms, e.at).where(e.project_id.in_(project_ids))
    for row in c.execute(query):
        last[row.annotator_id] = max(row.at, last.get(row.annotator_id, 0.0))
        if row.kind == "judgment":
            times[row.annotator_id].append(row.active_ms / 1000)
    of = select(member.c.annotator_id).where(member.c.project_id.in_(project_ids))
    wanted = set(c.execute(of).scalars()) | set(last)
    rows = c.execute(select(annotator).where(annotator.c.id.in_(wanted)).order_by(annotator.c.id)).mappings()
    return [_person(row, times[row["id"]], last.get(row["id"])) for row in rows]


def _person(row: RowMapping, times: list[float], last: float | None) -> dict[str, Any]:
    return {
        "id": row["id"],
        "name": row["name"],
        "role": row["role"],
        "held_out": bool(row["held_out"]),
        "erased": row["status"] == "erased",
        "judged": len(times),
        "active_seconds": sum(times),
        "median_seconds": median(times) if times else None,
        "last_at": when(last),
    }


def invites(c: Connection, project_id: int, now: float) -> list[dict[str, Any]]:
    """The invite links of a project that still work."""
    good = (invite.c.project_id == project_id, invite.c.expires_at > now, invite.c.uses_left > 0)
    joined = c.execute(select(invite).where(*good).order_by(invite.c.id)).mappings()
    return [
        {
            "id": row["id"],
            "role": row["role"],
            "held_out": bool(row["held_out"]),
            "uses": row["uses"] - row["uses_left"],
            "max_uses": row["uses"],
            "expires_at": when(row["expires_at"]),
        }
        for row in joined
    ]


def tokens(c: Connection) -> list[dict[str, Any]]:
    """The API tokens that work."""
    query = select(api_token, project.c.name.label("of")).outerjoin(project, project.c.id == api_token.c.project_id)
    rows = c.execute(query.where(api_token.c.revoked_at.is_(None)).order_by(api_token.c.id)).mappings()
    return [
        {
            "id": row["id"],
            "name": row["name"],
            "scopes": ", ".join(row["scopes"]),
            "project": row["of"] or "every project",
            "at": when(row["created_at"]),
        }
        for row in rows
    ]


def flags(c: Connection, project_id: int, limit: int = 100) -> list[dict[str, Any]]:
    """The newest flags of a project."""
    query = select(flag, annotator.c.name).join(annotator, annotator.c.id == flag.c.annotator_id)
    rows = c.execute(query.where(flag.c.project_id == project_id).order_by(flag.c.id.desc()).limit(limit)).mappings()
    return [
        {"at": when(r["at"]), "name": r["name"], "item": r["item_id"], "tags": r["tags"], "note": r["note"]}
        for r in rows
    ]
