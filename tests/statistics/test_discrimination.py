"""The area under the curve: worked by hand, and against scikit-learn."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tutelage.statistics import auc, auc_interval, wilson


def test_by_hand():
    # positives 3 and 1 against negatives 2 and 1: 3 > 2, 3 > 1, 1 < 2, 1 = 1: (1 + 1 + 0 + 1/2) / 4
    assert auc([3, 2, 1, 1], [1, 0, 1, 0]) == 0.625
    assert auc([1, 1], [0, 1]) == 0.5
    assert math.isnan(auc([1, 2], [1, 1]))


def test_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 9, 200).astype(float), rng.integers(0, 2, 200)
    assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    assert auc(-scores, labels) == pytest.approx(1 - auc(scores, labels))


def test_labels_that_do_not_go_with_the_scores():
    with pytest.raises(ValueError, match="labels"):
        auc([1.0, 2.0], [1])


@pytest.mark.slow
def test_the_interval_covers_and_is_clustered():
    """Two normals one apart: AUC = Phi(1 / sqrt 2) = 0.760. Rows repeated fivefold in a cluster say no more than one."""
    rng, covered = np.random.default_rng(1), 0
    for _ in range(15):
        labels = np.repeat([0, 1], 40)
        scores = rng.normal(size=80) + labels
        found = auc_interval(scores, labels, rng=np.random.default_rng(0))
        covered += found.low < 0.760 < found.high
    assert covered >= 12
    clustered = auc_interval(np.repeat(scores, 5), np.repeat(labels, 5), np.repeat(np.arange(80), 5), rng=rng)
    assert clustered.high - clustered.low == pytest.approx(found.high - found.low, rel=0.1)


def test_no_certainty_from_a_few_rows():
    found = auc_interval([1, 2, 3, 4, 5], [0, 0, 0, 1, 1], rng=np.random.default_rng(0))
    assert (found.estimate, found.high) == (1.0, 1.0)
    assert found.low == wilson(2, 2).low < 0.4
