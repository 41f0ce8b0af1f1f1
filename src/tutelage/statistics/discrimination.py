"""How well scores tell two kinds of rows apart."""

import math
from collections.abc import Hashable, Iterable

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from tutelage.statistics.arrays import cluster_codes, vector
from tutelage.statistics.intervals import Interval, cluster_bootstrap, wilson


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """P(a positive scores higher than a negative), ties 1/2: the area under the ROC curve, of `scores` [N] and `labels` [N].

    Mann and Whitney's U over the number of pairs. Labels are 0 or 1; NaN where all of them are equal.
    """
    rows = vector("scores", scores)
    positive = vector("labels", labels, rows=len(rows)) > 0.5
    count, others = int(positive.sum()), int((~positive).sum())
    if not count or not others:
        return math.nan
    ranks = np.asarray(rankdata(rows))
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * others))


def auc_interval(
    scores: ArrayLike,
    labels: ArrayLike,
    clusters: Iterable[Hashable] | None = None,
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
) -> Interval:
    """`auc` with a percentile interval, whole clusters drawn with replacement.

    Where no draw differs (all pairs ranked right, or all wrong) the bootstrap would claim certainty: then Wilson's interval
    with the number of clusters of the rarer label as sample size. Bounds are NaN where all labels are equal.
    """
    rows = np.stack([vector("scores", scores), vector("labels", labels)], axis=1)
    codes, _ = cluster_codes(clusters, len(rows))
    found = cluster_bootstrap(rows, codes, lambda x: auc(x[:, 0], x[:, 1]), rng=rng, confidence=confidence)
    if found.high - found.low < 1e-9:
        rarer = min(len(np.unique(codes[rows[:, 1] == label])) for label in (0, 1))
        bounds = wilson(found.estimate * rarer, rarer, confidence)
        return Interval(found.estimate, bounds.low, bounds.high, found.n, found.clusters)
    return found
