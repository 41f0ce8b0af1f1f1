"""How well scores tell two kinds of rows apart."""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from tutelage.statistics.arrays import vector


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
