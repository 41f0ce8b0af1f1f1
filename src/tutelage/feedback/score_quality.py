"""All ratings and yes / no labels of a project: agreement on the scale, and who is lenient, severe or careless."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

import numpy as np

from tutelage.feedback.annotator_quality import Standing, share, standing
from tutelage.feedback.judgments import Labels
from tutelage.feedback.pair_labels import ScoreLabel, by_annotator, by_unit, score_labels
from tutelage.feedback.project_quality import SHARED, Coefficients
from tutelage.statistics import (
    Interval,
    cluster_mean,
    fleiss_kappa,
    gwet_ac2,
    krippendorff_interval,
    pairwise_agreement,
    weighted_kappa,
)


@dataclass(frozen=True)
class Scorer:
    """What one annotator's ratings show."""

    judged: int
    median_seconds: float
    exact: Interval | None
    """Share of other people's ratings of the same answers that are equal."""
    experts: Interval | None
    """The same with experts alone."""
    offset: Interval | None
    """Mean of (own rating - the others' mean): above 0 lenient, below severe."""
    checks: Standing | None
    repeats: Interval | None
    """Share of repeated answers that got the same rating."""


@dataclass(frozen=True)
class ScoreQuality:
    """What the ratings of one project show."""

    people: Mapping[str, Scorer]
    coefficients: Coefficients
    levels: Sequence[float]


def score_quality(labels: Labels, rng: np.random.Generator, draws: int = 1000) -> ScoreQuality | None:
    """Everything about the ratings and yes / no answers of a project; None where there is none yet."""
    found = score_labels(labels.judgments)
    if not found:
        return None
    units = by_unit(found)
    experts = {key for key, person in labels.people.items() if person.expert}
    low, high = min(label.scale[0] for label in found), max(label.scale[1] for label in found)
    levels = [low + step for step in range(round(high - low) + 1)]
    people = {who: _scorer(mine, units, experts) for who, mine in by_annotator(found).items()}
    return ScoreQuality(people, _coefficients(units, levels, rng, draws), levels)


def _scorer(mine: Sequence[ScoreLabel], units: Mapping[str, Sequence[ScoreLabel]], experts: set[str]) -> Scorer:
    first = [label for label in mine if not label.repeat]
    others = [(a, b) for a in first for b in units[a.unit] if b.annotator != a.annotator]
    offsets = [(a, [b.value for b in units[a.unit] if b.annotator != a.annotator]) for a in first]
    apart = [(a.value - sum(rest) / len(rest), a.prompt) for a, rest in offsets if rest]
    known = [label for label in first if label.truth is not None]
    start = {unit: found[0].value for unit, found in by_unit(mine).items()}
    return Scorer(
        len(mine),
        median(label.seconds for label in mine),
        share([(float(a.value == b.value), a.prompt) for a, b in others]),
        share([(float(a.value == b.value), a.prompt) for a, b in others if b.annotator in experts]),
        cluster_mean([value for value, _ in apart], [prompt for _, prompt in apart]) if apart else None,
        standing(sum(x.value == x.truth for x in known), len(known)) if known else None,
        share([(float(x.value == start[x.unit]), x.prompt) for x in mine if x.repeat]),
    )


def _coefficients(
    units: Mapping[str, Sequence[ScoreLabel]], levels: Sequence[float], rng: np.random.Generator, draws: int
) -> Coefficients:
    values = [[label.value for label in unit] for unit in units.values()]
    prompts = [unit[0].prompt for unit in units.values()]
    several = [unit for unit in values if len(unit) >= 2]
    if not several:
        return Coefficients(None, {}, None, None, None, {})
    alpha = {
        metric: krippendorff_interval(values, metric, prompts, rng=rng, draws=draws)
        for metric in ("nominal", "ordinal", "interval")
    }
    even = len({len(unit) for unit in several}) == 1
    return Coefficients(
        pairwise_agreement(values, prompts),
        alpha,
        gwet_ac2(values, levels),
        fleiss_kappa(several) if even else None,
        None,
        _kappas(units, levels),
    )


def _kappas(units: Mapping[str, Sequence[ScoreLabel]], levels: Sequence[float]) -> dict[tuple[str, str], float]:
    said = [{label.annotator: label.value for label in unit} for unit in units.values()]
    out = {}
    for a, b in combinations(sorted({who for unit in said for who in unit}), 2):
        both = [(unit[a], unit[b]) for unit in said if a in unit and b in unit]
        if len(both) >= SHARED:
            out[a, b] = out[b, a] = weighted_kappa([x for x, _ in both], [y for _, y in both], levels)
    return out
