"""Checked access to the values of a data row; every ValueError says key, got and allowed (the reader adds file and line)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast, get_args

from tutelage.records import Answer, Message, Messages, Prompt, Role

Row = Mapping[str, Any]
ROLES = get_args(Role)


def text(row: Row, key: str, empty: bool = False) -> str:
    """A string; not blank unless `empty`."""
    value = row.get(key)
    if not isinstance(value, str):
        raise ValueError(f"key `{key}`: {short(value) if key in row else 'missing'}; allowed: a string")
    if not empty and not value.strip():
        raise ValueError(f"key `{key}`: empty; allowed: a string that is not blank")
    return value


def optional_text(row: Row, key: str) -> str:
    """A string or a whole number as a string; "" where the key is absent."""
    value = "" if row.get(key) is None else row[key]
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"key `{key}`: {short(value)}; allowed: a string")
    return str(value)


def number(row: Row, key: str, default: float | None = None, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number within [low, high]; CSV's strings are read too."""
    value = row.get(key, default)
    try:
        result = math.nan if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError):
        result = math.nan
    if not (math.isfinite(result) and low <= result <= high):
        allowed = f"a number from {low:g} to {high:g}" if math.isfinite(low + high) else "a finite number"
        raise ValueError(f"key `{key}`: {short(value) if key in row else 'missing'}; allowed: {allowed}")
    return result


def yes_no(row: Row, key: str) -> float:
    """1.0 or 0.0 from true/false, 1/0, yes/no."""
    names = {"true": 1.0, "yes": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "no": 0.0, "0": 0.0, "0.0": 0.0}
    value = str(row.get(key)).strip().lower()
    if value not in names:
        raise ValueError(f"key `{key}`: {short(row.get(key))}; allowed: true/false, 1/0 or yes/no")
    return names[value]


def turns(value: Any, key: str) -> Messages:
    """A message list `[{"role": ..., "content": ...}, ...]`; only system and tool messages may be empty."""
    if not isinstance(value, list) or not value:
        raise ValueError(f'key `{key}`: {short(value)}; allowed: a list of {{"role": ..., "content": ...}}')
    return tuple(_turn(row, f"{key}[{i}]") for i, row in enumerate(value))


def _turn(row: Any, key: str) -> Message:
    if not isinstance(row, Mapping):
        raise ValueError(f'key `{key}`: {short(row)}; allowed: {{"role": ..., "content": ...}}')
    role = row.get("role")
    if role not in ROLES:
        raise ValueError(f"key `{key}.role`: {short(role)}; allowed: {', '.join(ROLES)}")
    content = row.get("content", "")
    if not isinstance(content, str):
        raise ValueError(f"key `{key}.content`: {short(content)}; allowed: a string")
    if role in ("user", "assistant") and not content.strip():
        raise ValueError(f"key `{key}.content`: empty; allowed: a string that is not blank")
    return Message(cast(Role, role), content)


def asked(row: Row, key: str = "prompt") -> Prompt:
    """A prompt from a string (one user turn) or a message list that ends before the assistant's turn."""
    value = row.get(key)
    messages = turns(value, key) if isinstance(value, list) else (Message("user", text(row, key)),)
    return prompt(messages, row, key)


def prompt(messages: Messages, row: Row, key: str = "prompt") -> Prompt:
    """A prompt of these messages with the row's `id`, `category` and `solution`."""
    if not any(m.role == "user" for m in messages):
        raise ValueError(f"key `{key}`: no user message; roles: {', '.join(m.role for m in messages) or 'none'}")
    if messages[-1].role == "assistant":
        raise ValueError(f"key `{key}`: ends with an assistant message; allowed: it ends with what is asked")
    solution = optional_text(row, "solution") or None
    return Prompt(messages, optional_text(row, "id"), optional_text(row, "category"), solution)


def said(row: Row, key: str, asked_before: Messages) -> Answer:
    """An answer from a string, or from a message list: the assistant's turn alone or the conversation that ends with it."""
    if not isinstance(row.get(key), list):
        return Answer(text(row, key))
    messages = turns(row[key], key)
    if messages[: len(asked_before)] == asked_before:
        messages = messages[len(asked_before) :]
    if [m.role for m in messages] != ["assistant"]:
        raise ValueError(
            f"key `{key}`: roles {', '.join(m.role for m in messages) or 'none'} behind the prompt; "
            "allowed: one assistant message, with or without the prompt's messages in front"
        )
    return Answer(messages[0].content)


def short(value: Any) -> str:
    """How an error shows what it got."""
    shown = repr(value)
    return f"{type(value).__name__} {shown[:57] + '...' if len(shown) > 60 else shown}"
