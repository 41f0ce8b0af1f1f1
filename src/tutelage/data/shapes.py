"""The shapes of data rows, recognised by their keys: each says which kinds of record it can be read as, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tutelage.data import fields, rows
from tutelage.data.dialogues import is_dialogue_string, sharegpt
from tutelage.data.fields import Row, text
from tutelage.records import AnswerGroup, Comparison, Critique, Demonstration, Document, Message, Prompt, Rating

Kind = Literal["prompt", "demonstration", "comparison", "rating", "document", "group", "critique"]
Loadable = Prompt | Demonstration | Comparison | Rating | Document | AnswerGroup | Critique
Read = Callable[[Row], Loadable]


@dataclass(frozen=True)
class Shape:
    """Rows with these `keys` (and, where `fits` is given, such values); `optional` keys are read, all others ignored."""

    name: str
    keys: tuple[str, ...]
    kind: Kind
    """What a row is when nobody asks for something else."""
    read: Read
    optional: tuple[str, ...] = ()
    fits: Callable[[Row], bool] = lambda row: True
    also: Mapping[Kind, Read] | None = None
    """Kinds read straight from the row, because the record of `kind` no longer says what they need."""

    def reader(self, kind: Kind) -> Callable[[Row], list[Loadable]] | None:
        """Row -> records of a kind, or None where this shape cannot serve it."""
        if kind == self.kind or kind in (self.also or {}):
            read = self.read if kind == self.kind else (self.also or {})[kind]
            return lambda row: [read(row)]
        convert = CONVERSIONS.get((self.kind, kind))
        return convert and (lambda row: convert(self.read(row)))


def recognise(row: Row) -> Shape | None:
    """The first shape that fits a row."""
    return next((s for s in SHAPES if all(row.get(k) is not None for k in s.keys) and s.fits(row)), None)


def _has_answer(row: Row) -> bool:
    value = row["messages"]
    return isinstance(value, list) and any(isinstance(m, Mapping) and m.get("role") == "assistant" for m in value)


def _to_prompt(record: Any) -> list[Loadable]:
    return [record.prompt]


def _without_answer(record: Any) -> list[Loadable]:
    """The prompt of a conversation's last assistant turn."""
    last = max(i for i, m in enumerate(record.messages) if m.role == "assistant")
    return [Prompt(record.messages[:last], record.id, record.category)]


def _preferred(record: Any) -> list[Loadable]:
    """The better answer as a demonstration; a tie shows nothing and gives none."""
    if record.preference == 0.5:
        return []
    better = record.chosen if record.preference > 0.5 else record.rejected
    return [Demonstration((*record.prompt.messages, Message("assistant", better.text)), record.prompt.id)]


def _both_rated(record: Any) -> list[Loadable]:
    """The better answer as a yes, the other as a no; a tie says neither."""
    if record.preference == 0.5:
        return []
    sides = (record.chosen, record.rejected) if record.preference > 0.5 else (record.rejected, record.chosen)
    about = {"annotator": record.annotator, "weight": record.weight}
    return [Rating(record.prompt, a, s, **about) for a, s in zip(sides, (1.0, 0.0), strict=True)]


def _rewritten(record: Any) -> list[Loadable]:
    """The rewritten answer as a demonstration; a critique without one shows none."""
    if record.rewritten is None:
        return []
    messages = (*record.prompt.messages, Message("assistant", record.rewritten.text))
    return [Demonstration(messages, record.prompt.id, record.prompt.category)]


def _improved(record: Any) -> list[Loadable]:
    """The rewritten answer over the original; none where it was left as it is."""
    if record.rewritten is None or record.rewritten.text == record.answer.text:
        return []
    return [Comparison(record.prompt, record.rewritten, record.answer, annotator=record.annotator)]


CONVERSIONS: dict[tuple[Kind, Kind], Callable[[Any], list[Loadable]]] = {
    ("comparison", "prompt"): _to_prompt,
    ("rating", "prompt"): _to_prompt,
    ("group", "prompt"): _to_prompt,
    ("demonstration", "prompt"): _without_answer,
    ("comparison", "demonstration"): _preferred,
    ("comparison", "rating"): _both_rated,
    ("critique", "prompt"): _to_prompt,
    ("critique", "demonstration"): _rewritten,
    ("critique", "comparison"): _improved,
}


def _document(row: Row) -> Document:
    return Document(text(row, "text"), fields.optional_text(row, "id"))


def _conversations(row: Row) -> Demonstration:
    return rows.demonstration(sharegpt(row), row)


ABOUT = ("id", "category")
ABOUT_PAIR = (*ABOUT, "preference", "annotator", "weight", "margin", "group")


def _are(row: Row, **kinds: type | tuple[type, ...]) -> bool:
    return all(isinstance(row[key], kind) for key, kind in kinds.items())


SHAPES = (
    Shape(
        "answer group",
        ("prompt", "answers"),
        "group",
        rows.written_group,
        fits=lambda r: _are(r, prompt=dict, answers=list),
    ),
    Shape(
        "comparison record",
        ("prompt", "chosen", "rejected"),
        "comparison",
        rows.written_comparison,
        ABOUT_PAIR,
        fits=lambda r: _are(r, prompt=dict),
    ),
    Shape(
        "rating record",
        ("prompt", "answer", "score"),
        "rating",
        rows.written_rating,
        ("scale", "annotator", "weight"),
        fits=lambda r: _are(r, prompt=dict),
    ),
    Shape(
        "critique record",
        ("prompt", "answer"),
        "critique",
        rows.written_critique,
        ("critique", "rewritten", "annotator"),
        fits=lambda r: _are(r, prompt=dict) and ("critique" in r or "rewritten" in r),
    ),
    Shape(
        "prompt/response/critique",
        ("prompt", "response", "critique"),
        "critique",
        rows.critique,
        ("rewrite", "annotator", "solution", *ABOUT),
    ),
    Shape(
        "instruction/chosen/rejected",
        ("instruction", "chosen", "rejected"),
        "comparison",
        rows.alpaca_pair,
        ("input", "output", *ABOUT_PAIR),
        also={"demonstration": rows.alpaca},
    ),
    Shape(
        "alpaca",
        ("instruction", "output"),
        "demonstration",
        rows.alpaca,
        ("input", *ABOUT),
        also={"prompt": rows.instruction},
    ),
    Shape("instruction", ("instruction",), "prompt", rows.instruction, ("input", "solution", *ABOUT)),
    Shape("sharegpt", ("conversations",), "demonstration", _conversations, ("system", *ABOUT)),
    Shape("prompt/chosen/rejected", ("prompt", "chosen", "rejected"), "comparison", rows.pair, ABOUT_PAIR),
    Shape(
        "hh-rlhf",
        ("chosen", "rejected"),
        "comparison",
        rows.pair_of_dialogues,
        ABOUT_PAIR,
        fits=lambda r: is_dialogue_string(r["chosen"]),
    ),
    Shape(
        "chosen/rejected messages",
        ("chosen", "rejected"),
        "comparison",
        rows.pair_of_turns,
        ABOUT_PAIR,
        fits=lambda r: _are(r, chosen=list),
    ),
    Shape("chosen/rejected strings", ("chosen", "rejected"), "comparison", rows.pair_of_strings, ABOUT_PAIR),
    Shape(
        "prompt/completion/label",
        ("prompt", "completion", "label"),
        "rating",
        rows.labelled,
        (*ABOUT, "annotator", "weight"),
    ),
    Shape(
        "prompt/completion/score",
        ("prompt", "completion", "score"),
        "rating",
        rows.scored,
        (*ABOUT, "scale", "annotator", "weight"),
    ),
    Shape(
        "prompt/completion",
        ("prompt", "completion"),
        "demonstration",
        rows.completion,
        ABOUT,
        also={"prompt": fields.asked},
    ),
    Shape(
        "messages",
        ("messages",),
        "demonstration",
        rows.message_demonstration,
        ABOUT,
        fits=_has_answer,
        also={"prompt": rows.message_prompt},
    ),
    Shape("messages without an answer", ("messages",), "prompt", rows.message_prompt, ("solution", *ABOUT)),
    Shape(
        "question/answer",
        ("question", "answer"),
        "prompt",
        rows.question,
        ABOUT,
        also={"demonstration": rows.question_answered},
    ),
    Shape("text", ("text",), "document", _document, ("id",)),
    Shape("prompt", ("prompt",), "prompt", fields.asked, ("solution", *ABOUT)),
)
