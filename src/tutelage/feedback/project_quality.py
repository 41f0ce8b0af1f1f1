"""All labels of a project: how far people agree, what the annotator models say, the ceiling, what to look at again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import cast

import numpy as np

from tutelage.feedback.annotator_quality import Agreement, AnnotatorQuality, annotator_quality, expert_agreement, share
from tutelage.feedback.judgments import Judgment, Labels
from tutelage.feedback.pair_labels import PairLabel, by_annotator, by_unit, pair_labels
from tutelage.statistics import (
    CrowdBT,
    Interval,
    cohen_kappa,
    crowd_bt,
    dawid_skene_accuracy,
    fleiss_kappa,
    gwet_ac1,
    kendall_w,
    krippendorff_interval,
    label_ceiling,
    pairwise_agreement,
)

CLASSES = ("first", "second", "tie", "both_bad")


@dataclass(frozen=True)
class Coefficients:
    """Agreement of all annotators on the units that two or more of them labelled; None where it is not defined."""

    pairwise: Interval | None
    """Share of annotator pairs that say the same."""
    alpha: Mapping[str, Interval]
    """Krippendorff's, by metric."""
    ac: float | None
    """Gwet's AC1, or AC2 with quadratic weights for ratings."""
    fleiss: float | None
    kendall: float | None
    """Mean Kendall W over the rankings of the same answers."""
    kappas: Mapping[tuple[str, str], float]
    """Cohen's kappa of every two annotators (quadratic weights for ratings) with at least `SHARED` units in common."""


SHARED = 5


@dataclass(frozen=True)
class Again:
    """An item to look at again: `score` is disagreement x strength."""

    item: int
    score: float
    said: Mapping[str, str]


@dataclass(frozen=True)
class PairQuality:
    """What the labels of pairs of one project show."""

    units: Mapping[str, Sequence[PairLabel]]
    people: Mapping[str, AnnotatorQuality]
    experts: Agreement
    between_experts: Agreement
    coefficients: Coefficients
    model: CrowdBT
    accuracy: Mapping[str, Interval]
    """Dawid-Skene: P(annotator says the pair's true class), of first, second and tie."""
    ceiling: float | None
    """Best accuracy that these labels allow to show, from agreement between people: an upper bound."""
    repeat_ceiling: float | None
    """The same from people's agreement with themselves: above it not even the same person would agree."""
    queue: Sequence[Again]
    earlier: Interval | None
    """Share of decided pairs where the annotator prefers what the data preferred."""
    versions: Mapping[int, tuple[int, Interval | None]]
    """Instructions version -> (labels, agreement of two people who both read it)."""

    @property
    def shared(self) -> bool:
        """Whether any pair was judged by two people: without one nothing is known of agreement."""
        return any(len({label.annotator for label in unit}) > 1 for unit in self.units.values())


def pair_quality(labels: Labels, rng: np.random.Generator, draws: int = 1000) -> PairQuality | None:
    """Everything about the preferences and rankings of a project; None where there is none yet.

    Randomness decides the bootstraps alone: the same generator state gives the same numbers.
    """
    found = pair_labels(labels.judgments)
    if not found:
        return None
    units = by_unit(found)
    experts = {key for key, person in labels.people.items() if person.expert}
    first = [label for label in found if not label.repeat]
    people = {who: annotator_quality(mine, units, experts) for who, mine in by_annotator(found).items()}
    to_experts, between = expert_agreement(units, experts)
    classified = [(x.unit, x.annotator, x.said if x.decided else "tie") for x in first]
    accuracy = dawid_skene_accuracy(
        classified, ("first", "second", "tie"), [x.prompt for x in first], rng=rng, draws=min(draws, 100)
    )
    decided = _agreement_of([[x.said for x in unit if x.decided] for unit in units.values()], _prompts(units))
    repeats = [q.repeats for q in people.values() if q.repeats]
    again = sum(r.estimate * r.n for r in repeats) / sum(r.n for r in repeats) if repeats else None
    return PairQuality(
        units,
        people,
        to_experts,
        between,
        _coefficients(units, labels.judgments, rng, draws),
        crowd_bt(label.vote for label in first),
        cast(Mapping[str, Interval], accuracy),
        decided and label_ceiling(decided.estimate),
        None if again is None else label_ceiling(again),
        adjudication_queue(units, experts),
        share([(float(x.said == x.earlier), x.prompt) for x in first if x.decided and x.earlier is not None]),
        _by_version(first),
    )


def adjudication_queue(units: Mapping[str, Sequence[PairLabel]], experts: set[str], most: int = 50) -> list[Again]:
    """Pairs that people disagree on, worst first: mean |difference| of the labels x (1 + mean strength / 3).

    Pairs that an expert judged have been decided and are left out.
    """
    found = []
    for unit in units.values():
        apart = [abs(a.outcome - b.outcome) for a, b in combinations(unit, 2)]
        if not any(apart) or any(label.annotator in experts for label in unit):
            continue
        strength = sum(label.strength for label in unit) / len(unit) / 3
        score = sum(apart) / len(apart) * (1 + strength)
        found.append(Again(unit[0].item, score, {label.annotator: label.said for label in unit}))
    return sorted(found, key=lambda one: (-one.score, one.item))[:most]


def _coefficients(
    units: Mapping[str, Sequence[PairLabel]], judgments: Sequence[Judgment], rng: np.random.Generator, draws: int
) -> Coefficients:
    said = [[label.said for label in unit] for unit in units.values()]
    numbers = [[label.outcome for label in unit] for unit in units.values()]
    prompts = _prompts(units)
    pairwise = _agreement_of(said, prompts)
    if pairwise is None:
        return Coefficients(None, {}, None, None, _mean_w(judgments), {})
    alpha = {
        "nominal": krippendorff_interval(said, "nominal", _of_rated(said, prompts), rng=rng, draws=draws),
        "ordinal": krippendorff_interval(numbers, "ordinal", _of_rated(numbers, prompts), rng=rng, draws=draws),
        "interval": krippendorff_interval(numbers, "interval", _of_rated(numbers, prompts), rng=rng, draws=draws),
    }
    several = [unit for unit in said if len(unit) >= 2]
    even = len({len(unit) for unit in several}) == 1
    kappas = kappa_matrix({unit: {x.annotator: x.said for x in found} for unit, found in units.items()})
    classes = max(3, len({one for unit in said for one in unit}))
    return Coefficients(
        pairwise, alpha, gwet_ac1(said, classes), fleiss_kappa(several) if even else None, _mean_w(judgments), kappas
    )


def kappa_matrix(said: Mapping[str, Mapping[str, str]]) -> dict[tuple[str, str], float]:
    """Cohen's kappa of every two annotators, from unit -> annotator -> label; those with few units in common are left out."""
    people = sorted({who for unit in said.values() for who in unit})
    out = {}
    for a, b in combinations(people, 2):
        both = [(unit[a], unit[b]) for unit in said.values() if a in unit and b in unit]
        if len(both) >= SHARED:
            out[a, b] = out[b, a] = cohen_kappa([x for x, _ in both], [y for _, y in both]).kappa
    return out


def _prompts(units: Mapping[str, Sequence[PairLabel]]) -> list[str]:
    return [unit[0].prompt for unit in units.values()]


def _of_rated(units: Sequence[Sequence[object]], prompts: Sequence[str]) -> list[str]:
    return [prompt for unit, prompt in zip(units, prompts, strict=True) if unit]


def _agreement_of(units: Sequence[Sequence[object]], prompts: Sequence[str]) -> Interval | None:
    return pairwise_agreement(units, prompts) if any(len(unit) >= 2 for unit in units) else None


def _mean_w(judgments: Sequence[Judgment]) -> float | None:
    """Mean of Kendall's W over items that two or more people ranked."""
    ranked: dict[int, list[list[int]]] = {}
    for one in judgments:
        if one.item.kind == "ranking" and not one.skipped and one.item.repeat_of is None:
            ranked.setdefault(one.item.id, []).append(one.canonical()["ranks"])
    found = [kendall_w(ranks) for ranks in ranked.values() if len(ranks) >= 2]
    defined = [w for w in found if w == w]
    return sum(defined) / len(defined) if defined else None


def _by_version(first: Sequence[PairLabel]) -> dict[int, tuple[int, Interval | None]]:
    out = {}
    for version in sorted({label.instructions for label in first}):
        mine = by_unit(label for label in first if label.instructions == version)
        said = [[label.said for label in unit] for unit in mine.values()]
        out[version] = (sum(map(len, said)), _agreement_of(said, _prompts(mine)))
    return out
