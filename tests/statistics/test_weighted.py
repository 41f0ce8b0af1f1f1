"""Agreement on a scale and what more rows would tell: by hand, by enumeration, and as scikit-learn and statsmodels say."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.proportion import proportion_confint

from tutelage.statistics import (
    clopper_pearson,
    cohen_kappa,
    gwet_ac1,
    gwet_ac2,
    needed_to_tell,
    weighted_kappa,
    wilson,
)


def ratings(seed: int, count: int = 150, levels: int = 5) -> tuple[list[float], list[float]]:
    rng = np.random.default_rng(seed)
    first = rng.integers(1, levels + 1, size=count)
    second = np.clip(first + rng.integers(-2, 3, size=count), 1, levels)
    return first.tolist(), second.tolist()


@pytest.mark.parametrize("weights", ["linear", "quadratic"])
def test_weighted_kappa_is_sklearn(weights) -> None:
    first, second = ratings(0)
    expected = cohen_kappa_score(first, second, weights=weights, labels=[1, 2, 3, 4, 5])
    assert weighted_kappa(first, second, [1, 2, 3, 4, 5], weights) == pytest.approx(expected, abs=1e-12)


def test_weighted_kappa_by_hand() -> None:
    # scale 1, 2, 3; (1,1), (1,3), (3,3), (3,2): observed distance (0 + 1 + 0 + 1/4) / 4 = 5/16
    # first: 1 and 3 half each; second: 1, 2 a quarter each, 3 half: expected 1/2 (1/4 (0 + 1/4) + 1/2) + 1/2 (1/4 + 1/16) = 7/16
    assert weighted_kappa([1, 1, 3, 3], [1, 3, 3, 2], [1, 2, 3]) == pytest.approx(1 - (5 / 16) / (7 / 16))
    first, second = ratings(1)
    plain = weighted_kappa(first, second, [1, 2, 3, 4, 5], "identity")
    assert plain == pytest.approx(cohen_kappa(first, second).kappa, abs=1e-12)


def test_ac2_with_identity_weights_is_ac1() -> None:
    units = [list(pair) for pair in zip(*ratings(2), strict=True)] + [[1], [2, 2, 3]]
    assert gwet_ac2(units, [1, 2, 3, 4, 5], "identity") == pytest.approx(gwet_ac1(units, 5), abs=1e-12)


def test_ac2_is_the_sum_over_pairs_of_raters() -> None:
    units = [[1, 2, 2], [3, 3, 1], [2], [1, 1], [3, 2, 3, 3]]

    def similar(a: float, b: float) -> float:
        return 1 - ((a - b) / 2) ** 2

    paired = [unit for unit in units if len(unit) > 1]
    each = [np.mean([similar(a, b) for a, b in itertools.permutations(unit, 2)]) for unit in paired]
    share = {level: np.mean([unit.count(level) / len(unit) for unit in units]) for level in (1, 2, 3)}
    total = sum(similar(a, b) for a in share for b in share)
    chance = total * sum(q * (1 - q) for q in share.values()) / (3 * 2)
    assert gwet_ac2(units, [1, 2, 3]) == pytest.approx((np.mean(each) - chance) / (1 - chance), abs=1e-12)


def test_clopper_pearson_golden_and_statsmodels() -> None:
    interval = clopper_pearson(77, 100)
    assert (round(interval.low, 3), round(interval.high, 3)) == (0.675, 0.848)
    for k, n in [(0, 10), (10, 10), (3, 7), (40, 1000)]:
        found, expected = clopper_pearson(k, n, 0.9), proportion_confint(k, n, 0.1, method="beta")
        assert (found.low, found.high) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("p", "threshold"), [(0.9, 0.65), (0.5, 0.65), (0.7, 0.65), (1.0, 0.5)])
def test_needed_to_tell_is_the_first_n_that_tells(p: float, threshold: float) -> None:
    needed = needed_to_tell(p, threshold)

    def tells(n: int) -> bool:
        found = wilson(p * n, n)
        return not found.low <= threshold <= found.high

    assert tells(needed)
    assert not tells(needed - 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: weighted_kappa([1], [1, 2], [1, 2]), "got 1 and 2"),
        (lambda: weighted_kappa([1], [4], [1, 2, 3]), "rating 4 is not on the scale"),
        (lambda: weighted_kappa([1], [1], [1, 1]), "levels must be at least two different"),
        (lambda: weighted_kappa([1], [1], [1, 2], "cubic"), "got 'cubic'"),
        (lambda: gwet_ac2([[1], [2]], [1, 2]), "at least two ratings"),
        (lambda: needed_to_tell(0.65, 0.65), "another threshold"),
        (lambda: clopper_pearson(3, 2), "successes=3, n=2"),
    ],
)
def test_bad_input_is_named_at_the_door(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
