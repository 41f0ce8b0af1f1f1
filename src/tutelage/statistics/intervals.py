"""Estimates with honest intervals: shares, cluster-robust means, the cluster bootstrap.

Rows that share a prompt (K-choose-2 pairs of one ranking, several labels of one item) are not independent: name the
prompt as the cluster, or a nominal 95 % interval covers about 86-90 %.
"""

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv, ndtri, stdtrit

from tutelage.statistics.arrays import cluster_codes, shares, vector


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided confidence bounds; `n` rows in `clusters` independent clusters."""

    estimate: float
    low: float
    high: float
    n: int
    clusters: int

    def __str__(self) -> str:
        """`0.66 [0.61, 0.71] (n=200)`; with clusters `(n=800, clusters=200)`; narrow intervals get more decimals."""
        width = self.high - self.low
        digits = max(2, math.ceil(-math.log10(width / 3))) if 0 < width < math.inf else 2
        size = f"n={self.n}" if self.clusters == self.n else f"n={self.n}, clusters={self.clusters}"
        return f"{self.estimate:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}] ({size})"


def wilson(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a share (JASA 22, 1927): never leaves [0, 1], never has zero width.

    `successes` may be fractional (a tie counts 1/2). ValueError unless 0 <= successes <= n and n >= 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"wilson needs 0 <= successes <= n and n >= 1; got successes={successes}, n={n}")
    z2 = _normal_quantile(confidence) ** 2
    share = successes / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # the bounds are exact at the ends (0 of n has low 0); min and max remove the last rounding error only
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)), n, n)


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """The exact binomial interval (Biometrika 26, 1934): covers at least `confidence` whatever the truth, so it is wide."""
    if n < 1 or not 0 <= successes <= n or successes != int(successes):
        raise ValueError(f"clopper_pearson needs whole 0 <= successes <= n, n >= 1; got successes={successes}, n={n}")
    tail = 1 - _upper(confidence)
    low = float(betaincinv(successes, n - successes + 1, tail)) if successes > 0 else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return Interval(successes / n, low, high, n, n)


def needed_to_tell(p: float, threshold: float, confidence: float = 0.95) -> int:
    """Independent rows after which a share that stays at `p` has a Wilson interval without `threshold` in it.

    Wilson's interval is the set of thresholds that the score test keeps, so n = z^2 t (1 - t) / (p - t)^2, exactly.
    ValueError for a threshold outside (0, 1) or equal to `p`, which no number of rows tells apart.
    """
    if not (0 < threshold < 1 and 0 <= p <= 1) or p == threshold:
        raise ValueError(f"needs p in [0, 1] and another threshold in (0, 1); got p={p}, threshold={threshold}")
    return math.floor(_normal_quantile(confidence) ** 2 * threshold * (1 - threshold) / (p - threshold) ** 2) + 1


def needed_for_half_width(p: float, half_width: float, confidence: float = 0.95) -> int:
    """Independent rows needed so that a share near `p` has a normal interval of +- `half_width`: z^2 p (1 - p) / h^2."""
    if not 0 < p < 1 or half_width <= 0:
        raise ValueError(f"p must lie in (0, 1) and half_width be positive; got p={p}, half_width={half_width}")
    return math.ceil(_normal_quantile(confidence) ** 2 * p * (1 - p) / half_width**2)


def cluster_mean(values: ArrayLike, clusters: Iterable[Hashable] | None = None, confidence: float = 0.95) -> Interval:
    """Mean of `values` [N] with a cluster-robust interval.

    Sandwich with residual sums S_g per cluster: Var = G/(G-1) sum_g S_g^2 / N^2, and the t quantile with G-1 degrees of
    freedom (Liang & Zeger 1986 with the CR1 small-sample factor). Without clusters: the usual t interval.
    One cluster says nothing about the spread: its bounds are infinite. Rows without any variation give zero width, since
    an unbounded quantity has no better guess; for shares use `cluster_share`, which does not.
    """
    rows = vector("values", values)
    codes, groups = cluster_codes(clusters, len(rows))
    mean = float(rows.mean())
    if groups == 1:
        return Interval(mean, -math.inf, math.inf, len(rows), groups)
    residual_sums = np.bincount(codes, weights=rows - mean, minlength=groups)
    error = math.sqrt(groups / (groups - 1) * float(residual_sums @ residual_sums)) / len(rows)
    half = float(stdtrit(groups - 1, _upper(confidence))) * error
    return Interval(mean, mean - half, mean + half, len(rows), groups)


def cluster_share(values: ArrayLike, clusters: Iterable[Hashable] | None = None, confidence: float = 0.95) -> Interval:
    """`cluster_mean` for numbers in [0, 1]: bounds cut to [0, 1], and never of zero width.

    Where the sandwich sees no variance between clusters (all outcomes equal, every cluster balanced alike, or a single
    cluster) it falls back to Wilson's interval around the same share, with the number of clusters as sample size.
    """
    rows = shares("values", values)
    codes, groups = cluster_codes(clusters, len(rows))
    interval = cluster_mean(rows, codes, confidence)
    if groups == 1 or interval.high - interval.low < 1e-9:
        interval = wilson(min(interval.estimate, 1.0) * groups, groups, confidence)
    low, high = max(0.0, interval.low), min(1.0, interval.high)
    return Interval(interval.estimate, low, high, len(rows), groups)


def paired_difference(
    a: ArrayLike, b: ArrayLike, clusters: Iterable[Hashable] | None = None, confidence: float = 0.95
) -> Interval:
    """Interval of mean(a - b), row i of `a` and of `b` [N] being the same item under two treatments."""
    first = vector("a", a)
    return cluster_mean(first - vector("b", b, rows=len(first)), clusters, confidence)


def cluster_bootstrap(
    values: ArrayLike,
    clusters: Iterable[Hashable] | None = None,
    statistic: Callable[[np.ndarray], float] = np.mean,
    draws: int = 2000,
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
) -> Interval:
    """Percentile interval of any statistic of the rows of `values` [N, ...], whole clusters drawn with replacement.

    For statistics without a formula; a mean has `cluster_mean`, which is better with fewer than about 30 clusters.
    Draws on which the statistic is undefined (NaN) are left out; undefined on the data itself, the bounds are NaN.
    """
    rows = np.asarray(values)
    if rows.ndim == 0 or len(rows) == 0 or draws < 1:
        raise ValueError(f"cluster_bootstrap needs rows and draws >= 1; got shape {rows.shape}, draws={draws}")
    codes, groups = cluster_codes(clusters, len(rows))
    estimate = float(statistic(rows))
    if math.isnan(estimate):
        return Interval(estimate, math.nan, math.nan, len(rows), groups)
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    replicates = np.array([statistic(rows[_redraw(members, rng)]) for _ in range(draws)], dtype=np.float64)
    low, high = percentiles(replicates[:, None], confidence)
    return Interval(estimate, float(low[0]), float(high[0]), len(rows), groups)


def percentiles(replicates: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Two-sided bounds [D] of bootstrap replicates [draws, D]; undefined (NaN) replicates are left out."""
    bounds = []
    for column in np.asarray(replicates, dtype=np.float64).T:
        defined = column[~np.isnan(column)]
        ends = [1 - _upper(confidence), _upper(confidence)]
        bounds.append(np.quantile(defined, ends) if defined.size else np.full(2, math.nan))
    low_high = np.array(bounds).reshape(-1, 2)
    return low_high[:, 0], low_high[:, 1]


def _redraw(members: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    picks = rng.integers(len(members), size=len(members))
    return np.concatenate([members[pick] for pick in picks])


def _upper(confidence: float) -> float:
    """Upper-tail probability level of a two-sided interval: 0.95 -> 0.975."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1); got {confidence}")
    return (1 + confidence) / 2


def _normal_quantile(confidence: float) -> float:
    return float(ndtri(_upper(confidence)))
