"""Intervals: golden values, agreement with statsmodels, and coverage on pairs that share a prompt."""

import math

import numpy as np
import pytest
import statsmodels.api as sm
from statsmodels.stats.proportion import proportion_confint

from tutelage.statistics import (
    Interval,
    cluster_bootstrap,
    cluster_mean,
    cluster_share,
    needed_for_half_width,
    paired_difference,
    wilson,
)


def test_wilson_golden() -> None:
    interval = wilson(77, 100)
    assert (round(interval.low, 3), round(interval.high, 3)) == (0.678, 0.842)
    assert (interval.estimate, interval.n, interval.clusters) == (0.77, 100, 100)


@pytest.mark.parametrize("successes", [0, 1, 7, 20])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_wilson_is_statsmodels(successes: int, confidence: float) -> None:
    expected = proportion_confint(successes, 20, alpha=1 - confidence, method="wilson")
    interval = wilson(successes, 20, confidence)
    assert (interval.low, interval.high) == pytest.approx(expected, abs=1e-12)


def test_wilson_at_the_ends_touches_them_and_keeps_its_width() -> None:
    assert (wilson(0, 10).low, wilson(10, 10).high) == (0.0, 1.0)
    assert wilson(10, 10).low == pytest.approx(10 / (10 + 1.959964**2), abs=1e-6)  # n / (n + z^2), by hand


@pytest.mark.parametrize(("half_width", "rows"), [(0.01, 7572), (0.015, 3366), (0.02, 1893), (0.03, 842), (0.04, 474)])
def test_needed_for_half_width_golden(half_width: float, rows: int) -> None:
    assert needed_for_half_width(0.73, half_width) == rows


def test_cluster_mean_by_hand() -> None:
    # clusters {1, 0}, {1, 1}, {0, 0}, mean 1/2: residual sums 0, 1, -1; variance 3/2 * 2 / 36 = 1/12; t(2, .975) = 4.302653
    interval = cluster_mean([1, 0, 1, 1, 0, 0], ["a", "a", "b", "b", "c", "c"])
    assert interval.high - interval.estimate == pytest.approx(4.302653 / math.sqrt(12), abs=1e-6)
    assert (interval.estimate, interval.n, interval.clusters) == (0.5, 6, 3)


def test_cluster_mean_is_statsmodels_with_unequal_clusters() -> None:
    rng = np.random.default_rng(0)
    clusters = rng.integers(12, size=80)
    values = rng.normal(size=80) + clusters / 4
    fit = sm.OLS(values, np.ones(80)).fit(cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True)
    interval = cluster_mean(values, clusters)
    assert (interval.low, interval.high) == pytest.approx(tuple(fit.conf_int()[0]), abs=1e-12)


def test_cluster_mean_ignores_row_order_and_the_kind_of_label() -> None:
    values, clusters = np.array([0.1, 0.9, 0.4, 0.3, 0.8]), np.array([0, 1, 0, 2, 1])
    order = [3, 1, 4, 0, 2]
    named = [("prompt", int(c)) for c in clusters[order]]
    one, other = cluster_mean(values, clusters), cluster_mean(values[order], named)
    assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=1e-12)


def test_one_cluster_bounds_nothing() -> None:
    assert cluster_mean([1, 2, 3], ["a"] * 3) == Interval(2.0, -math.inf, math.inf, 3, 1)


def _pair_accuracies(rng: np.random.Generator, runs: int, prompts: int, correlation: float) -> np.ndarray:
    """[runs, prompts, 6]: does a score correlated with quality order each of the C(4, 2) pairs of a prompt rightly?"""
    quality, noise = rng.normal(size=(2, runs, prompts, 4))
    score = correlation * quality + math.sqrt(1 - correlation**2) * noise
    first, second = np.triu_indices(4, 1)
    return ((quality[..., first] > quality[..., second]) == (score[..., first] > score[..., second])).astype(float)


def test_clustered_interval_covers_pairs_of_one_ranking_and_the_naive_one_does_not() -> None:
    correlation = 0.5
    truth = 0.5 + math.asin(correlation) / math.pi  # orthant probability of two normals: 2/3
    runs = _pair_accuracies(np.random.default_rng(1), runs=2500, prompts=40, correlation=correlation)
    prompt_of = np.repeat(np.arange(40), 6)
    clustered = [cluster_mean(run.ravel(), prompt_of) for run in runs]
    naive = [cluster_mean(run.ravel()) for run in runs]
    assert 0.93 < np.mean([i.low <= truth <= i.high for i in clustered]) < 0.97
    assert np.mean([i.low <= truth <= i.high for i in naive]) < 0.91


def test_cluster_share_never_has_zero_width() -> None:
    won = cluster_share([1.0] * 20, np.repeat(np.arange(10), 2))
    assert (won.low, won.high, won.n, won.clusters) == (wilson(10, 10).low, 1.0, 20, 10)
    balanced = cluster_share([1, 0] * 10, np.repeat(np.arange(10), 2))  # every cluster one win and one loss
    assert (balanced.low, balanced.high) == (wilson(5, 10).low, wilson(5, 10).high)
    assert cluster_share([1, 1, 0], ["a"] * 3).low == pytest.approx(wilson(2 / 3, 1).low)


def test_cluster_share_is_cut_to_the_unit_interval() -> None:
    assert cluster_mean([1, 1, 1, 0.5]).high > 1
    assert cluster_share([1, 1, 1, 0.5]).high == 1.0


def test_paired_difference_removes_what_the_pairs_share() -> None:
    rng = np.random.default_rng(2)
    item = 10 * rng.normal(size=200)
    interval = paired_difference(item + 0.3 + 0.1 * rng.normal(size=200), item)
    assert 0.27 < interval.low < 0.3 < interval.high < 0.33
    assert paired_difference([3, 1], [1, 1]).estimate == 1.0


def test_bootstrap_of_the_mean_matches_the_sandwich() -> None:
    rng = np.random.default_rng(3)
    clusters = np.repeat(np.arange(150), 4)
    values = rng.normal(size=150)[clusters] + rng.normal(size=600)
    formula, drawn = cluster_mean(values, clusters), cluster_bootstrap(values, clusters, rng=np.random.default_rng(4))
    assert drawn.estimate == formula.estimate
    assert (drawn.low, drawn.high) == pytest.approx((formula.low, formula.high), abs=0.1 * (formula.high - formula.low))


def test_bootstrap_draws_whole_clusters() -> None:
    rows = np.array([[1, 10], [1, 20], [2, 30], [3, 40], [3, 50], [3, 60]])

    def torn(sample: np.ndarray) -> float:
        times = [int(np.sum(sample[:, 1] == row)) for row in rows[:, 1]]
        return float(times[0] != times[1] or len(set(times[3:])) > 1)

    never = cluster_bootstrap(rows, rows[:, 0], torn, draws=200, rng=np.random.default_rng(5))
    assert (never.low, never.high) == (0.0, 0.0)
    sizes = cluster_bootstrap(rows, rows[:, 0], len, rng=np.random.default_rng(5), confidence=0.99)
    assert (sizes.low, sizes.high) == (3.0, 9.0)  # three times the smallest cluster, three times the largest: 1/27 each


def test_bootstrap_repeats_with_its_seed_and_keeps_undefined_undefined() -> None:
    values = np.arange(10.0)
    one, again = (cluster_bootstrap(values, draws=50, rng=np.random.default_rng(6)) for _ in range(2))
    assert one == again
    assert one != cluster_bootstrap(values, draws=50, rng=np.random.default_rng(7))
    undefined = cluster_bootstrap([1.0, math.nan], draws=50, rng=np.random.default_rng(6))
    assert math.isnan(undefined.low)
    assert math.isnan(undefined.high)


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(0.66, 0.6134, 0.7149, 200, 200), "0.66 [0.61, 0.71] (n=200)"),
        (Interval(0.66, 0.6134, 0.7149, 800, 200), "0.66 [0.61, 0.71] (n=800, clusters=200)"),
        (Interval(0.66012, 0.6578, 0.6624, 10**5, 10**5), "0.660 [0.658, 0.662] (n=100000)"),
        (Interval(2.0, -math.inf, math.inf, 3, 1), "2.00 [-inf, inf] (n=3, clusters=1)"),
        (Interval(math.nan, math.nan, math.nan, 3, 3), "nan [nan, nan] (n=3)"),
        (Interval(1.0, 1.0, 1.0, 3, 3), "1.00 [1.00, 1.00] (n=3)"),
    ],
)
def test_interval_prints_compactly(interval: Interval, text: str) -> None:
    assert str(interval) == text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson(3, 2), "successes=3, n=2"),
        (lambda: wilson(0, 0), "n=0"),
        (lambda: wilson(1, 2, confidence=95), r"confidence must lie in \(0, 1\); got 95"),
        (lambda: cluster_mean([]), "values must be a non-empty flat list"),
        (lambda: cluster_mean([1.0, math.nan]), r"values\[1\] must be a finite number; got nan"),
        (lambda: cluster_mean([1.0, 2.0], ["a"]), r"one label per row \(2\); got 1"),
        (lambda: cluster_share([0.5, 1.5]), r"values\[1\] must lie in \[0, 1\]; got 1.5"),
        (lambda: paired_difference([1, 2], [1]), r"b must have one entry per row \(2\); got 1"),
        (lambda: needed_for_half_width(0.5, 0), "half_width=0"),
        (lambda: cluster_bootstrap([], rng=np.random.default_rng(0)), "needs rows"),
    ],
)
def test_bad_input_is_named_at_the_door(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
