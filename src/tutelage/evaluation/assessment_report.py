"""How good a model is on answers judged alone that it has not seen: AUC, accuracy, correlation, error, calibration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
from scipy.stats import spearmanr

from tutelage.evaluation.winrate import interval, words
from tutelage.records import Rating
from tutelage.statistics import (
    Interval,
    auc,
    brier,
    cluster_bootstrap,
    cluster_mean,
    cluster_share,
    expected_calibration_error,
    fitted_temperature,
    reliability_curve,
)

BINS, DRAWS = 8, 1000


def yes_no_report(records: Sequence[Rating], probability: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """Of P(yes): AUC, accuracy at 1/2, calibration; beside them what saying the commoner label or the length alone gives.

    Intervals are clustered by prompt. A label of exactly 1/2 is neither yes nor no: it counts for calibration alone.
    """
    predicted, label, clusters = _columns(records, probability)
    decided = label != 0.5
    report: dict[str, Any] = {"answers": len(label), "prompts": len(set(clusters)), "undecided": int((~decided).sum())}
    if decided.any():
        yes = (label > 0.5).astype(float)[decided]
        p, groups = predicted[decided], [c for c, d in zip(clusters, decided, strict=True) if d]
        length = np.array([words(r.answer) for r in records], dtype=float)[decided]
        rng = np.random.default_rng(seed)
        report |= {
            "accuracy": interval(cluster_share(0.5 + 0.5 * np.sign(p - 0.5) * np.sign(yes - 0.5), groups)),
            "commoner_label": float(max(yes.mean(), 1 - yes.mean())),
            "yes": interval(cluster_share(yes, groups)),
            "auc": _json(_bootstrap(_auc, np.stack([p, yes], 1), groups, rng)),
            "longer_auc": _number(auc(length, yes)),
        }
    report |= {
        "brier": brier(predicted, label),
        "calibration_error": expected_calibration_error(predicted, label),
        "temperature": fitted_temperature(predicted, label),
    }
    bins = reliability_curve(predicted, label, BINS, clusters)
    report["reliability"] = [{"predicted": b.predicted, **(interval(b.observed) or {})} for b in bins]
    return report


def rating_report(records: Sequence[Rating], scores: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """Of expected ratings: error in points of the scale, share of variance explained, correlations, calibration.

    `auc` asks which answers are rated above the middle of the scale. Intervals are clustered by prompt.
    """
    predicted, rating, clusters = _columns(records, scores)
    rows, rng = np.stack([predicted, rating], 1), np.random.default_rng(seed)
    low, high = records[0].scale
    above = (rating > (low + high) / 2).astype(float)
    of_rows = partial(_bootstrap, values=rows, clusters=clusters, rng=rng)
    length = np.array([words(r.answer) for r in records], dtype=float)
    bins = np.array_split(np.argsort(predicted, kind="stable"), min(BINS, len(predicted)))
    return {
        "answers": len(rating),
        "prompts": len(set(clusters)),
        "absolute_error": interval(cluster_mean(np.abs(predicted - rating), clusters)),
        "root_mean_square_error": float(np.sqrt(((predicted - rating) ** 2).mean())),
        "explained": _json(of_rows(_explained)),
        "correlation": _json(of_rows(_pearson)),
        "rank_correlation": _json(of_rows(_spearman)),
        "auc": _json(_bootstrap(_auc, np.stack([predicted, above], 1), clusters, rng)),
        "longer_rank_correlation": _number(_spearman(np.stack([length, rating], 1))),
        "reliability": [
            {
                "predicted": float(predicted[b].mean()),
                **(interval(cluster_mean(rating[b], [clusters[i] for i in b])) or {}),
            }
            for b in bins
        ],
    }


def _columns(records: Sequence[Rating], values: Sequence[float]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Predictions, labels and the prompt of each row."""
    if not records:
        raise ValueError("no held-out answers: there is nothing to report on")
    assert len(records) == len(values), (len(records), len(values))
    labels = np.array([record.score for record in records], dtype=float)
    return np.array(values, dtype=float), labels, [record.prompt.key for record in records]


def _bootstrap(
    statistic: Callable[[np.ndarray], float], values: np.ndarray, clusters: Sequence[str], rng: np.random.Generator
) -> Interval:
    return cluster_bootstrap(values, clusters, statistic, DRAWS, rng=rng)


def _auc(rows: np.ndarray) -> float:
    return auc(rows[:, 0], rows[:, 1])


def _explained(rows: np.ndarray) -> float:
    """1 - (squared error of the prediction) / (that of the mean rating)."""
    spread = ((rows[:, 1] - rows[:, 1].mean()) ** 2).sum()
    return float(1 - ((rows[:, 0] - rows[:, 1]) ** 2).sum() / spread) if spread > 0 else math.nan


def _pearson(rows: np.ndarray) -> float:
    return float(np.corrcoef(rows.T)[0, 1]) if (rows.std(0) > 0).all() else math.nan


def _spearman(rows: np.ndarray) -> float:
    return float(cast(Any, spearmanr(rows)).statistic) if (rows.std(0) > 0).all() else math.nan


def _number(value: float) -> float | None:
    """JSON knows no NaN: what is undefined is null."""
    return value if math.isfinite(value) else None


def _json(value: Interval) -> dict[str, Any] | None:
    return interval(value) if all(map(math.isfinite, (value.estimate, value.low, value.high))) else None
