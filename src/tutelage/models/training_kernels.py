"""What a training pass does between its matrix products on a CPU, forward and backward, each in one pass over memory.

Row by row, as training lays its tokens out: [N, D].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, cfunc

from tutelage.models.kernels import F32, FAST, I64, ONE, SIGNATURE, ZERO, exp, float64, floats, take, wide

ROWS = 16
"""Tokens that a thread takes at once."""
CELLS = 8192
"""Numbers that it takes at once where rows do not matter."""


@cfunc(SIGNATURE, cache=True, fastmath=FAST, error_model="numpy")
def norm(a: Any) -> None:
    """total [N, D] = x + plus, where there is one; root [N] = 1 / sqrt(mean of total^2 + eps); out = total root weight."""
    wide()
    depth, count, eps = a[1], a[2], F32(float64(a[3]))
    weight, root = carray(floats(a[8]), (depth,)), carray(floats(a[9]), (count,))
    start = take(a) * ROWS
    while start < count:
        for n in range(start, min(start + ROWS, count)):
            there = 4 * n * depth
            total, out = carray(floats(a[6] + there), (depth,)), carray(floats(a[7] + there), (depth,))
            if a[5] != 0:
                x, plus = carray(floats(a[4] + there), (depth,)), carray(floats(a[5] + there), (depth,))
                for d in range(depth):
                    total[d] = x[d] + plus[d]
            squares = ZERO
            for d in range(depth):
                squares += total[d] * total[d]
            r = ONE / np.sqrt(squares / F32(depth) + eps)
            for d in range(depth):
                out[d] = total[d] * r * weight[d]
            root[n] = r
        start = take(a) * ROWS


@cfunc(SIGNATURE, cache=True, fastmath=FAST, error_model="numpy")
def norm_backward(a: Any) -> None:
    """into_x = beside + r g w - x r^3 mean(g w x); of each unit's tokens into_weight [units, D] = the sum of g x r.

    `beside` is the gradient of the total; there may be none, and no into_weight.
    """
    wide()
    depth, count = a[1], a[2]
    weight, root = carray(floats(a[5]), (depth,)), carray(floats(a[6]), (count,))
    unit = take(a)
    while unit * ROWS < count:
        into_weight = carray(floats(a[9] + 4 * unit * depth), (depth,))
        if a[9] != 0:
            into_weight[:] = ZERO
        for n in range(unit * ROWS, min((unit + 1) * ROWS, count)):
            there, r = 4 * n * depth, root[n]
            x, grad = carray(floats(a[3] + there), (depth,)), carray(floats(a[4] + there), (depth,))
            into_x, along = carray(floats(a[8] + there), (depth,)), ZERO
            for d in range(depth):
                along += grad[d] * weight[d] * x[d]
            along *= r * r * r / F32(depth)
            if a[7] != 0:
                beside = carray(floats(a[7] + there), (depth,))
                for d in range(depth):
                    into_x[d] = beside[d] + r * grad[d] * weight[d] - along * x[d]
            else:
                for d in range(depth):
                    into_x[d] = r * grad[d] * weight[d] - along * x[d]
            if a[9] != 0:
                for d in range(depth):
                    into_weight[d] += grad[d] * x[d] * r
        unit = take(a)


@cfunc(SIGNATURE, cache=True, fastmath=FAST, error_model="numpy")
def turn(a: Any) -> None:
    """Each head of each token turned by its token's angle: pairs (i, i + W/2), cos and sin [N, W].

    x and out have strides of their own from token to token and from head to head. The sines are taken times a factor:
    -1 turns back.
    """
    wide()
    count, heads, half, factor = a[1], a[2], a[3], F32(float64(a[4]))
    start = take(a) * ROWS
    while start < count:
        for n in range(start, min(start + ROWS, count)):
            cos = carray(floats(a[11] + 8 * n * half), (2 * half,))
            sin = carray(floats(a[12] + 8 * n * half), (2 * half,))
            for head in range(heads):
                x = carray(floats(a[5] + 4 * (n * a[6] + head * a[7])), (2 * half,))
                out = carray(floats(a[8] + 4 * (n * a[9] + head * a[10])), (2 * half,))
                for i in range(half):
                    first, second, angle = x[i], x[i + half], sin[i] * factor
                    out[i] = first * cos[i] - second * angle
                    out[i + half] = second * cos[i] + first * angle
        start = take(a) * ROWS


@cfunc(SIGNATURE, cache=True, fastmath=FAST, error_model="numpy")
def gate(a: Any) -> None:
    """out = x sigmoid(x) y."""
    wide()
    count, start = a[1], take(a) * CELLS
    while start < count:
        size: Any = min(I64(CELLS), count - start)
        there = 4 * start
        x, y = carray(floats(a[2] + there), (size,)), carray(floats(a[3] + there), (size,))
        out = carray(floats(a[4] + there), (size,))
        for i in range(size):
            out[i] = x[i] / (ONE + exp(-x[i])) * y[i]
        start = take(a) * CELLS


@cfunc(SIGNATURE, cache=True, fastmath=FAST, error_model="numpy")
def gate_backward(a: Any) -> None:
    """into_x = g y s (1 + x (1 - s)) and into_y = g x s, where s = sigmoid(x)."""
    wide()
    count, start = a[1], take(a) * CELLS
    while start < count:
        size: Any = min(I64(CELLS), count - start)
        there = 4 * start
        x, y = carray(floats(a[2] + there), (size,)), carray(floats(a[3] + there), (size,))
        grad = carray(floats(a[4] + there), (size,))
        into_x, into_y = carray(floats(a[5] + there), (size,)), carray(floats(a[6] + there), (size,))
        for i in range(size):
            s = ONE / (ONE + exp(-x[i]))
            into_x[i] = grad[i] * y[i] * s * (ONE + x[i] * (ONE - s))
            into_y[i] = grad[i] * x[i] * s
        start = take(a) * CELLS
