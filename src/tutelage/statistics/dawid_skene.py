"""Who tells the truth, from the labels alone: the annotator model of Dawid and Skene."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.statistics.arrays import Vector, cluster_codes
from tutelage.statistics.intervals import Interval, percentiles

Label = tuple[Hashable, Hashable, Hashable]
"""(item, annotator, class)."""


@dataclass(frozen=True)
class DawidSkene:
    """A fitted model of I items, K annotators and C classes, in the order of their names."""

    items: tuple[Hashable, ...]
    annotators: tuple[Hashable, ...]
    classes: tuple[Hashable, ...]
    posterior: NDArray[np.float64]
    """P(true class of the item | all its labels)  [I, C]."""
    confusion: NDArray[np.float64]
    """P(the annotator says column | the truth is row)  [K, C, C]."""
    prevalence: Vector
    """P(true class)  [C]."""

    @property
    def accuracy(self) -> Vector:
        """P(an annotator says the true class), over the classes as often as they occur  [K]."""
        return np.einsum("c,kcc->k", self.prevalence, self.confusion)


def dawid_skene(
    labels: Iterable[Label], classes: Sequence[Hashable], smoothing: float = 0.01, most_steps: int = 500
) -> DawidSkene:
    """EM for confusion matrices and true classes (Dawid & Skene, Applied Statistics 28, 1979).

    E: q_i(c) proportional to rho_c prod_k pi_k[c, l_ik]. M: normalised counts, `smoothing` added to each. It starts from
    the majority. The labels of an item must be independent given its true class: items of unequal difficulty make
    annotators look better than they are. ValueError without labels, or for a label that is no class.
    """
    return _fit(_Table.of(labels, classes), None, smoothing, most_steps)


def dawid_skene_accuracy(
    labels: Iterable[Label],
    classes: Sequence[Hashable],
    clusters: Iterable[Hashable] | None = None,
    *,
    rng: np.random.Generator,
    draws: int = 200,
    confidence: float = 0.95,
) -> dict[Hashable, Interval]:
    """Each annotator's accuracy in the model with a bootstrap interval over items (or `clusters`: one name per label)."""
    rows = list(labels)
    table = _Table.of(rows, classes)
    fitted = _fit(table, None, 0.01, 500)
    groups = [label[0] for label in rows] if clusters is None else clusters
    codes, count = cluster_codes(groups, len(rows))
    start = np.log(fitted.confusion), np.log(fitted.prevalence)
    replicates = []
    for _ in range(draws):
        times = np.bincount(rng.integers(count, size=count), minlength=count).astype(np.float64)[codes]
        drawn = _fit(table, start, 0.01, 60, times)
        seen = np.bincount(table.annotator, weights=times, minlength=len(table.annotators)) > 0
        replicates.append(np.where(seen, drawn.accuracy, np.nan))
    low, high = percentiles(np.array(replicates), confidence)
    return {
        name: Interval(
            float(fitted.accuracy[k]),
            float(low[k]),
            float(high[k]),
            int((table.annotator == k).sum()),
            len(np.unique(codes[table.annotator == k])),
        )
        for k, name in enumerate(table.annotators)
    }


@dataclass(frozen=True)
class _Table:
    """Labels as integers [N]."""

    items: tuple[Hashable, ...]
    annotators: tuple[Hashable, ...]
    classes: tuple[Hashable, ...]
    item: NDArray[np.int64]
    annotator: NDArray[np.int64]
    said: NDArray[np.int64]

    @classmethod
    def of(cls, labels: Iterable[Label], classes: Sequence[Hashable]) -> _Table:
        rows = list(labels)
        if not rows:
            raise ValueError("an annotator model needs labels; got none")
        places = {name: place for place, name in enumerate(classes)}
        if len(places) < 2 or len(places) != len(classes):
            raise ValueError(f"classes must be at least two different names; got {list(classes)}")
        if strange := [label for *_, label in rows if label not in places]:
            raise ValueError(f"label {strange[0]!r} is no class; allowed: {list(classes)}")
        columns: list[Any] = list(zip(*rows, strict=True))
        items, annotators = tuple(dict.fromkeys(columns[0])), tuple(dict.fromkeys(columns[1]))
        said = np.array([places[name] for name in columns[2]])
        codes = [cluster_codes(column, len(rows))[0] for column in columns[:2]]
        return cls(items, annotators, tuple(classes), codes[0], codes[1], said)


def _fit(
    table: _Table,
    start: tuple[NDArray[np.float64], Vector] | None,
    smoothing: float,
    most_steps: int,
    times: Vector | None = None,
) -> DawidSkene:
    """EM from `start` (log confusion, log prevalence) or from the majority; label n counts `times[n]` times."""
    counted = np.ones(len(table.said)) if times is None else times
    shape = len(table.annotators), len(table.classes), len(table.classes)
    weight = np.zeros(len(table.items))
    weight[table.item] = counted  # a cluster holds whole items: all labels of an item are drawn equally often
    if start is None:
        posterior = np.zeros((len(table.items), shape[1]))
        np.add.at(posterior, (table.item, table.said), 1.0)
        posterior /= posterior.sum(axis=1, keepdims=True)
    else:
        posterior = _expect(table, *start)
    confusion, prevalence = np.zeros(shape), np.zeros(shape[1])
    cell = table.annotator * shape[2] + table.said
    for _ in range(most_steps):
        guessed = counted[:, None] * posterior[table.item]
        for true in range(shape[1]):
            counts = np.bincount(cell, guessed[:, true], shape[0] * shape[2]).reshape(shape[0], shape[2])
            confusion[:, true] = counts + smoothing
        confusion = confusion / confusion.sum(axis=2, keepdims=True)
        prevalence = weight @ posterior + smoothing
        prevalence = prevalence / prevalence.sum()
        before, posterior = posterior, _expect(table, np.log(confusion), np.log(prevalence))
        if np.abs(posterior - before).max() < 1e-6:
            break
    return DawidSkene(table.items, table.annotators, table.classes, posterior, confusion, prevalence)


def _expect(table: _Table, log_confusion: NDArray[np.float64], log_prevalence: Vector) -> NDArray[np.float64]:
    said = log_confusion[table.annotator, :, table.said]  # [N, C]: by the true class
    summed = [np.bincount(table.item, column, len(table.items)) for column in said.T]
    scores = np.array(summed).T + log_prevalence
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)
