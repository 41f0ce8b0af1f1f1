"""Judgments -> rows to train on: our records and TRL's shapes; nothing is left out without a reason that is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from tutelage.feedback.export_shapes import SHAPES, said, turns
from tutelage.feedback.judgments import (
    Judgment,
    Labels,
    comparisons,
    conversation_root,
    critiques,
    demonstrations,
    ratings,
)
from tutelage.feedback.pair_labels import pair_unit
from tutelage.records import Answer, Comparison, Critique, Demonstration, Prompt, Rating, to_json

Format = Literal["records", "trl", "trl_implicit", "kto", "sft", "ranking", "critique"]
FORMATS: tuple[Format, ...] = get_args(Format)
LEAST_WEIGHT = 0.05
"""Of an annotator no better than a coin: a label counts little, but it is never deleted."""


@dataclass(frozen=True)
class Row:
    """One row of an export, and what decides the file it goes to."""

    data: dict[str, Any]
    root: str
    annotators: tuple[str, ...]


@dataclass(frozen=True)
class Exported:
    """The rows, and why judgments gave none: reason -> how many."""

    rows: list[Row]
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Options:
    """What an export takes and how it counts it."""

    format: Format = "records"
    ties: Literal["keep", "drop"] = "keep"
    """TRL's trainers do not read `preference`, so a kept tie is trained as a win there: drop ties for them."""
    labels: Literal["single", "mean", "model"] = "single"
    """`single`: a row a judgment; `mean`: a row a pair, preference = share of the votes; `model`: the annotator model's P."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Annotator -> what each of its labels counts for (`reliability_weights`); absent: 1."""
    soft: Mapping[str, float] = field(default_factory=dict)
    """Pair (`pair_unit`) -> P(its first answer wins), for labels: model."""
    checks: bool = False
    """Whether check items and repeats are taken as well."""


def export_rows(labels: Labels, options: Options) -> Exported:
    """Rows of the wanted format. Raises ValueError where the project's judgments cannot give it."""
    left_out: Counter[str] = Counter()
    taken = list(_taken(labels.judgments, options, left_out))
    write = _WRITERS[options.format]
    if options.format in ("records", "trl", "trl_implicit") and labels.kind in ("preference", "ranking"):
        rows = _pair_rows(taken, options, left_out)
    else:
        rows = []
        for one in taken:
            found = write(one)
            rows += found
            left_out[_nothing(one, options.format)] += not found
    if not rows:
        why = "; ".join(f"{count} {reason}" for reason, count in left_out.items() if count) or "there are no judgments"
        raise ValueError(f"--format {options.format}: no rows of the task {labels.kind}: {why}")
    return Exported(rows, +left_out)


def reliability_weights(reliability: Mapping[str, float]) -> dict[str, float]:
    """eta -> weight 2 eta - 1, how much more than a coin an annotator says, at least `LEAST_WEIGHT`."""
    return {who: max(LEAST_WEIGHT, 2 * eta - 1) for who, eta in reliability.items()}


def _taken(judgments: Iterable[Judgment], options: Options, left_out: Counter[str]) -> Iterable[Judgment]:
    for one in judgments:
        if one.skipped:
            left_out["skipped"] += 1
        elif one.item.check_answer is not None and not options.checks:
            left_out["check items"] += 1
        elif one.item.repeat_of is not None and not options.checks:
            left_out["repeats by the same person"] += 1
        else:
            yield one


def _nothing(one: Judgment, wanted: Format) -> str:
    if one.payload.get("choice") == "both_bad" and wanted != "kto":
        return "both bad: no comparison (the kto format takes them)"
    return f"nothing in it for {wanted}"


def _pair_rows(taken: Sequence[Judgment], options: Options, left_out: Counter[str]) -> list[Row]:
    found: list[Comparison] = []
    for one in taken:
        pairs = comparisons(one)
        found += pairs
        left_out[_nothing(one, options.format)] += not pairs
    found = [replace(c, weight=c.weight * options.weights.get(c.annotator, 1.0)) for c in found]
    merged = [(c, (c.annotator,)) for c in found] if options.labels == "single" else _merged(found, options)
    ties = [c for c, _ in merged if c.preference == 0.5]
    if options.ties == "drop":
        left_out["ties"] += len(ties)
        merged = [(c, who) for c, who in merged if c.preference != 0.5]
    shape = SHAPES[options.format]
    return [Row(shape(c), conversation_root(c.prompt), who) for c, who in merged]


def _merged(found: Sequence[Comparison], options: Options) -> list[tuple[Comparison, tuple[str, ...]]]:
    """One comparison a pair: the better answer first, `preference` its probability, the weights of its labels averaged."""
    units: dict[str, list[tuple[Comparison, float]]] = {}
    for c in found:
        unit, turned = pair_unit(c.prompt, c.chosen, c.rejected)
        units.setdefault(unit, []).append((c, 1 - c.preference if turned else c.preference))
    out = []
    for unit, votes in units.items():
        total = sum(c.weight for c, _ in votes)
        first_wins = sum(c.weight * p for c, p in votes) / total
        first_wins = options.soft.get(unit, first_wins) if options.labels == "model" else first_wins
        one = votes[0][0]
        turned = pair_unit(one.prompt, one.chosen, one.rejected)[1]
        first, second = (one.rejected, one.chosen) if turned else (one.chosen, one.rejected)
        better, worse = (first, second) if first_wins >= 0.5 else (second, first)
        preference = max(first_wins, 1 - first_wins)
        margin = sum(c.margin * (1 if c.chosen == better else -1) for c, _ in votes) / len(votes)
        who = tuple(dict.fromkeys(c.annotator for c, _ in votes))
        merged = Comparison(
            one.prompt, better, worse, preference, ",".join(who), total / len(votes), max(0.0, margin), one.group
        )
        out.append((merged, who))
    return out


def _row(one: Judgment, data: dict[str, Any]) -> Row:
    return Row(data, one.item.root, (one.annotator,))


def _improvements(one: Judgment) -> list[Comparison]:
    """A rewritten answer is better than the one that was criticised."""
    group = f"{one.item.id}/{one.annotator}"
    return [
        Comparison(c.prompt, c.rewritten, c.answer, annotator=one.annotator, group=group)
        for c in critiques(one)
        if c.rewritten is not None and c.rewritten.text != c.answer.text
    ]


def _records(one: Judgment) -> list[Row]:
    found: list[Rating | Critique | Demonstration] = [*ratings(one), *critiques(one)]
    found += demonstrations(one) if one.item.kind == "demonstration" else []
    return [_row(one, to_json(record)) for record in found]


def _kto(one: Judgment) -> list[Row]:
    """Answers with a yes or a no; a rating counts above or below the middle of its scale, and not at it."""
    rated = [(r.prompt, r.answer, r.score - sum(r.scale) / 2) for r in ratings(one)]
    for c in [*comparisons(one), *_improvements(one)]:
        if c.preference != 0.5:
            rated += [(c.prompt, c.chosen, 1.0), (c.prompt, c.rejected, -1.0)]
    distinct = {(prompt.key, answer.text, sign > 0): (prompt, answer, sign) for prompt, answer, sign in rated if sign}
    return [_row(one, _labelled(one, *entry)) for entry in distinct.values()]


def _labelled(one: Judgment, prompt: Prompt, answer: Answer, sign: float) -> dict[str, Any]:
    row = {"prompt": turns(prompt.messages), "completion": said(answer), "label": sign > 0}
    return row | {"id": prompt.id, "category": prompt.category, "annotator": one.annotator}


def _sft(one: Judgment) -> list[Row]:
    """What the person wrote, or the answer that the person put before all others or said yes to."""
    written = [d.messages[-1].content for d in demonstrations(one)]
    if one.item.kind == "preference":
        written = [c.chosen.text for c in comparisons(one) if c.preference != 0.5]
    elif one.item.kind == "ranking" and not one.payload.get("none_acceptable"):
        ranks = one.canonical()["ranks"]
        written = [one.item.answers[ranks.index(1)].text] if ranks.count(1) == 1 else []
    elif one.item.kind == "yesno" and one.payload["value"]:
        written = [one.item.answers[0].text]
    about = {"id": one.item.prompt.id, "category": one.item.prompt.category, "annotator": one.annotator}
    asked = turns(one.item.prompt.messages)
    return [_row(one, {"prompt": asked, "completion": said(Answer(text))} | about) for text in written]


def _ranking(one: Judgment) -> list[Row]:
    """All answers of an item with their ranks, in one row."""
    verdict = one.canonical()
    if one.item.kind == "preference":
        ranks = {"first": [1, 2], "second": [2, 1]}.get(verdict["choice"], [1, 1])
    elif one.item.kind == "ranking":
        ranks = verdict["ranks"]
    else:
        return []
    answers = [to_json(answer) for answer in one.item.answers]
    row = {"prompt": to_json(one.item.prompt), "answers": answers, "ranks": ranks, "annotator": one.annotator}
    none = verdict.get("choice") == "both_bad" or bool(verdict.get("none_acceptable"))
    return [_row(one, row | {"group": f"{one.item.id}/{one.annotator}", "none_acceptable": none})]


def _critique(one: Judgment) -> list[Row]:
    return [_row(one, to_json(c) | {"spans": list(one.payload.get("spans", ()))}) for c in critiques(one)]


def _improved(shape: str) -> Callable[[Judgment], list[Row]]:
    return lambda one: [_row(one, SHAPES[shape](c)) for c in _improvements(one)]


_WRITERS: dict[Format, Callable[[Judgment], list[Row]]] = {
    "records": _records,
    "trl": _improved("trl"),
    "trl_implicit": _improved("trl_implicit"),
    "kto": _kto,
    "sft": _sft,
    "ranking": _ranking,
    "critique": _critique,
}
