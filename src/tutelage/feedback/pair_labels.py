"""Judgments -> labels of pairs and of single answers in one fixed order, whoever saw them how: what statistics are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from tutelage.feedback.judgments import Judgment, Said, pairs
from tutelage.records import Answer, Prompt, conversation_hash
from tutelage.statistics import PairVote

OUTCOMES: Mapping[Said, float] = {"first": 1.0, "second": 0.0, "tie": 0.5, "both_bad": 0.5}
TURNED: Mapping[Said, Said] = {"first": "second", "second": "first", "tie": "tie", "both_bad": "both_bad"}


@dataclass(frozen=True)
class PairLabel:
    """What one annotator said of two answers to one prompt, in an order of the answers that has nothing to do with them."""

    unit: str
    """Names the two answers: the same pair in another item, such as a repeat, has the same name."""
    prompt: str
    annotator: str
    said: Said
    first_shown: bool | None
    """Whether the pair's first answer stood before the second on the screen; None: not known."""
    longer: int
    """Characters of the first answer minus those of the second."""
    seconds: float = 0.0
    at: float = 0.0
    instructions: int = 0
    strength: int = 0
    repeat: bool = False
    """The annotator had judged this pair before."""
    truth: Said | None = None
    """The known answer of a check item."""
    item: int = 0
    earlier: Said | None = None
    """What the data said of the pair before anybody judged it here."""

    @property
    def outcome(self) -> float:
        """1 the first is better, 0 the second, 1/2 neither."""
        return OUTCOMES[self.said]

    @property
    def decided(self) -> bool:
        """Whether one was preferred."""
        return self.said in ("first", "second")

    @property
    def vote(self) -> PairVote:
        """For the annotator model."""
        return PairVote(self.unit, self.annotator, self.outcome, self.first_shown, self.prompt)


@dataclass(frozen=True)
class ScoreLabel:
    """What one annotator said of one answer: a number on a scale, or 1 for yes and 0 for no."""

    unit: str
    prompt: str
    annotator: str
    value: float
    scale: tuple[float, float]
    seconds: float = 0.0
    at: float = 0.0
    instructions: int = 0
    repeat: bool = False
    truth: float | None = None
    item: int = 0


def pair_labels(judgments: Iterable[Judgment]) -> list[PairLabel]:
    """Every pair of every preference and ranking, in the order in which they came."""
    seen: set[tuple[str, str]] = set()
    out = []
    for one in judgments:
        if one.skipped or one.item.kind not in ("preference", "ranking"):
            continue
        found = [_pair_label(one, i, j, said) for i, j, said in _pairs(one)]
        out += [_repeated(label, (label.annotator, label.unit) in seen) for label in found]
        seen |= {(label.annotator, label.unit) for label in found}
    return out


def score_labels(judgments: Iterable[Judgment]) -> list[ScoreLabel]:
    """Every rating and yes / no, in the order in which they came."""
    seen: set[tuple[str, str]] = set()
    out = []
    for one in judgments:
        if one.skipped or one.item.kind not in ("rating", "yesno"):
            continue
        check, scale = one.item.check_answer, one.item.scale if one.item.kind == "rating" else (0.0, 1.0)
        unit = f"{conversation_hash(one.item.prompt.messages)}/{_name(one.item.answers[0])}"
        out.append(
            ScoreLabel(
                unit,
                one.item.root,
                one.annotator,
                float(one.payload["value"]),
                scale,
                one.active_seconds,
                one.at,
                one.instructions,
                (one.annotator, unit) in seen,
                None if check is None else float(check["value"]),
                one.item.id,
            )
        )
        seen.add((one.annotator, unit))
    return out


AnyLabel = TypeVar("AnyLabel", PairLabel, ScoreLabel)


def by_unit(labels: Iterable[AnyLabel]) -> dict[str, list[AnyLabel]]:
    """Labels of each unit, one an annotator: repeats are left out."""
    units: dict[str, list[AnyLabel]] = {}
    for label in labels:
        if not label.repeat:
            units.setdefault(label.unit, []).append(label)
    return units


def by_annotator(labels: Iterable[AnyLabel]) -> dict[str, list[AnyLabel]]:
    """Labels of each annotator."""
    people: dict[str, list[AnyLabel]] = {}
    for label in labels:
        people.setdefault(label.annotator, []).append(label)
    return people


def pair_unit(prompt: Prompt, first: Answer, second: Answer) -> tuple[str, bool]:
    """(the unit's name, whether the two stand the other way round in it): an order by hash, so that it means nothing."""
    names = [_name(first), _name(second)]
    return f"{conversation_hash(prompt.messages)}/{min(names)}/{max(names)}", names[1] < names[0]


def _name(answer: Answer) -> str:
    return hashlib.sha256(answer.text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _pairs(one: Judgment) -> Sequence[tuple[int, int, Said]]:
    return list(pairs(one.item.kind, one.canonical(), len(one.item.answers)))


def _repeated(label: PairLabel, repeat: bool) -> PairLabel:
    return replace(label, repeat=repeat)


def _pair_label(one: Judgment, i: int, j: int, said: Said) -> PairLabel:
    answers = one.item.answers
    unit, turned = pair_unit(one.item.prompt, answers[i], answers[j])
    truth: Said | None = None
    if one.item.check_answer is not None:
        known = pairs(one.item.kind, one.item.check_answer, len(answers))
        truth = next(said for a, b, said in known if (a, b) == (i, j))
    first_shown = (one.order.index(i) < one.order.index(j)) != turned
    longer = len(answers[i].text) - len(answers[j].text)
    return PairLabel(
        unit,
        one.item.root,
        one.annotator,
        TURNED[said] if turned else said,
        None if one.permutation is None else first_shown,
        -longer if turned else longer,
        one.active_seconds,
        one.at,
        one.instructions,
        int(one.payload.get("strength") or 0),
        truth=TURNED[truth] if truth and turned else truth,
        item=one.item.id,
        earlier=TURNED[one.item.earlier] if turned and one.item.earlier else one.item.earlier,
    )
