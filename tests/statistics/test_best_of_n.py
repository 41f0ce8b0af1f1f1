"""Best-of-n: every subset listed, and the KL bound's golden values."""

import math
from itertools import combinations

import numpy as np
import pytest

from tutelage.statistics import best_of_n_kl_bound, best_of_n_unbiased, pass_at_k

SCORES = [0.3, 2.0, -1.0, 2.0, 0.7, 0.3, 2.0]
VALUES = [1.0, 5.0, -3.0, 0.0, 2.0, 7.0, 4.0]


@pytest.mark.parametrize("k", [1, 2, 4, 6])
@pytest.mark.parametrize("correct", [0, 1, 3, 6])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_one(correct: int, k: int) -> None:
    subsets = list(combinations([True] * correct + [False] * (6 - correct), k))
    assert pass_at_k(6, correct, k) == pytest.approx(np.mean([any(s) for s in subsets]))


@pytest.mark.parametrize("n", range(1, 8))
def test_best_of_n_is_the_mean_over_all_subsets_with_ties_shared(n: int) -> None:
    def best(subset: tuple[int, ...]) -> float:
        top = max(SCORES[i] for i in subset)
        return float(np.mean([VALUES[i] for i in subset if SCORES[i] == top]))

    expected = np.mean([best(subset) for subset in combinations(range(7), n)])
    assert best_of_n_unbiased(SCORES, VALUES, n) == pytest.approx(expected, abs=1e-12)


def test_best_of_n_with_its_own_score_rises_and_ends_at_the_extremes() -> None:
    curve = [best_of_n_unbiased(SCORES, SCORES, n) for n in range(1, 8)]
    assert curve == sorted(curve)
    assert (curve[0], curve[-1]) == pytest.approx((np.mean(SCORES), 2.0))
    assert best_of_n_unbiased([0.0] * 7, VALUES, 5) == pytest.approx(np.mean(VALUES))


def test_best_of_n_is_stable_with_many_answers() -> None:
    ranks = np.arange(1, 20_001)
    # E[max of n out of 1..M] = n (M + 1) / (n + 1)
    assert best_of_n_unbiased(ranks, ranks, 1000) == pytest.approx(1000 * 20_001 / 1001, rel=1e-10)


@pytest.mark.parametrize(
    ("n", "nats"),
    [(1, 0.0), (2, 0.193), (4, 0.636), (16, 1.835), (64, 3.175), (128, 3.860), (1024, 5.932), (60_000, 10.002)],
)
def test_kl_bound_golden(n: int, nats: float) -> None:
    assert best_of_n_kl_bound(n) == pytest.approx(nats, abs=5e-4)


def test_kl_bound_is_above_the_exact_kl_of_a_binary_reward() -> None:
    # a right answer has chance p; best-of-n is right with chance q = 1 - (1-p)^n, otherwise the policy itself
    p, n = 0.56, 16
    q = 1 - (1 - p) ** n
    exact = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    assert exact == pytest.approx(0.58, abs=5e-3)
    assert best_of_n_kl_bound(n) == pytest.approx(1.84, abs=5e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pass_at_k(5, 6, 1), "correct=6"),
        (lambda: pass_at_k(5, 2, 6), "k=6"),
        (lambda: best_of_n_unbiased([1, 2], [1, 2], 3), r"n must lie in 1..2 .*got 3"),
        (lambda: best_of_n_unbiased([1, 2], [1], 1), "values must have"),
        (lambda: best_of_n_kl_bound(0), "got 0"),
    ],
)
def test_bad_input_is_named_at_the_door(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
