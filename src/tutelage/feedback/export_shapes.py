"""A comparison as a row: our own record, or TRL's conversational preference shapes with soft label, weight and margin beside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tutelage.records import Answer, Comparison, Messages, to_json


def turns(messages: Messages) -> list[dict[str, str]]:
    """A conversation as TRL has it."""
    return [{"role": m.role, "content": m.content} for m in messages]


def said(answer: Answer) -> list[dict[str, str]]:
    """An answer as TRL has it: the assistant's turn."""
    return [{"role": "assistant", "content": answer.text}]


def _about(c: Comparison) -> dict[str, Any]:
    about = {"id": c.prompt.id, "category": c.prompt.category, "preference": c.preference, "weight": c.weight}
    return about | {"margin": c.margin, "annotator": c.annotator, "group": c.group}


def explicit(c: Comparison) -> dict[str, Any]:
    """The prompt in a column of its own: what TRL's DPO trainer wants."""
    return {"prompt": turns(c.prompt.messages), "chosen": said(c.chosen), "rejected": said(c.rejected)} | _about(c)


def implicit(c: Comparison) -> dict[str, Any]:
    """The prompt in front of both answers: what TRL's reward trainer wants."""
    before = turns(c.prompt.messages)
    return {"chosen": before + said(c.chosen), "rejected": before + said(c.rejected)} | _about(c)


SHAPES: dict[str, Callable[[Comparison], dict[str, Any]]] = {
    "records": to_json,
    "trl": explicit,
    "trl_implicit": implicit,
}
