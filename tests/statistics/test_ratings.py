"""Win rates: ties, clusters, the degenerate cases, and what matching the length removes."""

import math

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from tutelage.statistics import cluster_mean, matched_length_win_rate, wilson, win_rate
from tutelage.statistics.ratings import fit_logistic


def test_ties_count_half() -> None:
    interval = win_rate([1, 0.5, 0.5, 0, 1])
    assert interval.estimate == 0.6
    plain = cluster_mean([1, 0.5, 0.5, 0, 1])
    assert (interval.low, interval.high) == (max(0.0, plain.low), min(1.0, plain.high))


def test_win_rate_with_four_labels_a_prompt_covers_only_when_clustered() -> None:
    rng = np.random.default_rng(0)
    prompt_of = np.repeat(np.arange(60), 4)
    chance = rng.beta(2.4, 1.6, size=(1500, 60))  # mean 0.6, differs between prompts
    runs = (rng.random((1500, 240)) < chance[:, prompt_of]).astype(float)
    clustered = [win_rate(run, prompt_of) for run in runs]
    naive = [win_rate(run) for run in runs]
    assert 0.93 < np.mean([i.low <= 0.6 <= i.high for i in clustered]) < 0.97
    assert np.mean([i.low <= 0.6 <= i.high for i in naive]) < 0.90


@pytest.mark.parametrize(("outcome", "successes"), [(1.0, 50), (0.5, 25), (0.0, 0)])
def test_equal_outcomes_fall_back_to_wilson_on_the_clusters(outcome: float, successes: float) -> None:
    interval = win_rate([outcome] * 200, np.repeat(np.arange(50), 4))
    expected = wilson(successes, 50)
    assert (interval.estimate, interval.low, interval.high) == (outcome, expected.low, expected.high)
    assert (interval.n, interval.clusters) == (200, 50)


def _verbose_policy(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """A policy 30 tokens longer on average, judged by sigma(-0.4 + 2 tanh(d / 40)): worse at equal length."""
    longer = rng.normal(30, 40, size=rows)
    return (rng.random(rows) < expit(-0.4 + 2 * np.tanh(longer / 40))).astype(float), longer


@pytest.mark.slow
def test_matching_the_length_removes_what_length_won() -> None:
    wins, longer = _verbose_policy(np.random.default_rng(1), 20_000)
    assert win_rate(wins).low > 0.55
    matched = matched_length_win_rate(wins, longer, draws=50, rng=np.random.default_rng(2))
    assert matched.estimate == pytest.approx(expit(-0.4), abs=0.015)


@pytest.mark.slow
def test_matched_length_interval_covers() -> None:
    rng = np.random.default_rng(3)
    truth, covered = expit(-0.4), []
    for _ in range(100):
        wins, longer = _verbose_policy(rng, 150)
        interval = matched_length_win_rate(wins, longer, draws=100, rng=rng)
        covered.append(interval.low <= truth <= interval.high)
    assert np.mean(covered) > 0.87  # 95 % nominal; three standard errors of 100 runs are 6.5 %


def test_matched_length_clusters_by_prompt() -> None:
    wins, longer = _verbose_policy(np.random.default_rng(4), 100)
    copied = np.repeat(wins, 9), np.repeat(longer, 9)  # nine copies carry no news
    naive = matched_length_win_rate(*copied, draws=300, rng=np.random.default_rng(5))
    honest = matched_length_win_rate(*copied, np.repeat(np.arange(100), 9), draws=300, rng=np.random.default_rng(5))
    assert honest.high - honest.low == pytest.approx(3 * (naive.high - naive.low), rel=0.25)


def test_equal_lengths_give_back_the_win_rate() -> None:
    wins = [1.0, 0.0, 1.0, 0.5] * 50
    matched = matched_length_win_rate(wins, [0] * 200, draws=200, rng=np.random.default_rng(6))
    plain = win_rate(wins)
    assert matched.estimate == pytest.approx(plain.estimate, abs=1e-3)
    assert (matched.low, matched.high) == pytest.approx((plain.low, plain.high), abs=0.02)


def test_matched_length_does_not_depend_on_the_unit_of_length() -> None:
    wins, longer = _verbose_policy(np.random.default_rng(7), 200)
    tokens = matched_length_win_rate(wins, longer, draws=20, rng=np.random.default_rng(8))
    characters = matched_length_win_rate(wins, 4.3 * longer, draws=20, rng=np.random.default_rng(8))
    assert (tokens.estimate, tokens.low) == pytest.approx((characters.estimate, characters.low), abs=1e-9)


def test_separation_stays_finite() -> None:
    longer = np.concatenate([np.arange(-50, 0), np.arange(1, 51)])
    always_longer = matched_length_win_rate(longer > 0, longer, draws=100, rng=np.random.default_rng(9))
    assert always_longer.estimate == pytest.approx(0.5, abs=1e-6)  # by symmetry: length explains everything
    assert 0 < always_longer.low < 0.5 < always_longer.high < 1


def test_matched_length_without_information_says_so() -> None:
    rng = np.random.default_rng(10)
    all_won = matched_length_win_rate([1] * 30, np.arange(-15, 15), np.arange(30) % 10, rng=rng)
    assert 0.5 < all_won.low < 0.75  # Wilson on 10 clusters: 10 / (10 + z^2) = 0.72
    assert all_won.high > 0.99
    never_equal = matched_length_win_rate([1, 0, 1, 1], [20, 30, 5, 8], rng=rng)
    assert (never_equal.low, never_equal.high) == (0.0, 1.0)
    one_prompt = matched_length_win_rate([1, 0, 1, 1], [-2, 3, 5, -8], ["p"] * 4, rng=rng)
    assert one_prompt.high - one_prompt.low > 0.6


@pytest.mark.parametrize("ridge", [0.1, 5.0])
def test_fit_logistic_is_sklearn(ridge: float) -> None:
    rng = np.random.default_rng(11)
    features = np.column_stack([np.ones(80), rng.normal(size=80)])
    outcomes = (rng.random(80) < expit(features @ [0.5, -3])).astype(float)
    expected = LogisticRegression(C=1 / ridge, fit_intercept=False, tol=1e-10, max_iter=1000).fit(features, outcomes)
    assert fit_logistic(features, outcomes, ridge) == pytest.approx(expected.coef_[0], abs=1e-5)


def test_fit_logistic_reaches_the_optimum_under_separation() -> None:
    features = np.column_stack([np.ones(40), np.linspace(-1, 1, 40)])
    outcomes = (features[:, 1] > 0.9).astype(float)
    weights = fit_logistic(features, outcomes, ridge=1e-4)
    gradient = features.T @ (expit(features @ weights) - outcomes) + 1e-4 * weights
    assert np.abs(gradient).max() < 1e-7
    assert np.abs(weights).max() > 20  # far out, yet finite


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: win_rate([1, 0.25]), r"outcomes\[1\] must be 1 \(win\), 0.5 \(tie\) or 0 \(loss\); got 0.25"),
        (lambda: win_rate([]), "non-empty"),
        (lambda: matched_length_win_rate([1, 2], [1, 2], rng=np.random.default_rng(0)), r"outcomes\[1\]"),
        (lambda: matched_length_win_rate([1, 0], [1], rng=np.random.default_rng(0)), "length_difference must have"),
        (lambda: matched_length_win_rate([1, 0], [1, math.inf], rng=np.random.default_rng(0)), "finite"),
    ],
)
def test_bad_input_is_named_at_the_door(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
