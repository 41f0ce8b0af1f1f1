"""One annotator's labels of pairs: agreement with experts and peers, known answers, side, length, ties, repeats, drift."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Any, Literal

import numpy as np
from scipy.stats import binomtest, spearmanr

from tutelage.feedback.pair_labels import PairLabel, by_unit
from tutelage.statistics import Interval, cluster_mean, cluster_share, needed_to_tell, wilson

THRESHOLD, LEAST = 0.65, 30
"""An annotator is shown to be good enough when the lower bound of the agreement is at least this, on so many labels."""
Light = Literal["green", "amber", "red"]
Rows = Sequence[tuple[float, str]]
"""(a share of one label, its prompt)."""


@dataclass(frozen=True)
class Agreement:
    """One label against another, three ways: where both decide; a tie counts half; the tie is a class of its own."""

    decided: Interval | None
    ties_half: Interval | None
    three_classes: Interval | None


@dataclass(frozen=True)
class Standing:
    """Whether an annotator is good enough: `needed` more known answers would tell, if the share stays (0: it is told)."""

    share: Interval
    light: Light
    needed: int
    threshold: float

    @property
    def passed(self) -> bool:
        """Whether the qualification is passed."""
        return self.light == "green"


@dataclass(frozen=True)
class AnnotatorQuality:
    """What one annotator's labels of pairs show; None where there is nothing to tell it from."""

    judged: int
    median_seconds: float
    experts: Agreement
    peers: Interval | None
    """Mean agreement with everybody else on the same pairs, ties half."""
    checks: Standing | None
    first_shown: Interval | None
    """Share of decided pairs where what stood first was preferred."""
    side_p: float | None
    """Two-sided binomial p of that share against 1/2 (for single pairs; pairs of one ranking are not independent)."""
    longer: Interval | None
    """Share of decided pairs where the longer answer was preferred."""
    ties: Interval
    both_bad: Interval
    repeats: Interval | None
    """Share of repeated pairs that got the same label, ties half."""
    drift: Interval | None
    """Agreement with peers in the later half of the judgments minus that in the earlier half."""
    speed: float | None
    """Spearman correlation of time taken and agreement with peers."""


def annotator_quality(
    mine: Sequence[PairLabel], units: Mapping[str, Sequence[PairLabel]], experts: set[str]
) -> AnnotatorQuality:
    """The quality of the annotator who gave the labels `mine`, beside what all others said of the same pairs (`units`)."""
    first = [label for label in mine if not label.repeat]
    decided = [label for label in first if label.decided]
    known = [label for label in first if label.truth is not None]
    sided = [label for label in decided if label.first_shown is not None]
    sides = [(float((label.said == "first") == label.first_shown), label.prompt) for label in sided]
    longer = [(float((label.said == "first") == (label.longer > 0)), label.prompt) for label in decided if label.longer]
    compared = [(agreed, label) for label in first if (agreed := _with_peers(label, units)) is not None]
    single = len({label.item for label in sided}) == len(sided)
    return AnnotatorQuality(
        judged=len({label.item for label in mine}),
        median_seconds=median(label.seconds for label in mine),
        experts=agreement([(a, b) for a in first for b in units[a.unit] if b.annotator in experts and _apart(a, b)]),
        peers=share([(agreed, label.prompt) for agreed, label in compared]),
        checks=_standing_of(known),
        first_shown=share(sides),
        side_p=float(binomtest(int(sum(s for s, _ in sides)), len(sides)).pvalue) if sides and single else None,
        longer=share(longer),
        ties=_rate(first, "tie"),
        both_bad=_rate(first, "both_bad"),
        repeats=_repeats(mine),
        drift=difference(*_halves(compared)),
        speed=_speed(compared),
    )


def agreement(rows: Sequence[tuple[PairLabel, PairLabel]]) -> Agreement:
    """Labels of the same pairs by two people each, with intervals clustered by prompt. "Both bad" counts as a tie here."""
    decided = [(a, b) for a, b in rows if a.decided and b.decided]
    return Agreement(
        share([(float(a.said == b.said), a.prompt) for a, b in decided]),
        share([(1 - abs(a.outcome - b.outcome), a.prompt) for a, b in rows]),
        share([(float(a.outcome == b.outcome), a.prompt) for a, b in rows]),
    )


def expert_agreement(units: Mapping[str, Sequence[PairLabel]], experts: set[str]) -> tuple[Agreement, Agreement]:
    """(labellers with experts, experts with each other), every label with every other of the same pair."""
    crossed = [(a, b) for unit in units.values() for a, b in product(unit, unit) if b.annotator in experts]
    return (
        agreement([(a, b) for a, b in crossed if a.annotator not in experts]),
        agreement([(a, b) for a, b in crossed if a.annotator in experts and a.annotator < b.annotator]),
    )


def standing(right: float, total: int, threshold: float = THRESHOLD, least: int = LEAST) -> Standing:
    """Green: at least `least` known answers and Wilson's lower bound at `threshold` or above; red: the upper bound below.

    The rule of a qualification test. `needed`: how many more at the same share would turn amber into green or red.
    """
    found = wilson(right, total)
    if found.high < threshold:
        return Standing(found, "red", 0, threshold)
    if found.low >= threshold and total >= least:
        return Standing(found, "green", 0, threshold)
    nearest = found.estimate if found.estimate != threshold else threshold + 0.01
    wanted = max(needed_to_tell(nearest, threshold), least if nearest > threshold else 0)
    return Standing(found, "amber", max(1, wanted - total), threshold)


def share(rows: Rows) -> Interval | None:
    """Mean of shares with an interval clustered by prompt; None without rows."""
    return cluster_share([value for value, _ in rows], [prompt for _, prompt in rows]) if rows else None


def difference(before: Rows, after: Rows) -> Interval | None:
    """Mean of `after` minus mean of `before`, of different labels; None where a side has fewer than two prompts."""
    sides = [cluster_mean([v for v, _ in rows], [p for _, p in rows]) for rows in (before, after) if rows]
    if len(sides) < 2 or min(side.clusters for side in sides) < 2:
        return None
    middle = sides[1].estimate - sides[0].estimate
    half = math.hypot(*((side.high - side.low) / 2 for side in sides))
    return Interval(
        middle, middle - half, middle + half, sides[0].n + sides[1].n, sides[0].clusters + sides[1].clusters
    )


def rolling(labels: Sequence[PairLabel], units: Mapping[str, Sequence[PairLabel]], window: int = 30) -> list[float]:
    """Agreement with peers over the last `window` compared labels, label by label in time."""
    found = [agreed for label in labels if not label.repeat and (agreed := _with_peers(label, units)) is not None]
    sums = np.cumsum([0.0, *found])
    return [
        (sums[i] - sums[max(0, i - window)]) / min(i, window) for i in range(min(window, len(found)) or 1, len(sums))
    ]


def _apart(a: PairLabel, b: PairLabel) -> bool:
    return a.annotator != b.annotator


def _with_peers(label: PairLabel, units: Mapping[str, Sequence[PairLabel]]) -> float | None:
    others = [other.outcome for other in units[label.unit] if _apart(label, other)]
    return 1 - sum(abs(label.outcome - other) for other in others) / len(others) if others else None


def _standing_of(known: Sequence[PairLabel]) -> Standing | None:
    """A known answer counts as right when the label is exactly it."""
    return standing(sum(label.said == label.truth for label in known), len(known)) if known else None


def _rate(labels: Sequence[PairLabel], said: str) -> Interval:
    found = share([(float(label.said == said), label.prompt) for label in labels])
    assert found is not None, "an annotator has labels"
    return found


def _repeats(mine: Sequence[PairLabel]) -> Interval | None:
    first = {unit: labels[0] for unit, labels in by_unit(mine).items()}
    again = [(label, first[label.unit]) for label in mine if label.repeat]
    return share([(1 - abs(a.outcome - b.outcome), a.prompt) for a, b in again])


def _halves(compared: Sequence[tuple[float, PairLabel]]) -> tuple[Rows, Rows]:
    rows = [(agreed, label.prompt) for agreed, label in compared]
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def _speed(compared: Sequence[tuple[float, PairLabel]]) -> float | None:
    agreed, seconds = [a for a, _ in compared], [label.seconds for _, label in compared]
    if len(set(agreed)) < 2 or len(set(seconds)) < 2:
        return None
    rho: Any = spearmanr(seconds, agreed)
    return float(rho.statistic)
