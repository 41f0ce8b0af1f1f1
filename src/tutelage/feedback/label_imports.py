"""Imported judgments -> a project of the annotation database: the same tables, so that reports and exports just work."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, and_, insert, select, update

from tutelage.feedback.database import lock_events
from tutelage.feedback.imports import Imported
from tutelage.feedback.items import NewItem, NewResponse
from tutelage.feedback.payloads import DEFAULTS, Task, check
from tutelage.feedback.people import add_person, clean_name
from tutelage.feedback.projects import Project, add_items, create_project, log
from tutelage.feedback.schema import assignment, item, judgment_event, project, slot

UNKNOWN_ORDER = "imported without order"
KNOWN_ORDER = "imported"
"""The `view` of an imported judgment: whether the order on the screen is known."""


def import_labels(c: Connection, name: str, imported: Sequence[Imported], source: str) -> int:
    """A new, closed project with these judgments; returns its id. Several of one person on one item: the last one counts.

    Raises ValueError for no judgments, for several tasks at once, a taken name and a payload that the task does not allow.
    """
    kinds: list[Task] = sorted({one.kind for one in imported})
    if len(kinds) != 1:
        raise ValueError(
            f"{source}: judgments of {', '.join(kinds) or 'no task'}; allowed: one task a project (--task)"
        )
    items = {_key(one): _new_item(one) for one in imported}
    last = {(_key(one), one.annotator): one for one in imported}
    most = max(Counter(key for key, _ in last).values())
    options = _options(imported)
    project_id = create_project(c, Project(name, kinds[0], overlap=most, check_share=0.0, options=options))
    ids = add_items(c, project_id, items.values())
    people = {
        who: add_person(c, clean_name(who or "imported"), "labeller")
        for who in dict.fromkeys(o.annotator for o in imported)
    }
    lock_events(c)
    for number, ((key, who), one) in enumerate(last.items()):
        payload = check(one.kind, one.payload, DEFAULTS[one.kind] | options, [a.text for a in one.answers])
        _judge(c, project_id, ids[key], people[who], one, payload=payload, turn=number)
    _close(c, project_id)
    log(c, None, "import labels", {"project": project_id, "source": source, "judgments": len(last)})
    return project_id


def _key(one: Imported) -> str:
    text = json.dumps(
        [[[m.role, m.content] for m in one.prompt.messages], one.prompt.id, [a.text for a in one.answers]]
    )
    return "import/" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _new_item(one: Imported) -> NewItem:
    answers = tuple(NewResponse(a.text, {"author": a.author} if a.author else {}) for a in one.answers)
    return NewItem(one.prompt, answers, _key(one))


def _options(imported: Sequence[Imported]) -> dict[str, Any]:
    """A scale that holds all imported ratings: 1 to 5, 7, 10 or 100, or from what was given."""
    if imported[0].kind != "rating":
        return {}
    values = [one.payload["value"] for one in imported]
    low = min(1, *values)
    high = next((top for top in (5, 7, 10, 100) if max(values) <= top), max(values))
    return {"scale": [low, high], "anchors": []}


def _judge(
    c: Connection, project_id: int, item_id: int, who: int, one: Imported, *, payload: dict[str, Any], turn: int
) -> None:
    """A slot taken and done, the assignment, and the event, as if the person had been handed the item here."""
    at = time.time() if one.at is None else one.at
    free = (slot.c.item_id == item_id, slot.c.pool == "any", slot.c.who.is_(None))
    taken = c.execute(select(slot.c.id).where(and_(*free)).order_by(slot.c.k).limit(1)).scalar_one()
    c.execute(update(slot).where(slot.c.id == taken).values(who=who, done=1))
    order = list(range(len(one.answers)))
    same = {"project_id": project_id, "item_id": item_id, "annotator_id": who, "permutation": order}
    row = same | {"slot_id": taken, "turn": turn, "instructions_version": 0, "handed_at": at}
    made = c.execute(insert(assignment).values(row).returning(assignment.c.id)).scalar_one()
    event = same | {"assignment_id": made, "key": f"import/{project_id}/{turn}", "kind": "judgment", "payload": payload}
    view = KNOWN_ORDER if one.shown else UNKNOWN_ORDER
    event |= {"view": view, "active_ms": round(one.seconds * 1000), "at": at}
    c.execute(insert(judgment_event).values(event))


def _close(c: Connection, project_id: int) -> None:
    """Nothing more is handed out: slots without a judgment go, and the project is closed."""
    mine = select(item.c.id).where(item.c.project_id == project_id)
    c.execute(slot.delete().where(slot.c.item_id.in_(mine), slot.c.done == 0))
    c.execute(update(project).where(project.c.id == project_id).values(status="closed"))
