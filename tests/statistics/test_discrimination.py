"""The area under the curve: worked by hand, and against scikit-learn."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tutelage.statistics import auc


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
