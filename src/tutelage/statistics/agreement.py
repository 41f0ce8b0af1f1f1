"""How far annotators agree: chance-corrected coefficients, agreement of pairs, and the ceiling it sets.

`units` is one list of ratings per item, in any order and of any length; None or NaN is a missing rating.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from numbers import Real
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tutelage.statistics.arrays import Vector
from tutelage.statistics.intervals import Interval, cluster_bootstrap, cluster_share

Units = Iterable[Iterable[Any]]
Metric = Literal["nominal", "ordinal", "interval", "ratio"]


class Kappa(NamedTuple):
    """Cohen's kappa and its large-sample standard error."""

    kappa: float
    standard_error: float


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> Kappa:
    """(p_o - p_e) / (1 - p_e) of two raters' labels [N] of the same items (Cohen 1960).

    Standard error away from zero agreement: Fleiss, Cohen & Everitt 1969. NaN where both used one same label.
    """
    if len(first) != len(second) or len(first) == 0:
        raise ValueError(f"both raters must label the same items, at least one; got {len(first)} and {len(second)}")
    names = {label: code for code, label in enumerate(dict.fromkeys([*first, *second]))}
    table = np.zeros((len(names), len(names)))
    for one, other in zip(first, second, strict=True):
        table[names[one], names[other]] += 1 / len(first)
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    chance = float(rows @ columns)
    if chance > 1 - 1e-12:
        return Kappa(math.nan, math.nan)
    kappa = float((np.trace(table) - chance) / (1 - chance))
    agreeing = np.sum(np.diag(table) * (1 - (rows + columns) * (1 - kappa)) ** 2)
    crossed = table * (columns[:, None] + rows[None, :]) ** 2
    disagreeing = (1 - kappa) ** 2 * (crossed.sum() - np.trace(crossed))
    variance = agreeing + disagreeing - (kappa - chance * (1 - kappa)) ** 2
    return Kappa(kappa, math.sqrt(max(0.0, float(variance)) / len(first)) / (1 - chance))


def krippendorff_alpha(units: Units, metric: Metric = "nominal") -> float:
    """1 - observed / expected disagreement, any number of raters, ratings may be missing (Krippendorff 2011).

    Squared distances: nominal 1[c != k]; ordinal by ranks; interval (c - k)^2; ratio ((c - k) / (c + k))^2. Ratings are
    numbers except for nominal. NaN where all ratings are one value. ValueError if no unit has two ratings.
    """
    return _alpha(*_alpha_counts(units, metric), metric)


def krippendorff_interval(
    units: Units,
    metric: Metric = "nominal",
    clusters: Iterable[Hashable] | None = None,
    *,
    rng: np.random.Generator,
    draws: int = 1000,
    confidence: float = 0.95,
) -> Interval:
    """`krippendorff_alpha` with a bootstrap over whole units (never single ratings), or over `clusters` of units."""
    counts, values = _alpha_counts(units, metric)

    def alpha(rows: np.ndarray) -> float:
        return _alpha(rows, values, metric)

    return cluster_bootstrap(counts, clusters, alpha, draws, rng=rng, confidence=confidence)


def fleiss_kappa(units: Units) -> float:
    """Chance-corrected agreement of several raters, equally many per unit (Fleiss 1971). NaN if all ratings are alike."""
    counts, _ = category_counts(units)
    ratings = counts.sum(axis=1)
    if ratings.min() != ratings.max():
        raise ValueError(
            f"fleiss_kappa needs equally many ratings per unit; got {ratings.min():g} to {ratings.max():g}"
        )
    chance = float(np.sum((counts.sum(axis=0) / counts.sum()) ** 2))
    observed = float(_agreeing_share(counts).mean())
    return (observed - chance) / (1 - chance) if chance < 1 - 1e-12 else math.nan


def gwet_ac1(units: Units, categories: int | None = None) -> float:
    """Agreement that does not collapse when one label is rare (Gwet 2008): p_e = sum_c q_c (1 - q_c) / (C - 1).

    `categories` is how many labels were on offer, by default those seen (at least 2). With two: p_e = 2 q (1 - q).
    """
    counts, seen = category_counts(units)
    offered = max(2, len(seen)) if categories is None else categories
    if offered < max(2, len(seen)):
        raise ValueError(f"categories must be at least 2 and at least the {len(seen)} labels seen; got {categories}")
    prevalence = (counts / counts.sum(axis=1, keepdims=True)).mean(axis=0)
    chance = float(np.sum(prevalence * (1 - prevalence))) / (offered - 1)
    return (float(_agreeing_share(counts).mean()) - chance) / (1 - chance)


def kendall_w(rankings: ArrayLike) -> float:
    """Concordance of m raters who each rank or score the same n items: `rankings` [m, n], ties share their mean rank.

    W = 12 S / (m^2 (n^3 - n) - m sum_j T_j), T_j = sum of t^3 - t over rater j's ties (Kendall & Smith 1939): 1 for
    identical rankings. NaN where every rater ties every item.
    """
    scores = np.asarray(rankings, dtype=np.float64)
    if scores.ndim != 2 or min(scores.shape) < 2 or not np.isfinite(scores).all():
        raise ValueError(f"rankings must be finite numbers [raters >= 2, items >= 2]; got shape {scores.shape}")
    raters, items = scores.shape
    totals, tied = np.zeros(items), 0.0
    for row in scores:
        _, place, sizes = np.unique(row, return_inverse=True, return_counts=True)
        totals += (np.cumsum(sizes) - (sizes - 1) / 2)[place]
        tied += float(np.sum(sizes.astype(np.float64) ** 3 - sizes))
    most = raters**2 * (items**3 - items) - raters * tied
    return 12 * float(np.sum((totals - totals.mean()) ** 2)) / most if most > 0 else math.nan


def pairwise_agreement(units: Units, clusters: Sequence[Hashable] | None = None, confidence: float = 0.95) -> Interval:
    """Mean over items of the share of annotator pairs that agree on it; items with fewer than two ratings are left out.

    Items are the clusters, unless `clusters` names a coarser one per item (its prompt). `n` counts items.
    """
    rated = present(units)
    if clusters is not None and len(clusters) != len(rated):
        raise ValueError(f"clusters must have one label per unit ({len(rated)}); got {len(clusters)}")
    counts, _ = category_counts(rated)
    labels = None if clusters is None else [c for unit, c in zip(rated, clusters, strict=True) if len(unit) >= 2]
    return cluster_share(_agreeing_share(counts), labels, confidence)


def label_ceiling(agreement: float) -> float:
    """Best accuracy that labels with this pairwise agreement a allow a model to show: (1 + sqrt(2a - 1)) / 2.

    An upper bound: it assumes two labels and items of equal difficulty, where a = q^2 + (1 - q)^2 for single-label
    accuracy q. With unequal difficulty the truth is lower (half the items at q = .55 and half at .98 give .841, the
    truth is .765). Agreement at or below one half is no better than coin flips: 0.5.
    """
    if not 0 <= agreement <= 1:
        raise ValueError(f"agreement must lie in [0, 1]; got {agreement}")
    return (1 + math.sqrt(max(0.0, 2 * agreement - 1))) / 2


def category_counts(units: Units) -> tuple[np.ndarray, list[Any]]:
    """How many raters put each unit in each category [U, C] (units with at least one rating), and the C categories."""
    kept = [unit for unit in present(units) if unit]
    codes = {label: code for code, label in enumerate(dict.fromkeys(rating for unit in kept for rating in unit))}
    counts = np.zeros((len(kept), len(codes)))
    for row, unit in zip(counts, kept, strict=True):
        for rating in unit:
            row[codes[rating]] += 1
    if not (counts.sum(axis=1) >= 2).any():
        raise ValueError(f"agreement needs a unit with at least two ratings; got none in {len(kept)} units")
    return counts, list(codes)


def present(units: Units) -> list[list[Any]]:
    """Each unit without its missing ratings."""
    return [[rating for rating in unit if rating is not None and rating == rating] for unit in units]  # NaN != NaN


def _agreeing_share(counts: np.ndarray) -> Vector:
    """Share of ordered rater pairs that agree, for each unit with at least two ratings."""
    paired = counts[counts.sum(axis=1) >= 2]
    ratings = paired.sum(axis=1)
    return (paired * (paired - 1)).sum(axis=1) / (ratings * (ratings - 1))


def _alpha_counts(units: Units, metric: Metric) -> tuple[np.ndarray, Vector]:
    """Counts [U, C] with the categories in ascending order, and their numbers (nominal: any order, 0..C-1)."""
    counts, labels = category_counts(units)
    if metric == "nominal":
        return counts, np.arange(len(labels), dtype=np.float64)
    if metric not in ("ordinal", "interval", "ratio"):
        raise ValueError(f"metric must be nominal, ordinal, interval or ratio; got {metric!r}")
    strange = [label for label in labels if not (isinstance(label, Real) and math.isfinite(label))]
    if strange or (metric == "ratio" and min(labels) < 0):
        raise ValueError(
            f"{metric} ratings must be finite numbers (ratio: not negative); got {(strange or labels)[:5]}"
        )
    order = np.argsort(np.array(labels, dtype=np.float64))
    return counts[:, order], np.array(labels, dtype=np.float64)[order]


def _alpha(counts: np.ndarray, values: Vector, metric: Metric) -> float:
    paired = counts[counts.sum(axis=1) >= 2]
    scaled = paired / (paired.sum(axis=1, keepdims=True) - 1)
    coincidence = scaled.T @ paired - np.diag(scaled.sum(axis=0))
    totals = coincidence.sum(axis=0)
    distance = _squared_distance(values, totals, metric)
    expected = float(totals @ distance @ totals) / (totals.sum() - 1) if len(paired) else 0.0
    return 1 - float(np.sum(coincidence * distance)) / expected if expected > 0 else math.nan


def _squared_distance(values: Vector, totals: Vector, metric: Metric) -> np.ndarray:
    low, high = values[:, None], values[None, :]
    if metric == "nominal":
        return (low != high).astype(np.float64)
    if metric == "interval":
        return (low - high) ** 2
    if metric == "ratio":
        total = np.where(low + high == 0, 1.0, low + high)  # both zero: the distance is zero
        return ((low - high) / total) ** 2
    mean_rank = np.cumsum(totals) - totals / 2  # sum_{g=c}^{k} n_g - (n_c + n_k) / 2 is the difference of mean ranks
    return (mean_rank[:, None] - mean_rank[None, :]) ** 2
