"""What a page is told of an assignment: blind, in the order that was drawn for it, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, func, select

from tutelage.feedback.markdown import render
from tutelage.feedback.payloads import DEFAULTS, EVERYWHERE
from tutelage.feedback.qualification import standing_of
from tutelage.feedback.queue import Handed, Nothing
from tutelage.feedback.schema import (
    assignment,
    draft,
    instructions,
    item,
    judgment_current,
    judgment_event,
    project,
    prompt,
    response,
    slot,
)

MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".mp4": "video/mp4",
    ".webm": "video/webm",
}


def show(
    c: Connection, project_id: int, who: int, handed: Handed | Nothing, counted: Counted | None = None
) -> dict[str, Any]:
    """The JSON of `/api/task/next`. No response id, author, policy, score or file name is in it."""
    counts = slot_counts(c, project_id) if counted is None else counted.of(c, project_id)
    progress = own_progress(c, project_id, who, counts)
    if isinstance(handed, Nothing):
        return {"assignment": None, "reason": handed.reason, "progress": progress}
    one = c.execute(_SHOWN, {"assignment": handed.assignment}).mappings().one()
    answers = _shown(c, one["responses"], one["permutation"])
    url = f"/api/task/{handed.assignment}/media"
    common = [{"url": f"{url}/item/{i}", "type": m["type"]} for i, m in enumerate(one["media"])]
    shown = [
        _answer(answer["text"])
        | {"media": [{"url": f"{url}/{n}/{i}", "type": m["type"]} for i, m in enumerate(answer["media"])]}
        for n, answer in enumerate(answers)
    ]
    body = {
        "kind": one["kind"],
        "prompt": [{"role": m["role"], "content": m["content"], "html": render(m["content"])} for m in one["messages"]],
        "responses": shown,
        "media": common,
        "options": EVERYWHERE | DEFAULTS[one["kind"]] | one["shared"] | one["options"],
    }
    return {
        "assignment": handed.assignment,
        "item": body,
        "lease_seconds": handed.lease_seconds,
        "instructions_version": one["version"] or 0,
        "progress": progress,
        "draft": one["draft"],
        "test": standing_of(c, project_id, who, one["shared"]).shown if one["pool"] == "qualify" else None,
    }


_VERSION = select(func.max(instructions.c.version)).where(instructions.c.project_id == assignment.c.project_id)
_SHOWN = (
    select(item.c.kind, item.c.responses, item.c.options, item.c.media, assignment.c.permutation)
    .add_columns(prompt.c.messages, project.c.options.label("shared"), project.c.media_root)
    .add_columns(draft.c.payload.label("draft"), _VERSION.scalar_subquery().label("version"), slot.c.pool)
    .join_from(assignment, item, item.c.id == assignment.c.item_id)
    .join(prompt, prompt.c.id == item.c.prompt_id)
    .join(project, project.c.id == item.c.project_id)
    .join(slot, slot.c.id == assignment.c.slot_id)
    .outerjoin(draft, draft.c.assignment_id == assignment.c.id)
    .where(assignment.c.id == bindparam("assignment"))
)
"""All of an assignment but the texts of its responses."""
_RESPONSES = select(response.c.id, response.c.text, response.c.media).where(
    response.c.id.in_(bindparam("ids", expanding=True))
)


def _shown(c: Connection, ids: list[int], order: list[int]) -> list[RowMapping]:
    """The responses as they stand on the screen."""
    rows = {row["id"]: row for row in c.execute(_RESPONSES, {"ids": ids}).mappings()}
    return [rows[ids[index]] for index in order]


def _answer(text: str) -> dict[str, Any]:
    return {"text": text, "html": render(text)}


_PROJECT, _WHO = bindparam("project"), bindparam("annotator")
_OWN = select(func.count()).where(
    judgment_current.c.annotator_id == _WHO,
    judgment_current.c.project_id == _PROJECT,
    judgment_current.c.kind == "judgment",
)
_RECENT = (
    select(judgment_event.c.active_ms)
    .where(judgment_event.c.annotator_id == _WHO, judgment_event.c.project_id == _PROJECT)
    .where(judgment_event.c.kind == "judgment")
    .order_by(judgment_event.c.seq.desc())
    .limit(50)
    .cte("recent")
)
_MEDIAN = (
    select(_RECENT.c.active_ms)
    .order_by(_RECENT.c.active_ms)
    .limit(1)
    .offset(select(func.count() // 2).select_from(_RECENT).scalar_subquery())
)
_MINE = select(_OWN.scalar_subquery().label("mine"), _MEDIAN.scalar_subquery().label("median_ms"))
_WANTED = (
    select(slot.c.done, func.count())
    .where(slot.c.project_id == _PROJECT, slot.c.pool.in_(("any", "expert")))
    .group_by(slot.c.done)
)


class Counted:
    """How far each project is. Counting a large one takes milliseconds, so there the figure may be a second old."""

    def __init__(self, large: int = 5000, seconds: float = 1.0) -> None:
        self.large, self.seconds = large, seconds
        self._known: dict[int, tuple[float, dict[int, int]]] = {}

    def of(self, c: Connection, project_id: int, now: float | None = None) -> dict[int, int]:
        """See `slot_counts`."""
        now = time.monotonic() if now is None else now
        at, counts = self._known.get(project_id, (-self.seconds, {}))
        if now - at >= self.seconds or sum(counts.values()) < self.large:
            counts = slot_counts(c, project_id)
            self._known[project_id] = now, counts
        return counts


def own_progress(c: Connection, project_id: int, who: int, counts: Mapping[int, int]) -> dict[str, Any]:
    """Judgments done and wanted in the whole project, the annotator's own, and the annotator's median time in ms."""
    given = {"annotator": who, "project": project_id}
    return {"done": counts.get(1, 0), "total": sum(counts.values())} | dict(c.execute(_MINE, given).mappings().one())


def slot_counts(c: Connection, project_id: int) -> dict[int, int]:
    """Judgments wanted: {0: open, 1: done}; check items and repeats are extra and do not count."""
    return {done: count for done, count in c.execute(_WANTED, {"project": project_id})}  # noqa: C416  (typed)


def media_file(c: Connection, assignment_id: int, place: str, number: int) -> tuple[Path, str] | None:
    """The file of `/api/task/ID/media/PLACE/NUMBER` and its type; PLACE is `item` or a place on the screen."""
    one = c.execute(_SHOWN, {"assignment": assignment_id}).mappings().one()
    if place == "item":
        media = one["media"]
    elif place.isdecimal() and int(place) < len(one["responses"]):
        media = _shown(c, one["responses"], one["permutation"])[int(place)]["media"]
    else:
        return None
    if one["media_root"] is None or not 0 <= number < len(media):
        return None
    path = safe_path(Path(one["media_root"]), media[number]["path"])
    return None if path is None else (path, media[number]["type"])


def safe_path(root: Path, name: str) -> Path | None:
    """A media file below `root`, or None where the name leads elsewhere, is of another kind or does not exist."""
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()) or path.suffix.lower() not in MEDIA_TYPES or not path.is_file():
        return None
    return path
