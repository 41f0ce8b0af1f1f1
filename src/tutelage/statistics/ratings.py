"""How often one policy is preferred to another: win rate, and win rate at equal answer length."""

from collections.abc import Hashable, Iterable

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from tutelage.statistics.arrays import Vector, cluster_codes, shares, vector
from tutelage.statistics.intervals import Interval, cluster_bootstrap, cluster_share, wilson


def win_rate(outcomes: ArrayLike, clusters: Iterable[Hashable] | None = None, confidence: float = 0.95) -> Interval:
    """(wins + ties/2) / n over `outcomes` [N] in {1, 0.5, 0}, with a cluster-robust t interval cut to [0, 1].

    `clusters` names the prompt of each comparison. In the degenerate case (all outcomes equal, or no variance between
    clusters) the interval is not a point: it is Wilson's, with the number of clusters as sample size.
    """
    rows = vector("outcomes", outcomes)
    wrong = np.flatnonzero(~np.isin(rows, (0.0, 0.5, 1.0)))
    if wrong.size:
        raise ValueError(f"outcomes[{wrong[0]}] must be 1 (win), 0.5 (tie) or 0 (loss); got {rows[wrong[0]]}")
    return cluster_share(rows, clusters, confidence)


def matched_length_win_rate(
    outcomes: ArrayLike,
    length_difference: ArrayLike,
    clusters: Iterable[Hashable] | None = None,
    *,
    rng: np.random.Generator,
    draws: int = 1000,
    confidence: float = 0.95,
) -> Interval:
    """Win rate had both answers been of equal length (the length term of AlpacaEval-LC, arXiv:2404.04475).

    Fits P(win) = sigma(a + b tanh(d / sd(d))) to `outcomes` [N] in [0, 1] (ties and soft labels allowed) and
    `length_difference` [N] (ours minus theirs, any unit), and returns sigma(a) with a cluster-bootstrap interval.
    A ridge on a and b, worth a normal prior of sd 3.2 log-odds, keeps the fit finite under separation.

    Two cases have no bootstrap interval. All outcomes equal or a single cluster: Wilson's around the estimate, with the
    number of clusters as sample size. Every difference of one sign: equal length lies outside the data, so the estimate
    is an extrapolation and the interval is [0, 1].
    """
    wins = shares("outcomes", outcomes)
    longer = vector("length_difference", length_difference, rows=len(wins))
    codes, groups = cluster_codes(clusters, len(wins))
    rows = np.column_stack([wins, np.tanh(longer / (longer.std() or 1.0))])
    if longer.min() > 0 or longer.max() < 0:
        return Interval(_rate_at_zero(rows), 0.0, 1.0, len(wins), groups)
    if np.ptp(wins) == 0 or groups == 1:
        around = wilson(_rate_at_zero(rows) * groups, groups, confidence)
        return Interval(around.estimate, around.low, around.high, len(wins), groups)
    return cluster_bootstrap(rows, codes, _rate_at_zero, draws, rng=rng, confidence=confidence)


def _rate_at_zero(rows: np.ndarray, ridge: float = 0.1) -> float:
    """sigma(intercept) of the logistic regression of column 0 (outcome) on column 1 (covariate)."""
    features = np.column_stack([np.ones(len(rows)), rows[:, 1]])
    return float(expit(fit_logistic(features, rows[:, 0], ridge)[0]))


def fit_logistic(features: np.ndarray, outcomes: Vector, ridge: float) -> Vector:
    """argmin_w sum_i log-loss(outcome_i, sigma(x_i w)) + ridge/2 |w|^2 by Newton with step halving.

    `features` [N, D], `outcomes` [N] in [0, 1]; the ridge (> 0) covers every column, an intercept too, so that the
    minimum exists and is unique whatever the data.
    """
    assert ridge > 0
    weights = np.zeros(features.shape[1])

    def loss(w: Vector) -> float:
        logits = features @ w
        return float(np.sum(np.logaddexp(0.0, logits) - outcomes * logits) + ridge / 2 * w @ w)

    for _ in range(100):
        predicted = expit(features @ weights)
        gradient = features.T @ (predicted - outcomes) + ridge * weights
        curvature = (features.T * (predicted * (1 - predicted))) @ features + ridge * np.eye(len(weights))
        step = np.linalg.solve(curvature, gradient)
        decrement = float(gradient @ step)
        if decrement < 1e-6:  # one full step from here is exact to about 1e-12, and below what `loss` can resolve
            return weights - step
        size = 1.0
        while loss(weights - size * step) > loss(weights) - 0.25 * size * decrement:
            size /= 2
        weights = weights - size * step
    raise AssertionError("Newton with step halving converges on a strictly convex loss")
