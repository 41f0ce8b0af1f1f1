"""Projects: made, fed with items, paused and closed; every item says how many judgments it needs, one slot each."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import Connection, RowMapping, Table, func, insert, select, update

from tutelage.feedback.items import NewItem, NewResponse, check_item
from tutelage.feedback.payloads import DEFAULTS, EVERYWHERE, TASKS, Task
from tutelage.feedback.queue import instructions_version
from tutelage.feedback.schema import audit, instructions, item, project, prompt, response, slot
from tutelage.records import Prompt, conversation_hash

STATUSES = ("open", "paused", "closed")


@dataclass(frozen=True)
class Project:
    """What a project asks of its annotators."""

    name: str
    task: Task
    overlap: int = 1
    """Judgments of each item."""
    expert_share: float = 0.0
    """Share of the items that an expert (researcher or admin) judges besides."""
    check_share: float = 0.05
    """Share of what a person is handed that has a known answer, while there are check items."""
    repeat_share: float = 0.0
    """Share that the same person has judged before, shown in the reverse order."""
    options: dict[str, Any] = field(default_factory=dict)
    media_root: str | None = None


def create_project(c: Connection, new: Project, now: float | None = None) -> int:
    """The id of a new project. ValueError for a name that is taken and for values outside their range."""
    if not new.name.strip() or len(new.name) > 200:
        raise ValueError(f"project name: {new.name!r}; allowed: 1 to 200 characters")
    if new.task not in TASKS:
        raise ValueError(f"task: {new.task!r}; allowed: {', '.join(TASKS)}")
    if not 1 <= new.overlap <= 100:
        raise ValueError(f"overlap: {new.overlap}; allowed: 1 to 100 judgments of each item")
    for name in ("expert_share", "check_share", "repeat_share"):
        if not 0 <= getattr(new, name) <= (1 if name == "expert_share" else 0.5):
            raise ValueError(f"{name}: {getattr(new, name)}; allowed: 0 to {1 if name == 'expert_share' else 0.5}")
    check_options(new.task, new.options)
    if find_project(c, new.name) is not None:
        raise ValueError(f"project name: {new.name!r} is taken")
    row = asdict(new) | {"seed": secrets.token_hex(16), "created_at": time.time() if now is None else now}
    return c.execute(insert(project).values(row).returning(project.c.id)).scalar_one()


def check_options(task: Task, options: dict[str, Any]) -> None:
    """Raises ValueError for an option that the task does not have, and for a scale that is none."""
    known = {**EVERYWHERE, **DEFAULTS[task], "live": False, "qualify": 0, "qualify_threshold": 0.65}
    for key, value in options.items():
        if key not in known or not isinstance(value, type(known[key])):
            names = ", ".join(f"{name} ({type(known[name]).__name__})" for name in known)
            raise ValueError(f"options.{key}: {value!r}; allowed for {task}: {names}")
    if not 0 <= options.get("qualify", 0) <= 1000 or not 0.5 <= options.get("qualify_threshold", 0.65) < 1:
        got = f"{options.get('qualify', 0)} and {options.get('qualify_threshold', 0.65)}"
        raise ValueError(f"options.qualify, qualify_threshold: {got}; allowed: 0 to 1000 answers, 0.5 to below 1")
    scale = options.get("scale", [0, 1])
    if not (len(scale) == 2 and all(type(end) is int for end in scale) and 0 < scale[1] - scale[0] <= 100):
        raise ValueError(f"options.scale: {scale!r}; allowed: [lowest, highest], whole numbers at most 100 apart")
    if "scale" in options and "anchors" in options and len(options["anchors"]) not in (0, scale[1] - scale[0] + 1):
        raise ValueError(
            f"options.anchors: {len(options['anchors'])}; allowed: one for each number of the scale {scale}, or none"
        )


def find_project(c: Connection, name: str) -> RowMapping | None:
    """A project by its name."""
    return c.execute(select(project).where(project.c.name == name)).mappings().one_or_none()


def set_status(c: Connection, project_id: int, status: str, by: int | None, now: float | None = None) -> None:
    """Open, pause or close a project (logged). Work in hand is kept whenever it is sent."""
    if status not in STATUSES:
        raise ValueError(f"state: {status!r}; allowed: {', '.join(STATUSES)}")
    c.execute(update(project).where(project.c.id == project_id).values(status=status))
    log(c, by, "project state", {"project": project_id, "state": status}, now)


def set_instructions(c: Connection, project_id: int, text: str, by: int | None, now: float | None = None) -> int:
    """The version number of the instructions; the same text again makes no new version."""
    last = instructions_version(c, project_id)
    mine = (instructions.c.project_id == project_id, instructions.c.version == last)
    if last and c.execute(select(instructions.c.text).where(*mine)).scalar_one() == text:
        return last
    if "\x00" in text or len(text) > 200_000:
        raise ValueError("instructions: too long or with a NUL character; allowed: 200,000 characters of text")
    now = time.time() if now is None else now
    c.execute(insert(instructions).values(project_id=project_id, version=last + 1, text=text, at=now))
    log(c, by, "instructions", {"project": project_id, "version": last + 1}, now)
    return last + 1


def log(c: Connection, by: int | None, action: str, detail: dict[str, Any], now: float | None = None) -> None:
    """Write down who changed what (None: whoever runs the program)."""
    at = time.time() if now is None else now
    c.execute(insert(audit).values(at=at, annotator_id=by, action=action, detail=detail))


def add_items(c: Connection, project_id: int, items: Iterable[NewItem], now: float | None = None) -> dict[str, int]:
    """Add items and their slots: {client key: item id} of all given ones, those that were there already included.

    Raises ValueError (nothing is added then) for the wrong number of responses, equal responses and a NUL character.
    """
    now = time.time() if now is None else now
    one = c.execute(select(project).where(project.c.id == project_id)).mappings().one()
    known = dict(c.execute(select(item.c.client_key, item.c.id).where(item.c.project_id == project_id)).all())
    given = {new.client_key: new for new in items}
    fresh = [new for key, new in given.items() if key not in known]
    for new in fresh:
        check_item(one["task"], new, one["options"])
    if fresh:
        prompts = _add_prompts(c, project_id, [new.prompt for new in fresh])
        answers = [(prompts[i], answer) for i, new in enumerate(fresh) for answer in new.responses]
        rows = [_response_row(prompt_id, answer) for prompt_id, answer in answers]
        made = iter(_insert(c, response, rows))
        item_rows = [
            _item_row(one, new, prompts[i], [next(made) for _ in new.responses], now) for i, new in enumerate(fresh)
        ]
        ids = _insert(c, item, item_rows)
        known |= {new.client_key: made_id for new, made_id in zip(fresh, ids, strict=True)}
        slots = _slots(c, one, fresh, ids)
        if slots:
            c.execute(insert(slot), slots)
    return {key: known[key] for key in given}


def _insert(c: Connection, into: Table, rows: Sequence[dict[str, Any]]) -> list[int]:
    """Ids of many new rows, in their order."""
    if not rows:
        return []
    return list(c.execute(insert(into).returning(into.c.id, sort_by_parameter_order=True), rows).scalars())


def _add_prompts(c: Connection, project_id: int, prompts: Sequence[Prompt]) -> list[int]:
    """The row of each prompt; equal prompts of the same id share one."""
    query = select(prompt.c.root, prompt.c.key, prompt.c.id).where(prompt.c.project_id == project_id)
    known = {(row.root, row.key): row.id for row in c.execute(query)}
    names = [(conversation_hash(p.messages), p.key) for p in prompts]
    fresh = {name: p for name, p in zip(names, prompts, strict=True) if name not in known}
    rows = [
        {
            "project_id": project_id,
            "root": root,
            "key": key,
            "category": p.category,
            "messages": [{"role": m.role, "content": m.content} for m in p.messages],
        }
        for (root, key), p in fresh.items()
    ]
    known |= dict(zip(fresh, _insert(c, prompt, rows), strict=True))
    return [known[name] for name in names]


def _response_row(prompt_id: int, new: NewResponse) -> dict[str, Any]:
    row = {"prompt_id": prompt_id, "text": new.text, "origin": new.origin, "media": list(new.media)}
    return row | {"length": len(new.text)}


def _item_row(one: RowMapping, new: NewItem, prompt_id: int, responses: list[int], now: float) -> dict[str, Any]:
    same = {
        key: getattr(new, key)
        for key in ("client_key", "check_answer", "explanation", "options", "priority", "policy_step", "expires_at")
    }
    row = {"project_id": one["id"], "kind": one["task"], "prompt_id": prompt_id, "responses": responses}
    return same | row | {"media": list(new.media), "created_at": now}


def _slots(c: Connection, one: RowMapping, items: Sequence[NewItem], ids: Sequence[int]) -> list[dict[str, Any]]:
    """`overlap` slots an item, and one for an expert on every (1 / expert_share)-th; check items have theirs on demand."""
    share = one["expert_share"]
    is_any = (slot.c.project_id == one["id"], slot.c.pool == "any", slot.c.k == 0)
    count = c.execute(select(func.count()).select_from(slot).where(*is_any)).scalar_one()
    rows = []
    for new, item_id in zip(items, ids, strict=True):
        if new.check_answer is not None:
            continue
        row = {"project_id": one["id"], "item_id": item_id, "priority": new.priority}
        rows += [row | {"k": k, "pool": "any"} for k in range(one["overlap"])]
        if int((count + 1) * share + 0.5) > int(count * share + 0.5):
            rows.append(row | {"k": 0, "pool": "expert"})
        count += 1
    return rows
