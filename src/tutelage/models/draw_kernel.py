"""One pass over a step's logits on a CPU: each block's highest one, and the sum of its weights, in float64.

From these a draw finds its block; only there it needs each weight (`drawing`). A softmax over all of them, with its sums,
takes longer than a quarter of a step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, cfunc, types

from tutelage.models.kernels import F32, FAST, I64, ONE, SIGNATURE, ZERO, at_address, exp, float64, floats, take, wide

COLUMNS = 64
"""Rows of answers that are summed side by side."""
RUN = 16
"""Weights that are summed in float32, before the sum is added to the block's."""
LOWEST = F32(-3e38)
"""Above minus infinity: a block of nothing else weighs nothing, and is a number."""

doubles = at_address(types.float64)


@cfunc(SIGNATURE, cache=True, fastmath=FAST, error_model="numpy")
def blocks(a: Any) -> None:
    """logits [V, C], block b: highest [B, C] of its tokens and total [B, C] = the sum of exp((logit - highest) / temperature)."""
    wide()
    size, vocabulary, count, per_degree = a[1], a[2], a[3], ONE / F32(float64(a[4]))
    number = (vocabulary + size - 1) // size
    highest, total = carray(floats(a[6]), (number, count)), carray(doubles(a[7]), (number, count))
    peak, part, sums = np.empty(COLUMNS, dtype=F32), np.empty(COLUMNS, dtype=F32), np.empty(COLUMNS, dtype=np.float64)
    unit = take(a)
    while unit < number:
        there = min(size, vocabulary - unit * size)
        logits = carray(floats(a[5] + 4 * count * unit * size), (there, count))
        for start in range(0, count, COLUMNS):
            width = min(I64(COLUMNS), count - start)
            peak[:] = LOWEST
            sums[:] = 0.0
            for token in range(there):
                x = logits[token, start : start + width]
                for n in range(width):
                    peak[n] = x[n] if x[n] > peak[n] else peak[n]
            for first in range(0, there, RUN):
                part[:] = ZERO
                for token in range(first, min(first + RUN, there)):
                    x = logits[token, start : start + width]
                    for n in range(width):
                        part[n] += exp((x[n] - peak[n]) * per_degree)
                for n in range(width):
                    sums[n] += part[n]
            for n in range(width):
                highest[unit, start + n], total[unit, start + n] = peak[n], sums[n]
        unit = take(a)
