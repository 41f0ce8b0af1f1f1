"""Calibration: numbers worked by hand, scikit-learn's, and predictions with a known temperature."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from tutelage.statistics import brier, expected_calibration_error, fitted_temperature, reliability_curve


def _calibrated(rng: np.random.Generator, rows: int, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    margin = 2 * rng.normal(size=rows)
    return expit(temperature * margin), (rng.random(rows) < expit(margin)).astype(float)


def test_calibration_error_by_hand() -> None:
    # two bins: mean .15 against 1/2, mean .85 against 1: (2/4) .35 + (2/4) .15
    assert expected_calibration_error([0.1, 0.2, 0.8, 0.9], [0, 1, 1, 1], bins=2) == pytest.approx(0.25)
    assert expected_calibration_error([0.5] * 4, [1, 0, 0.5, 0.5]) == 0.0


def test_equal_predictions_share_a_bin_in_any_order() -> None:
    sorted_outcomes = [1.0] * 70 + [0.0] * 30
    assert expected_calibration_error([0.7] * 100, sorted_outcomes) == pytest.approx(0.0, abs=1e-12)
    rng = np.random.default_rng(0)
    predicted, observed = _calibrated(rng, 100)
    predicted = predicted.round(1)
    order = rng.permutation(100)
    assert expected_calibration_error(predicted[order], observed[order]) == pytest.approx(
        expected_calibration_error(predicted, observed), abs=1e-12
    )


def test_tied_predictions_are_binned_by_their_mean_rank() -> None:
    # six at .2 have mean rank 2.5 of 0..9, so they fill the lower half; their last rank, 5, belongs to the upper
    curve = reliability_curve([0.2] * 6 + [0.5, 0.6, 0.7, 0.8], [0.0] * 10, bins=2)
    assert [b.observed.n for b in curve] == [6, 4]


def test_bins_have_equal_mass_and_match_sklearn() -> None:
    predicted, observed = _calibrated(np.random.default_rng(1), 150)
    curve = reliability_curve(predicted, observed, bins=15)
    assert [b.observed.n for b in curve] == [10] * 15
    share, mean = calibration_curve(observed, predicted, n_bins=15, strategy="quantile")
    assert [b.predicted for b in curve] == pytest.approx(mean)
    assert [b.observed.estimate for b in curve] == pytest.approx(share)
    error = np.mean([abs(b.predicted - b.observed.estimate) for b in curve])
    assert expected_calibration_error(predicted, observed) == pytest.approx(error)


def test_calibration_error_of_a_calibrated_model_is_the_stated_noise_and_grows_with_the_temperature() -> None:
    rng = np.random.default_rng(2)
    coin = np.full(3000, 0.5) + 1e-6 * rng.random(3000)
    noise = np.mean([expected_calibration_error(coin, rng.integers(2, size=3000)) for _ in range(200)])
    assert noise == pytest.approx(0.8 * np.sqrt(15 * 0.25 / 3000), rel=0.05)
    errors = [expected_calibration_error(*_calibrated(rng, 5000, temperature)) for temperature in (1, 2, 4)]
    assert errors[0] < 0.03 < errors[1] < errors[2]


def test_reliability_curve_clusters() -> None:
    curve = reliability_curve([0.2] * 40, [1, 1, 0, 0] * 10, bins=1, clusters=np.repeat(np.arange(10), 4))
    assert (curve[0].observed.n, curve[0].observed.clusters) == (40, 10)


def test_brier_by_hand_and_sklearn() -> None:
    assert brier([0.9, 0.4], [1, 1]) == pytest.approx((0.01 + 0.36) / 2)
    predicted, observed = _calibrated(np.random.default_rng(3), 50)
    assert brier(predicted, observed) == pytest.approx(brier_score_loss(observed, predicted))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_fitted_temperature_recovers_the_scale(temperature: float) -> None:
    assert fitted_temperature(*_calibrated(np.random.default_rng(4), 20_000, temperature)) == pytest.approx(
        temperature, rel=0.05
    )


def test_fitted_temperature_by_hand_and_at_its_ends() -> None:
    # log-odds +-2 that are right 3 times in 4: the best log-odds are log 3
    confident = expit(np.array([2, 2, 2, 2, -2, -2, -2, -2]))
    assert fitted_temperature(confident, [1, 1, 1, 0, 0, 0, 0, 1]) == pytest.approx(2 / np.log(3), rel=1e-6)
    assert fitted_temperature([0.9, 0.1], [1, 0]) == pytest.approx(0.01)
    assert fitted_temperature([0.9, 0.1], [0, 1]) == pytest.approx(100)
    assert np.isfinite(fitted_temperature([1.0, 0.0, 1.0], [1, 0, 0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: brier([1.2], [1]), r"probabilities\[0\] must lie in \[0, 1\]; got 1.2"),
        (lambda: expected_calibration_error([0.2, 0.3], [1]), r"outcomes must have one entry per row \(2\); got 1"),
        (lambda: expected_calibration_error([0.2], [1], bins=0), "bins must be at least 1; got 0"),
    ],
)
def test_bad_input_is_named_at_the_door(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
