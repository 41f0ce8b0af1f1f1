"""Dialogues in other people's notation -> messages: HH-RLHF's strings, ShareGPT's turns, pairs whose prompt is implicit."""

from __future__ import annotations

import re
from typing import Any, cast

from tutelage.data.fields import Row, short, text, turns
from tutelage.records import Message, Messages, Role

SPEAKER = re.compile(r"\n\n(Human|Assistant):")
SHAREGPT_ROLES = {
    **{"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant"},
    **{"system": "system", "tool": "tool", "function": "tool", "observation": "tool"},
}


def is_dialogue_string(value: Any) -> bool:
    """Whether a value is a raw HH-RLHF dialogue: "\\n\\nHuman: ... \\n\\nAssistant: ..."."""
    return isinstance(value, str) and SPEAKER.match(value) is not None


def dialogue(row: Row, key: str) -> Messages:
    """The turns of an HH-RLHF string, without the space around each; the last one may be empty (the caller judges it)."""
    before, *parts = SPEAKER.split(text(row, key))
    if before or not parts:
        raise ValueError(f"key `{key}`: {short(row[key])}; allowed: a string that begins with '\\n\\nHuman:'")
    roles: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(roles[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True))


def sharegpt(row: Row) -> Messages:
    """`conversations: [{"from": "human", "value": ...}, ...]` and an optional `system` -> messages."""
    value = row["conversations"]
    if not isinstance(value, list):
        raise ValueError(f'key `conversations`: {short(value)}; allowed: a list of {{"from": ..., "value": ...}}')
    rows: list[Any] = []
    for i, turn in enumerate(value):
        who = turn.get("from") if isinstance(turn, dict) else turn
        if not isinstance(who, str) or who not in SHAREGPT_ROLES:
            raise ValueError(f"key `conversations[{i}].from`: {short(who)}; allowed: {', '.join(SHAREGPT_ROLES)}")
        rows.append({"role": SHAREGPT_ROLES[who], "content": cast(dict, turn).get("value")})
    if row.get("system"):
        rows.insert(0, {"role": "system", "content": row["system"]})
    return turns(rows, "conversations")


def split_turns(chosen: Messages, rejected: Messages) -> tuple[Messages, str, str]:
    """(prompt, chosen answer, rejected answer) of two conversations that differ in their last assistant turn only."""
    common = 0
    while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
        common += 1
    ends = chosen[common:], rejected[common:]
    if chosen == rejected:
        raise ValueError("keys `chosen`, `rejected`: they are equal; allowed: two different answers")
    if any([m.role for m in end] != ["assistant"] for end in ends) or common == 0:
        raise ValueError(
            f"keys `chosen`, `rejected`: no common prompt: after {common} equal turns there follow "
            f"{len(ends[0])} and {len(ends[1])} turns; allowed: one assistant turn each"
        )
    answers = ends[0][0].content, ends[1][0].content
    for key, answer in zip(("chosen", "rejected"), answers, strict=True):
        if not answer.strip():
            raise ValueError(f"key `{key}`: its last turn is empty; allowed: an answer that is not blank")
    return chosen[:common], *answers


def split_strings(chosen: str, rejected: str) -> tuple[str, str, str]:
    """(prompt, chosen, rejected) of two texts with a common beginning, cut back to the last space or line break in it."""
    if chosen == rejected:
        raise ValueError("keys `chosen`, `rejected`: they are equal; allowed: two different answers")
    pairs = enumerate(zip(chosen, rejected, strict=False))
    common = next((i for i, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
    end = max((i + 1 for i in range(common) if chosen[i].isspace()), default=0)
    prompt, answers = chosen[:end].strip(), (chosen[end:].strip(), rejected[end:].strip())
    if not (prompt and all(answers)):
        raise ValueError(
            "keys `chosen`, `rejected`: no common prompt: two texts without a `prompt` key must begin with the same words "
            "and then differ"
        )
    return prompt, *answers
