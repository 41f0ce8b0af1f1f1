"""The annotation database -> all labels of a project, in one consistent read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, RowMapping, func, select

from tutelage.feedback.items import EARLIER, PREFERRED
from tutelage.feedback.judgments import Item, Judgment, Labels, Person, Said
from tutelage.feedback.label_imports import UNKNOWN_ORDER
from tutelage.feedback.schema import (
    annotator,
    flag,
    instructions,
    item,
    judgment_current,
    project,
    prompt,
    response,
)
from tutelage.records import Answer, Message, Prompt


def find_label_project(c: Connection, name: str | None) -> RowMapping:
    """The project of that name, or the only one. Raises ValueError that lists what there is."""
    rows = c.execute(select(project).order_by(project.c.id)).mappings().all()
    known = ", ".join(repr(row["name"]) for row in rows) or "none"
    if name is None and len(rows) == 1:
        return rows[0]
    if name is None:
        raise ValueError(f"--project: which one? In this database: {known}")
    found = next((row for row in rows if row["name"] == name), None)
    if found is None:
        raise ValueError(f"--project: {name!r} is not in this database; allowed: {known}")
    return found


def read_labels(c: Connection, project_id: int) -> Labels:
    """Every judgment and skip of a project that no later event supersedes."""
    one = c.execute(select(project).where(project.c.id == project_id)).mappings().one()
    items = _items(c, one)
    events = c.execute(
        select(judgment_current).where(judgment_current.c.project_id == project_id).order_by(judgment_current.c.seq)
    ).mappings()
    judgments = tuple(_judgment(row, items) for row in events)
    people = {key: person for key, person in _people(c) if any(j.annotator == key for j in judgments)}
    texts = c.execute(
        select(instructions.c.version, instructions.c.text).where(instructions.c.project_id == project_id)
    )
    flags = c.execute(select(func.count()).select_from(flag).where(flag.c.project_id == project_id)).scalar_one()
    versions = {row.version: row.text for row in texts}
    return Labels(one["name"], one["task"], judgments, people, versions, flags, one["overlap"])


def person_key(annotator_id: int) -> str:
    """What an annotator is called in exports: a number, never a name."""
    return f"annotator-{annotator_id}"


def _people(c: Connection) -> Iterable[tuple[str, Person]]:
    for row in c.execute(select(annotator)).mappings():
        key = person_key(row["id"])
        yield key, Person(key, row["name"], row["role"], bool(row["held_out"]))


def _items(c: Connection, one: RowMapping) -> dict[int, Item]:
    mine = select(prompt).where(prompt.c.project_id == one["id"])
    prompts = {row["id"]: _prompt(row) for row in c.execute(mine).mappings()}
    said = select(response).join(prompt, prompt.c.id == response.c.prompt_id).where(prompt.c.project_id == one["id"])
    found = c.execute(said).mappings().all()
    answers = {row["id"]: _answer(row) for row in found}
    preferred = {row["id"] for row in found if row["origin"].get(EARLIER) == PREFERRED}
    rows = c.execute(select(item).where(item.c.project_id == one["id"])).mappings()
    return {
        row["id"]: Item(
            row["id"],
            row["kind"],
            prompts[row["prompt_id"]],
            tuple(answers[i] for i in row["responses"]),
            one["options"] | row["options"],
            row["check_answer"],
            row["repeat_of"],
            row["policy_step"],
            _earlier([i in preferred for i in row["responses"]]),
        )
        for row in rows
    }


def _earlier(preferred: list[bool]) -> Said | None:
    return "first" if preferred == [True, False] else "second" if preferred == [False, True] else None


def _prompt(row: RowMapping) -> Prompt:
    messages = tuple(Message(m["role"], m["content"]) for m in row["messages"])
    return Prompt(messages, "" if row["key"] == row["root"] else row["key"], row["category"])


def _answer(row: RowMapping) -> Answer:
    author: Any = row["origin"].get("author", "")
    return Answer(row["text"], author=author if isinstance(author, str) else "")


def _judgment(row: RowMapping, items: dict[int, Item]) -> Judgment:
    unknown = row["view"] == UNKNOWN_ORDER
    return Judgment(
        row["seq"],
        items[row["item_id"]],
        person_key(row["annotator_id"]),
        row["payload"],
        None if unknown else tuple(row["permutation"]),
        row["at"],
        row["active_ms"] / 1000,
        row["instructions_version"],
        bool(row["late"]),
    )
