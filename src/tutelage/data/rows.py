"""One data row -> one record, shape by shape; every ValueError says key, got and allowed (the reader adds file and line)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tutelage.data import fields
from tutelage.data.dialogues import dialogue, split_strings, split_turns
from tutelage.data.fields import Row, text
from tutelage.records import (
    Answer,
    AnswerGroup,
    Comparison,
    Critique,
    Demonstration,
    Message,
    Messages,
    Prompt,
    Rating,
)


def demonstration(messages: Messages, row: Row) -> Demonstration:
    roles = [m.role for m in messages]
    if "user" not in roles or "assistant" not in roles[roles.index("user") :]:
        raise ValueError(f"no assistant message follows a user message; roles: {', '.join(roles)}")
    return Demonstration(messages, fields.optional_text(row, "id"), fields.optional_text(row, "category"))


def _comparison(prompt: Prompt, chosen: Answer, rejected: Answer, row: Row) -> Comparison:
    """The two answers with what else the row says of them."""
    if chosen.text == rejected.text and chosen.tokens == rejected.tokens:
        raise ValueError("keys `chosen`, `rejected`: they are equal; allowed: two different answers")
    return Comparison(
        prompt,
        chosen,
        rejected,
        preference=fields.number(row, "preference", 1.0, 0.0, 1.0),
        annotator=fields.optional_text(row, "annotator"),
        weight=_weight(row),
        margin=fields.number(row, "margin", 0.0),
        group=fields.optional_text(row, "group"),
    )


def _answered(prompt: Prompt, answer: Answer, row: Row) -> Demonstration:
    return demonstration((*prompt.messages, Message("assistant", answer.text)), row)


def completion(row: Row) -> Demonstration:
    prompt = fields.asked(row)
    return _answered(prompt, fields.said(row, "completion", prompt.messages), row)


def labelled(row: Row) -> Rating:
    prompt = fields.asked(row)
    answer, label = fields.said(row, "completion", prompt.messages), fields.yes_no(row, "label")
    return Rating(prompt, answer, label, annotator=fields.optional_text(row, "annotator"), weight=_weight(row))


def _weight(row: Row) -> float:
    return fields.number(row, "weight", 1.0, 0.0)


def critique(row: Row) -> Critique:
    """What somebody says of a response, and the response as they would have it where they wrote one."""
    prompt = fields.asked(row)
    response = fields.said(row, "response", prompt.messages)
    rewrite = fields.said(row, "rewrite", prompt.messages) if row.get("rewrite") not in (None, "", []) else None
    return Critique(prompt, response, text(row, "critique"), rewrite, fields.optional_text(row, "annotator"))


def pair(row: Row) -> Comparison:
    prompt = fields.asked(row)
    chosen, rejected = (fields.said(row, key, prompt.messages) for key in ("chosen", "rejected"))
    return _comparison(prompt, chosen, rejected, row)


def pair_of_turns(row: Row) -> Comparison:
    messages, chosen, rejected = split_turns(
        fields.turns(row["chosen"], "chosen"), fields.turns(row["rejected"], "rejected")
    )
    return _comparison(fields.prompt(messages, row), Answer(chosen), Answer(rejected), row)


def pair_of_dialogues(row: Row) -> Comparison:
    messages, chosen, rejected = split_turns(dialogue(row, "chosen"), dialogue(row, "rejected"))
    if any(not m.content for m in messages):
        raise ValueError("key `chosen`: a turn of the prompt is empty; allowed: turns that are not blank")
    return _comparison(fields.prompt(messages, row), Answer(chosen), Answer(rejected), row)


def pair_of_strings(row: Row) -> Comparison:
    prompt, chosen, rejected = split_strings(text(row, "chosen"), text(row, "rejected"))
    return _comparison(fields.prompt((Message("user", prompt),), row), Answer(chosen), Answer(rejected), row)


def instruction(row: Row) -> Prompt:
    """Alpaca's instruction, with the input below it where there is one."""
    parts = text(row, "instruction"), fields.optional_text(row, "input")
    return fields.prompt((Message("user", "\n\n".join(p for p in parts if p.strip())),), row, "instruction")


def alpaca(row: Row) -> Demonstration:
    return _answered(instruction(row), Answer(text(row, "output")), row)


def alpaca_pair(row: Row) -> Comparison:
    return _comparison(instruction(row), Answer(text(row, "chosen")), Answer(text(row, "rejected")), row)


def question(row: Row) -> Prompt:
    """The solution is what stands behind GSM8K's `####`, without thousands separators, or else the whole answer."""
    answer = text(row, "answer")
    _, mark, final = answer.rpartition("####")
    if mark and not final.strip():
        raise ValueError(
            f"key `answer`: nothing behind `####` in {fields.short(answer)}; allowed: #### and the final answer"
        )
    solution = final.strip().replace(",", "") if mark else answer.strip()
    return replace(fields.prompt((Message("user", text(row, "question")),), row, "question"), solution=solution)


def question_answered(row: Row) -> Demonstration:
    return _answered(question(row), Answer(text(row, "answer")), row)


def _written_prompt(row: Row, key: str = "prompt") -> Prompt:
    return fields.prompt(fields.turns(row[key].get("messages"), f"{key}.messages"), row[key], f"{key}.messages")


def _written_answer(value: Any, key: str) -> Answer:
    """An answer as `records.to_json` writes it; sampled ids may say nothing but the stop token, so text may be empty then."""
    if not isinstance(value, Mapping):
        raise ValueError(f'key `{key}`: {fields.short(value)}; allowed: {{"text": ..., "tokens": [...], ...}}')
    tokens, stop = value.get("tokens") or [], value.get("stop_reason") or "stop"
    if not isinstance(tokens, list) or any(type(token) is not int or token < 0 for token in tokens):
        raise ValueError(f"key `{key}.tokens`: {fields.short(tokens)}; allowed: a list of token ids")
    if stop not in ("stop", "length"):
        raise ValueError(f"key `{key}.stop_reason`: {fields.short(stop)}; allowed: stop, length")
    said = text({"text": "", **value}, "text", empty=bool(tokens))
    logprobs = tuple(value.get("logprobs") or ())
    return Answer(said, tuple(tokens), logprobs, stop, fields.optional_text(value, "author"))


def written_comparison(row: Row) -> Comparison:
    chosen, rejected = (_written_answer(row[key], key) for key in ("chosen", "rejected"))
    return _comparison(_written_prompt(row), chosen, rejected, row)


def scored(row: Row) -> Rating:
    """A rating in numbers; in a CSV file the scale is written `[1, 5]` too."""
    prompt = fields.asked(row)
    answer, scale = fields.said(row, "completion", prompt.messages), _scale(row)
    score = fields.number(row, "score", None, *scale)
    return Rating(prompt, answer, score, scale, fields.optional_text(row, "annotator"), _weight(row))


def _scale(row: Row) -> tuple[float, float]:
    """(lowest, highest); 0 and 1 where the row says nothing."""
    scale = row.get("scale", [0.0, 1.0])
    if isinstance(scale, str):
        try:
            scale = json.loads(scale)
        except json.JSONDecodeError:
            scale = row["scale"]
    if not (
        isinstance(scale, list)
        and len(scale) == 2
        and all(type(x) in (int, float) for x in scale)
        and scale[0] < scale[1]
    ):
        raise ValueError(f"key `scale`: {fields.short(scale)}; allowed: [lowest, highest]")
    return float(scale[0]), float(scale[1])


def written_rating(row: Row) -> Rating:
    scale = _scale(row)
    score = fields.number(row, "score", None, *scale)
    who, answer = fields.optional_text(row, "annotator"), _written_answer(row["answer"], "answer")
    return Rating(_written_prompt(row), answer, score, scale, who, _weight(row))


def written_critique(row: Row) -> Critique:
    """As `records.to_json` writes it: it may have no words where the rewritten answer says all."""
    rewritten = None if row.get("rewritten") is None else _written_answer(row["rewritten"], "rewritten")
    said, who = fields.optional_text(row, "critique"), fields.optional_text(row, "annotator")
    return Critique(_written_prompt(row), _written_answer(row["answer"], "answer"), said, rewritten, who)


def written_group(row: Row) -> AnswerGroup:
    answers = tuple(_written_answer(a, f"answers[{i}]") for i, a in enumerate(row["answers"]))
    if not answers:
        raise ValueError("key `answers`: empty; allowed: at least one answer")
    return AnswerGroup(_written_prompt(row), answers)


def message_prompt(row: Row) -> Prompt:
    """The conversation up to the turn that is asked for: without its last assistant message, where it ends with one."""
    messages = fields.turns(row["messages"], "messages")
    return fields.prompt(messages[:-1] if messages[-1].role == "assistant" else messages, row, "messages")


def message_demonstration(row: Row) -> Demonstration:
    return demonstration(fields.turns(row["messages"], "messages"), row)
