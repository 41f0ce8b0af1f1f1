"""(seed, step) -> records: what a step trains on depends on these two integers alone, so a resumed run draws the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

T = TypeVar("T")
BLOCK = 1000  # rows over which a mixture's shares hold exactly, and so the finest weight it can tell: 1 in 1,000


@dataclass(frozen=True)
class Stream(Generic[T]):
    """Shuffled epochs over `records`: each comes once an epoch, in an order that (seed, epoch) decides.

    A batch may straddle two epochs, so no record is ever left over.
    """

    records: Sequence[T]
    batch_size: int
    seed: int = 0

    def __post_init__(self) -> None:
        _check_batch_size(self.batch_size)
        if not self.records:
            raise ValueError("stream: no records to draw from")

    @property
    def steps_per_epoch(self) -> float:
        """Steps until every record has come once."""
        return len(self.records) / self.batch_size

    def draw(self, step: int) -> list[T]:
        """The records of a step (steps count from 0)."""
        return [_shuffled(self.records, row, str(self.seed)) for row in _rows(step, self.batch_size)]


@dataclass(frozen=True)
class Mixture(Generic[T]):
    """Several sources by weight: of every 1,000 rows each source gives its share, shuffled; each source runs its own epochs.

    `weights` need not sum to one. For sources without weights put their records into one `Stream`.
    """

    sources: Sequence[Sequence[T]]
    weights: Sequence[float]
    batch_size: int
    seed: int = 0

    def __post_init__(self) -> None:
        _check_batch_size(self.batch_size)
        if not self.sources or len(self.weights) != len(self.sources):
            raise ValueError(f"mixture: {len(self.sources)} sources need as many weights; got {len(self.weights)}")
        if not all(self.sources):
            raise ValueError("mixture: a source has no records")
        if any(not 0 < weight < float("inf") for weight in self.weights):
            raise ValueError(f"mixture: weights must be positive numbers; got {list(self.weights)}")
        if 0 in _shares(tuple(self.weights)):
            raise ValueError(
                f"mixture: a source with less than one row in {BLOCK} is never drawn; got {list(self.weights)}"
            )

    def draw(self, step: int) -> list[T]:
        """The records of a step (steps count from 0)."""
        return [self._at(row) for row in _rows(step, self.batch_size)]

    def _at(self, row: int) -> T:
        shares = _shares(tuple(self.weights))
        block, place = divmod(row, BLOCK)
        source, earlier = _block(shares, f"{self.seed}/block {block}")[place]
        return _shuffled(self.sources[source], block * shares[source] + earlier, f"{self.seed}/source {source}")


def _shuffled(records: Sequence[T], row: int, seed: str) -> T:
    """The record at a place of the endless sequence of shuffled epochs."""
    epoch, place = divmod(row, len(records))
    return records[_permutation(len(records), f"{seed}/epoch {epoch}")[place]]


def _rows(step: int, batch_size: int) -> range:
    if step < 0:
        raise ValueError(f"stream: steps count from 0; got {step}")
    return range(step * batch_size, (step + 1) * batch_size)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size: must be at least 1; got {batch_size}")


def _shares(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Rows of a block that each source gives: proportional, rounded by largest remainder, so they sum to BLOCK."""
    exact = [BLOCK * weight / sum(weights) for weight in weights]
    shares = [int(x) for x in exact]
    by_remainder = sorted(range(len(exact)), key=lambda s: shares[s] - exact[s])
    for source in by_remainder[: BLOCK - sum(shares)]:
        shares[source] += 1
    return tuple(shares)


@lru_cache(maxsize=32)
def _permutation(size: int, seed: str) -> tuple[int, ...]:
    order = list(range(size))
    random.Random(seed).shuffle(order)
    return tuple(order)


@lru_cache(maxsize=8)
def _block(shares: tuple[int, ...], seed: str) -> tuple[tuple[int, int], ...]:
    """For every row of a block its source, and how many rows of the block that source gave before it."""
    order = [source for source, share in enumerate(shares) for _ in range(share)]
    random.Random(seed).shuffle(order)
    given = [0] * len(shares)
    rows = []
    for source in order:
        rows.append((source, given[source]))
        given[source] += 1
    return tuple(rows)
