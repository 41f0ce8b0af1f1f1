"""Profile-likelihood intervals: where the answer is known in closed form, and at the edge of a parameter's range."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, logit

from tutelage.statistics.profile import curvature, normal_quantile, profile_interval

Vector = NDArray[np.float64]
Z = normal_quantile(0.95)


def test_a_normal_likelihood_gives_the_textbook_interval_of_each_correlated_parameter() -> None:
    covariance = np.array([[4.0, 1.5, 0.0], [1.5, 1.0, -0.2], [0.0, -0.2, 0.25]])
    center, precision = np.array([1.0, -2.0, 0.5]), np.linalg.inv(covariance)

    def objective(x: Vector) -> tuple[float, Vector]:
        return float((x - center) @ precision @ (x - center) / 2), precision @ (x - center)

    hessian = curvature(objective, center)
    np.testing.assert_allclose(hessian, precision, atol=1e-6)
    for which, sd in enumerate((2.0, 1.0, 0.5)):
        low, high = profile_interval(objective, center, hessian, which, reach=100.0, z=Z)
        assert (low, high) == pytest.approx((center[which] - 1.96 * sd, center[which] + 1.96 * sd), abs=0.03 * sd)
        wide = profile_interval(objective, center, hessian, which, reach=100.0, spread=4.0, z=Z)
        assert wide[1] - wide[0] == pytest.approx(2 * (high - low), rel=0.03)
    assert profile_interval(objective, center, hessian, 0, reach=3.0, z=Z)[1] == 3.0


def binomial(successes: float, trials: float):
    """Minus the log likelihood of logit p, and a second parameter that it does not speak of."""

    def objective(x: Vector) -> tuple[float, Vector]:
        p = expit(x[0])
        value = -(successes * np.log(p) + (trials - successes) * np.log1p(-p)) + x[1] ** 2 / 2
        return float(value), np.array([trials * p - successes, x[1]])

    return objective


def test_nine_of_ten_is_not_symmetric() -> None:
    # 2 (l(.9) - l(p)) = 1.96^2 has the roots .6283 and .9939 (bisection by hand; the Wald interval would be .533 to .986)
    found = profile_interval(
        binomial(9, 10), at := np.array([logit(0.9), 0.0]), curvature(binomial(9, 10), at), 0, reach=9.0, z=Z
    )
    assert expit(np.array(found)) == pytest.approx([0.6283, 0.9939], abs=0.002)


def test_all_right_has_an_end_in_closed_form_and_none_above() -> None:
    # n of n: n ln p = -1.96^2 / 2, so p = exp(-1.9207 / n); no probability above is refuted
    objective, at = binomial(10, 10), np.array([8.0, 0.0])  # as far up as a fit with a weak prior goes
    low, high = profile_interval(objective, at, curvature(objective, at, 1e-2), 0, reach=9.0, z=Z)
    assert high == 9.0
    assert expit(low) == pytest.approx(np.exp(-1.9207 / 10), abs=0.003)
