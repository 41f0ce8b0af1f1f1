"""How good a reward model is on comparisons it has not seen: accuracy with an interval, baselines, calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tutelage.evaluation.winrate import interval, words
from tutelage.records import Comparison
from tutelage.statistics import (
    brier,
    cluster_share,
    expected_calibration_error,
    fitted_temperature,
    reliability_curve,
)

Scores = Callable[[Sequence[Comparison]], Sequence[tuple[float, float]]]
"""Comparisons -> (score of chosen, score of rejected)."""


def reward_report(records: Sequence[Comparison], score: Scores) -> dict[str, Any]:
    """Accuracy (ties of the model 1/2, tied labels left out), the longer- and shorter-wins baselines, calibration."""
    decided = [record for record in records if record.preference != 0.5]
    if not decided:
        raise ValueError("every held-out comparison is a tie: accuracy has nothing to agree with")
    pairs = score(decided)
    sign = np.array([1.0 if record.preference > 0.5 else -1.0 for record in decided])
    margin = np.array([chosen - rejected for chosen, rejected in pairs]) * sign
    longer = np.array([words(r.chosen) - words(r.rejected) for r in decided]) * sign
    clusters = [record.prompt.key for record in decided]
    accuracy = cluster_share(_agrees(margin), clusters)
    # Calibration needs both outcomes: every second pair is turned round, by position, so that no label decides it
    turn = np.where(np.arange(len(margin)) % 2 == 0, 1.0, -1.0)
    probability, outcome = 1 / (1 + np.exp(-margin * turn)), (turn > 0).astype(float)
    report: dict[str, Any] = {
        "accuracy": interval(accuracy),
        "longer_wins": float(_agrees(longer).mean()),
        "shorter_wins": float(_agrees(-longer).mean()),
        "length_correlation": _within_prompt_correlation(decided, pairs),
        "comparisons": len(decided),
        "ties_left_out": len(records) - len(decided),
        "brier": brier(probability, outcome),
        "calibration_error": expected_calibration_error(probability, outcome),
        "temperature": fitted_temperature(probability, outcome),
    }
    bins = reliability_curve(probability, outcome, 8)
    report["reliability"] = [{"predicted": b.predicted, **(interval(b.observed) or {})} for b in bins]
    return report


def _agrees(margin: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.sign(margin)


def _within_prompt_correlation(records: Sequence[Comparison], pairs: Sequence[tuple[float, float]]) -> float:
    """Correlation of score difference and length difference (words), over pairs: how much length alone explains."""
    score = np.array([a - b for a, b in pairs])
    length = np.array([words(r.chosen) - words(r.rejected) for r in records], dtype=float)
    scale = float(np.sqrt((score**2).sum() * (length**2).sum()))
    return float((score * length).sum() / scale) if scale > 0 else 0.0
