"""The same numbers as other people's programs, on random data with gaps: krippendorff for alpha, choix for Bradley-Terry."""

from __future__ import annotations

from typing import Any

import choix
import krippendorff
import numpy as np
import pytest
import torch

from tutelage.functional.preference import bradley_terry
from tutelage.statistics import krippendorff_alpha
from tutelage.statistics.ratings import fit_logistic

STRENGTHS = np.array([1.2, 0.5, 0.1, -0.6, -1.2])


def ratings(rng: np.random.Generator) -> np.ndarray:
    """[units, raters] on a scale of five, correlated, a third missing; every unit has at least two."""
    truth = rng.integers(1, 6, size=60)
    said = np.clip(truth[:, None] + rng.integers(-1, 2, size=(60, 4)), 1, 5).astype(float)
    said[:, 2:][rng.random((60, 2)) < 0.6] = np.nan
    return said


@pytest.mark.parametrize("metric", ["nominal", "ordinal", "interval", "ratio"])
@pytest.mark.parametrize("seed", range(4))
def test_alpha_is_that_of_the_krippendorff_package(metric: Any, seed: int) -> None:
    said = ratings(np.random.default_rng(seed))
    theirs = krippendorff.alpha(reliability_data=said.T, level_of_measurement=metric)
    assert 0.1 < theirs < 0.95
    assert krippendorff_alpha(said, metric) == pytest.approx(theirs, abs=1e-10)


def comparisons(rng: np.random.Generator) -> list[tuple[int, int]]:
    """(winner, loser), drawn from Bradley-Terry."""
    pairs = rng.integers(0, 5, size=(400, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    wins = rng.random(len(pairs)) < 1 / (1 + np.exp(STRENGTHS[pairs[:, 1]] - STRENGTHS[pairs[:, 0]]))
    return [(int(a), int(b)) if won else (int(b), int(a)) for (a, b), won in zip(pairs, wins, strict=True)]


def test_our_bradley_terry_loss_is_least_where_choix_says() -> None:
    data = comparisons(np.random.default_rng(0))
    best = torch.tensor(choix.ilsr_pairwise(5, data, alpha=0.0), requires_grad=True)
    won, lost = torch.tensor(data).T
    bradley_terry(best[won], best[lost]).sum().backward()
    assert best.grad is not None
    assert best.grad.abs().max() < 1e-4  # stationary, and the loss is convex
    start = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    bradley_terry(start[won], start[lost]).sum().backward()
    assert start.grad is not None
    assert start.grad.abs().max() > 10  # which equal strengths are not


def test_our_logistic_fit_of_differences_is_choix_with_the_same_prior() -> None:
    data = comparisons(np.random.default_rng(1))
    features = np.zeros((len(data), 5))
    for row, (won, lost) in enumerate(data):
        features[row, won], features[row, lost] = 1.0, -1.0
    ours = fit_logistic(features, np.ones(len(data)), ridge=0.2)
    theirs = choix.opt_pairwise(5, data, alpha=0.1, method="Newton-CG", tol=1e-10)  # it penalises alpha |w|^2
    assert ours - ours.mean() == pytest.approx(theirs - theirs.mean(), abs=1e-4)
    assert list(np.argsort(-ours)) == [0, 1, 2, 3, 4]
