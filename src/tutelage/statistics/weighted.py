"""Agreement on a scale, where being one step apart is a smaller disagreement than five: weighted kappa and Gwet's AC2."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from tutelage.statistics.agreement import Units, present

Weights = Literal["identity", "linear", "quadratic"]
POWER: dict[Weights, float] = {"linear": 1.0, "quadratic": 2.0}


def weighted_kappa(
    first: Sequence[float], second: Sequence[float], levels: Sequence[float], weights: Weights = "quadratic"
) -> float:
    """1 - sum w o / sum w e of two raters' ratings [N] of the same items (Cohen 1968); NaN where both used one same level.

    `levels`: the scale, lowest first; i and j are places on it. w = (|i - j| / (C - 1))^2, `linear` without the square,
    `identity` 1[i != j] (which is `cohen_kappa`). ValueError for ratings off the scale or lists of different length.
    """
    if len(first) != len(second) or len(first) == 0:
        raise ValueError(f"both raters must rate the same items, at least one; got {len(first)} and {len(second)}")
    places = _places(levels)
    observed = np.zeros((len(places), len(places)))
    for one, other in zip(first, second, strict=True):
        observed[_place(one, places), _place(other, places)] += 1 / len(first)
    apart = 1 - _similarity(len(places), weights)
    expected = float(np.sum(apart * np.outer(observed.sum(axis=1), observed.sum(axis=0))))
    return 1 - float(np.sum(apart * observed)) / expected if expected > 1e-12 else float("nan")


def gwet_ac2(units: Units, levels: Sequence[float], weights: Weights = "quadratic") -> float:
    """Gwet's AC2 (2014): `gwet_ac1` with partial agreement, for ratings on a scale; any number of raters per unit.

    p_a: mean over units with r >= 2 ratings of sum_c r_c (r*_c - 1) / (r (r - 1)), r*_c = sum_d w_cd r_d;
    p_e = sum_cd w_cd / (C (C - 1)) * sum_c q_c (1 - q_c). `levels`: the scale, lowest first, unused levels too.
    ValueError for ratings off the scale, or if no unit has two ratings.
    """
    places = _places(levels)
    counts = np.array([_counts(unit, places) for unit in present(units) if unit])
    ratings = counts.sum(axis=1) if len(counts) else np.zeros(0)
    if not (ratings >= 2).any():
        raise ValueError(f"agreement needs a unit with at least two ratings; got none in {len(counts)} units")
    similar = _similarity(len(places), weights)
    paired, r = counts[ratings >= 2], ratings[ratings >= 2]
    observed = float(np.mean(np.sum(paired * (paired @ similar - 1), axis=1) / (r * (r - 1))))
    prevalence = (counts / ratings[:, None]).mean(axis=0)
    categories = len(places)
    chance = float(similar.sum() * np.sum(prevalence * (1 - prevalence))) / (categories * (categories - 1))
    return (observed - chance) / (1 - chance)


def _places(levels: Sequence[float]) -> dict[float, int]:
    places = {level: place for place, level in enumerate(levels)}
    if len(places) < 2 or len(places) != len(levels):
        raise ValueError(f"levels must be at least two different numbers, lowest first; got {list(levels)}")
    return places


def _place(rating: float, places: dict[float, int]) -> int:
    if rating not in places:
        raise ValueError(f"rating {rating!r} is not on the scale; allowed: {list(places)}")
    return places[rating]


def _counts(unit: Sequence[float], places: dict[float, int]) -> np.ndarray:
    return np.bincount([_place(rating, places) for rating in unit], minlength=len(places)).astype(np.float64)


def _similarity(categories: int, weights: Weights) -> np.ndarray:
    """w [C, C]: 1 on the diagonal, falling with the distance on the scale."""
    if weights == "identity":
        return np.eye(categories)
    if weights not in POWER:
        raise ValueError(f"weights must be identity, linear or quadratic; got {weights!r}")
    place = np.arange(categories)
    return 1 - (np.abs(place[:, None] - place[None, :]) / (categories - 1)) ** POWER[weights]
