"""Mean scores and their intervals, by hand."""

from __future__ import annotations

import pytest

from tutelage.evaluation.winrate import mean_score
from tutelage.statistics import wilson


def test_right_and_wrong_is_a_share() -> None:
    """0 of 48 right: Wilson's interval, not one of no width; 1 of 150 twice: not below 0."""
    none = mean_score([[0.0]] * 48)
    assert (none.estimate, none.low) == (0, 0)
    assert none.high == pytest.approx(wilson(0, 48).high) == pytest.approx(0.0741, abs=1e-4)
    few = mean_score([[1.0, 1.0]] + [[0.0, 0.0]] * 149)
    assert few.estimate == pytest.approx(1 / 150)
    assert few.low == 0
    assert few.clusters == 150


def test_other_scores_are_not_cut() -> None:
    """Two prompts, means -1 and 1.5: 0.25 -+ 12.7 (t with one degree of freedom) times 1.25."""
    found = mean_score([[-1.0, -1.0], [2.0, 1.0]])
    assert found.estimate == 0.25
    assert found.low == pytest.approx(0.25 - 12.7062 * 1.25, abs=1e-3)
    assert mean_score([[1.0], [0.5]]).high > 1
