"""In which order an annotator sees the responses: random, and balanced over what one person is handed."""

from __future__ import annotations

import random
from collections.abc import Sequence


def permutation(seed: str, annotator: int, size: int, turn: int) -> list[int]:
    """The canonical index of the response at each place of the screen, for the annotator's assignment number `turn`.

    Assignments come in blocks of `size`; within a block the orders are the rotations of one random order, in random
    sequence (a Latin square): each response stands at each place exactly once. For pairs, every two assignments show
    each side once. The same arguments give the same order.
    """
    block, place = divmod(turn, max(size, 1))
    rng = random.Random(f"{seed}/sides/{annotator}/{size}/{block}")
    base = rng.sample(range(size), size)
    shifts = rng.sample(range(size), size)
    shift = shifts[place] if size else 0
    return base[shift:] + base[:shift]


def falls_on(seed: str, purpose: str, annotator: int, turn: int, share: float) -> bool:
    """Whether assignment number `turn` is one of the `share` kept for `purpose`: one a block of 1/share, at a random place."""
    if share <= 0:
        return False
    period = max(1, round(1 / share))
    block, place = divmod(turn, period)
    return random.Random(f"{seed}/{purpose}/{annotator}/{block}").randrange(period) == place


def to_canonical(shown: Sequence[object], order: Sequence[int]) -> list[object]:
    """Values by shown place -> values by canonical index."""
    assert len(shown) == len(order)
    out: list[object] = [None] * len(order)
    for value, index in zip(shown, order, strict=True):
        out[index] = value
    return out
