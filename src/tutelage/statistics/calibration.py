"""Whether predicted probabilities mean what they say: reliability, calibration error, Brier score, temperature."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import expit, logit

from tutelage.statistics.arrays import Vector, cluster_codes, shares
from tutelage.statistics.intervals import Interval, cluster_share


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows of similar predicted probability: the mean prediction, and the share observed with its interval."""

    predicted: float
    observed: Interval


def expected_calibration_error(probabilities: ArrayLike, outcomes: ArrayLike, bins: int = 15) -> float:
    """sum_b n_b/N |mean prediction - mean outcome| over bins of equal mass (Naeini et al. 2015; Nguyen & O'Connor 2015).

    `probabilities` and `outcomes` [N] in [0, 1] (soft labels allowed). Not debiased: a perfectly calibrated model
    scores about 0.8 sqrt(bins p (1 - p) / N), not 0.
    """
    predicted, observed = _rows(probabilities, outcomes)
    place = _equal_mass_bins(predicted, bins)
    return float(np.abs(np.bincount(place, weights=predicted - observed)).sum() / len(predicted))


def reliability_curve(
    probabilities: ArrayLike, outcomes: ArrayLike, bins: int = 15, clusters: Iterable[Hashable] | None = None
) -> list[ReliabilityBin]:
    """The non-empty equal-mass bins in ascending order of prediction, each observed share clustered by `clusters`."""
    predicted, observed = _rows(probabilities, outcomes)
    place = _equal_mass_bins(predicted, bins)
    codes, _ = cluster_codes(clusters, len(predicted))
    inside = [place == b for b in np.unique(place)]
    return [ReliabilityBin(float(predicted[b].mean()), cluster_share(observed[b], codes[b])) for b in inside]


def brier(probabilities: ArrayLike, outcomes: ArrayLike) -> float:
    """Mean squared error of the probabilities (Brier 1950): 0 is perfect, 0.25 is what 'always one half' scores."""
    predicted, observed = _rows(probabilities, outcomes)
    return float(np.mean((predicted - observed) ** 2))


def fitted_temperature(probabilities: ArrayLike, outcomes: ArrayLike) -> float:
    """T that minimises the log-loss of sigma(logit(p) / T) (Guo et al. 2017, arXiv:1706.04599).

    T > 1: over-confident, T < 1: under-confident. Kept within [0.01, 100]: the lower end means that every row is
    already predicted on its right side, the upper end that the predictions carry no (or reversed) signal.
    Takes probabilities like its siblings, not log-odds; 0 and 1 are read as log-odds of -+ 36.
    """
    predicted, observed = _rows(probabilities, outcomes)
    margin = np.clip(logit(predicted), -36.0, 36.0)

    def slope(scale: float) -> float:
        """Derivative of the log-loss in 1/T: rises with 1/T, because the loss is convex in it."""
        return float(np.mean(margin * (expit(scale * margin) - observed)))

    flattest, steepest = 0.01, 100.0
    if slope(flattest) >= 0:
        return 1 / flattest
    if slope(steepest) <= 0:
        return 1 / steepest
    return 1 / cast(float, brentq(slope, flattest, steepest, xtol=1e-12))


def _rows(probabilities: ArrayLike, outcomes: ArrayLike) -> tuple[Vector, Vector]:
    predicted = shares("probabilities", probabilities)
    return predicted, shares("outcomes", outcomes, rows=len(predicted))


def _equal_mass_bins(predicted: Vector, bins: int) -> np.ndarray:
    """Bin of each row by its mean rank, so that equal predictions share a bin and row order does not matter."""
    if bins < 1:
        raise ValueError(f"bins must be at least 1; got {bins}")
    _, place, sizes = np.unique(predicted, return_inverse=True, return_counts=True)
    twice_mean_rank = (2 * np.cumsum(sizes) - sizes - 1)[place]  # ranks from 0; integers, so no bin edge is rounded
    return twice_mean_rank * bins // (2 * len(predicted))
