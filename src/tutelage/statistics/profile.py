"""Intervals from a likelihood's own shape: the values of one parameter at which, all others refitted, it is not yet refuted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import ndtri

from tutelage.statistics.arrays import Vector

Matrix = NDArray[np.float64]
Objective = Callable[[Vector], tuple[float, Vector]]
"""Parameters [D] -> (minus the log likelihood, its gradient [D])."""
LEAST = 1e-2
"""Smallest curvature in any direction that a step is scaled by; flatter or falling ones have no step of their own."""
CLOSE, TRIES = 0.005, 30
"""How near the root of the deviance comes to its target, in standard errors, and how often it is looked for."""


def curvature(objective: Objective, fitted: Vector, step: float = 1e-4) -> Matrix:
    """Second derivatives at `fitted`, by central differences of the gradient, made positive definite  [D, D].

    With a handful of rows a fit may end on a ridge or a saddle; the intervals then take their scale from the prior's size
    of curvature, while their ends are still where the likelihood says.
    """
    columns = []
    for place in np.eye(len(fitted)):
        ahead, behind = (objective(fitted + sign * step * place)[1] for sign in (1, -1))
        columns.append((ahead - behind) / (2 * step))
    values, directions = np.linalg.eigh((np.array(columns) + np.array(columns).T) / 2)
    return (directions * np.maximum(np.abs(values), LEAST)) @ directions.T


def profile_interval(
    objective: Objective, fitted: Vector, hessian: Matrix, which: int, *, reach: float, spread: float = 1.0, z: float
) -> tuple[float, float]:
    """Both ends of {v : 2 (min over the others of objective, given v, minus objective at `fitted`) <= spread z^2}.

    With spread 1 and z = 1.96 this is the 95 % likelihood-ratio interval: no normal distribution of the estimate is
    assumed, so it holds near the edge of a parameter's range. `spread` above 1 widens it for rows that are not
    independent (Chandler & Bate, Biometrika 94, 2007: robust over plain variance). An end beyond +-`reach` is +-`reach`.
    """
    best = objective(fitted)[0]
    covariance = np.linalg.inv(hessian)
    path = covariance[:, which] / covariance[which, which]  # where the others go as `which` moves
    others = np.arange(len(fitted)) != which
    whiten = np.linalg.cholesky(np.linalg.inv(hessian[np.ix_(others, others)]))
    scale = float(np.sqrt(covariance[which, which] * spread))

    def root(value: float) -> float:
        """The root of the deviance at `value`, in units of its target's."""
        start = fitted + path * (value - fitted[which])

        def around(moves: Vector) -> tuple[float, Vector]:
            point = start.copy()
            point[others] += whiten @ moves
            height, slope = objective(point)
            return height, whiten.T @ slope[others]

        lowest = minimize(around, np.zeros(others.sum()), jac=True, method="L-BFGS-B", tol=1e-5).fun
        return float(np.sqrt(max(0.0, 2 * (lowest - best)) / spread))

    low, high = (_cross(root, float(fitted[which]), sign * scale, z, reach) for sign in (-1, 1))
    return low, high


def _cross(root: Callable[[float], float], middle: float, scale: float, z: float, reach: float) -> float:
    """Where the root of the deviance, nearly a straight line from 0 at `middle`, is z; or the end of the reach."""
    end = float(np.copysign(reach, scale))
    farthest = max(0.0, (end - middle) / scale)
    inside, outside, away = (0.0, 0.0), (np.inf, np.inf), min(z, farthest)  # (steps away, height) on both sides of z
    for attempt in range(TRIES):
        height = root(middle + away * scale)
        if abs(height - z) < CLOSE:
            break
        inside, outside = ((away, height), outside) if height < z else (inside, (away, height))
        if inside[0] >= farthest:
            return end
        if outside[0] == np.inf:
            away = min(farthest, away * min(3.0, z / max(height, 1e-9)))
        elif attempt % 3 == 2:  # so that a curve that is no straight line is met as well
            away = (inside[0] + outside[0]) / 2
        else:
            away = inside[0] + (z - inside[1]) * (outside[0] - inside[0]) / (outside[1] - inside[1])
    return middle + away * scale


def normal_quantile(confidence: float) -> float:
    """The z with P(|N(0, 1)| <= z) = `confidence`."""
    return float(ndtri((1 + confidence) / 2))
