"""The decoder's step on a CPU between its matrix products: norm, positions and attention, each in one pass over memory.

PyTorch takes a dozen operations for what one loop does, and at 64 rows those take longer than a third of the step.
Compiled by numba (an optional dependency) for the processor at hand, kept on disk, run by PyTorch's own threads. A kernel
is called with one list of 64-bit numbers: a counter from which the threads take their units of work, then sizes and the
addresses of float32 numbers. So a thread that is slowed down takes fewer units.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

F32, I64 = np.float32, np.int64
SIGNATURE = types.void(types.CPointer(types.int64))
BLOCK = 32
"""Columns that a thread takes at once."""
ROWS = 8
"""Rows of one prompt that are one unit of work."""
FAST = {"reassoc", "contract", "arcp", "nsz"}
"""Sums in any order, multiplied and added at once; infinities stay what they are."""

LOG2E, LN2_HIGH, LN2_LOW = F32(1.4426950408889634), F32(0.693359375), F32(-2.12194440e-4)
E2, E3, E4, E5, E6, E7 = (
    F32(c)
    for c in (5.0000001201e-1, 1.6666665459e-1, 4.1665795894e-2, 8.3334519073e-3, 1.3981999507e-3, 1.9875691500e-4)
)
ONE, ZERO, LEAST, MOST, UP = F32(1), F32(0), F32(-87.3), F32(88.3), F32(128.5)
DOWN, BIAS, SHIFT = np.int32(128), np.int32(127), np.int32(23)


def at_address(kind: Any) -> Any:
    """The numbers of one kind at an address."""

    @intrinsic
    def numbers(_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    return numbers


floats, integers = at_address(types.float32), at_address(types.int64)


def next_unit(_context: Any, counter: Any) -> Any:
    """The counter's number, which no other thread gets."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", arguments[0], ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.CPointer(types.int64)), generate


take: Any = intrinsic(next_unit)


def from_bits(bits: Any, kind: Any, code: Any) -> Any:
    """The number that these bits are."""

    @intrinsic
    def number(_context: Any, given: Any) -> Any:
        return kind(bits), lambda _context, builder, _signature, arguments: builder.bitcast(arguments[0], code)

    return number


float32 = from_bits(types.int32, types.float32, ir.FloatType())
float64 = from_bits(types.int64, types.float64, ir.DoubleType())


@njit(fastmath=FAST, error_model="numpy", inline="always")
def exp(x: Any) -> Any:
    """e^x to 3e-7 of itself, in operations that vectorise: 2^k times a polynomial (Cephes' expf)."""
    x = min(max(x, LEAST), MOST)
    whole = np.int32(x * LOG2E + UP) - DOWN  # rounded: towards zero is downwards for what is positive
    r = x - F32(whole) * LN2_HIGH - F32(whole) * LN2_LOW
    tail = ((((E7 * r + E6) * r + E5) * r + E4) * r + E3) * r + E2
    return (tail * r * r + r + ONE) * float32((whole + BIAS) << SHIFT)


@cfunc(SIGNATURE, cache=True, fastmath=FAST, error_model="numpy")
def norm(a: Any) -> None:
    """x [D, N] += plus, where there is one; out = x weight / sqrt(mean of x^2 over D + eps)."""
    depth, count, eps = a[1], a[2], F32(float64(a[3]))
    weight, squares = carray(floats(a[6]), (depth,)), np.empty(BLOCK, dtype=F32)
    start = take(a) * BLOCK
    while start < count:
        size, there = min(I64(BLOCK), count - start), 4 * start
        x, out = carray(floats(a[4] + there), (depth, count)), carray(floats(a[5] + there), (depth, count))
        if a[7] != 0:
            plus = carray(floats(a[7] + there), (depth, count))
            for d in range(depth):
                for n in range(size):
                    x[d, n] += plus[d, n]
        squares[:] = ZERO
        for d in range(depth):
            for n in range(size):
                squares[n] += x[d, n] * x[d, n]
        for n in range(size):
            squares[n] = ONE / np.sqrt(squares[n] / F32(depth) + eps)
        for d in range(depth):
            for n in range(size):
                out[d, n] = x[d, n] * squares[n] * weight[d]
        start = take(a) * BLOCK


@cfunc(SIGNATURE, cache=True, fastmath=FAST, error_model="numpy")
def turn(a: Any) -> None:
    """x [H W, N]: each head's pairs (i, i + W/2) turned by the angles whose cos and signed sin are [W, N]."""
    heads, half, count = a[1], a[2], a[3]
    x = carray(floats(a[4]), (heads, 2 * half, count))
    cos, sin = carray(floats(a[5]), (2 * half, count)), carray(floats(a[6]), (2 * half, count))
    unit = take(a)
    while unit < heads:
        for i in range(half):
            for n in range(count):
                first, second = x[unit, i, n], x[unit, i + half, n]
                x[unit, i, n] = first * cos[i, n] + second * sin[i, n]
                x[unit, i + half, n] = second * cos[i + half, n] + first * sin[i + half, n]
        unit = take(a)


@njit(fastmath=FAST, error_model="numpy", inline="always")
def ask(query: Any, keys: Any, scores: Any) -> None:
    """scores[m, t] = query m times key t."""
    width, last = keys.shape[1], len(keys)
    for m in range(len(query)):
        t = 0
        while t + 4 <= last:
            s0 = s1 = s2 = s3 = ZERO
            for d in range(width):
                s0 += query[m, d] * keys[t, d]
                s1 += query[m, d] * keys[t + 1, d]
                s2 += query[m, d] * keys[t + 2, d]
                s3 += query[m, d] * keys[t + 3, d]
            scores[m, t], scores[m, t + 1], scores[m, t + 2], scores[m, t + 3] = s0, s1, s2, s3
            t += 4
        while t < last:
            s0 = ZERO
            for d in range(width):
                s0 += query[m, d] * keys[t, d]
            scores[m, t] = s0
            t += 1


@njit(fastmath=FAST, error_model="numpy", inline="always")
def collect(weights: Any, values: Any, out: Any) -> None:
    """out[m] += the sum over t of weights[m, t] values[t]."""
    width, last, t = values.shape[1], len(values), 0
    while t + 4 <= last:
        for m in range(len(out)):
            w0, w1, w2, w3 = weights[m, t], weights[m, t + 1], weights[m, t + 2], weights[m, t + 3]
            for d in range(width):
                out[m, d] += w0 * values[t, d] + w1 * values[t + 1, d] + w2 * values[t + 2, d] + w3 * values[t + 3, d]
        t += 4
    while t < last:
        for m in range(len(out)):
            for d in range(width):
                out[m, d] += weights[m, t] * values[t, d]
        t += 1


@njit(fastmath=FAST, error_model="numpy", inline="always")
def softmax(x: Any) -> None:
    """In place, over a vector.

    A part of the kernel, not a function of its own: of two copies of one, compiled apart and in its caller, the process that
    compiles runs the first and those that find the result on the disk the second, and they rounded differently.
    """
    highest = x[0]
    for t in range(len(x)):
        highest = max(highest, x[t])
    total = ZERO
    for t in range(len(x)):
        x[t] = exp(x[t] - highest)
        total += x[t]
    for t in range(len(x)):
        x[t] /= total


def attend_of(width: int, folded: int) -> Any:
    """The kernel for heads of `width` numbers, of which `folded` share a key.

    A unit is a kv head of up to ROWS rows of a prompt: each writes its key and value, asks all keys, collects values.
    """
    most = ROWS * folded

    @cfunc(SIGNATURE, cache=True, fastmath=FAST, error_model="numpy")
    def attend(a: Any) -> None:
        blocks, kv, rows, window = a[1], a[2], a[3], a[4]
        room, prompt_room, cells = a[5], a[6], a[7]
        scale = F32(float64(a[8]))
        bounds, order = carray(integers(a[9]), (blocks, 2)), carray(integers(a[10]), (rows,))
        slots, said, asked = (carray(integers(a[11]), (rows,)), carray(integers(a[12]), (rows,)), integers(a[13]))
        query, fresh = carray(floats(a[14]), (kv, folded, width, rows)), carray(floats(a[15]), (kv, width, rows))
        novel = carray(floats(a[16]), (kv, width, rows))
        keys = carray(floats(a[17]), (rows, kv, room, width))
        values = carray(floats(a[18]), (rows, kv, room, width))
        out = carray(floats(a[21]), (kv, folded, width, rows))
        asking, sums = np.empty((most, width), dtype=F32), np.empty((most, width), dtype=F32)
        scores = np.empty((most, cells), dtype=F32)
        unit = take(a)
        while unit < blocks * kv:
            block, head = unit // kv, unit % kv
            begin, count = bounds[block, 0], bounds[block, 1] - bounds[block, 0]
            slot = slots[order[begin]]
            length = asked[slot]
            there = (slot * kv + head) * prompt_room * width * 4
            prompt_keys = carray(floats(a[19] + there), (prompt_room, width))
            prompt_values = carray(floats(a[20] + there), (prompt_room, width))
            lowest = length
            for i in range(count):
                row = order[begin + i]
                for d in range(width):
                    for g in range(folded):
                        asking[i * folded + g, d] = query[head, g, d, row] * scale
                    keys[row, head, said[row], d] = fresh[head, d, row]
                    values[row, head, said[row], d] = novel[head, d, row]
                lowest = min(lowest, max(I64(0), length + said[row] - window + 1))
            every = count * folded
            sums[:every] = ZERO
            ask(asking[:every], prompt_keys[lowest:length], scores[:every, lowest:length])
            for i in range(count):
                row, mine = order[begin + i], slice(i * folded, (i + 1) * folded)
                end, first = length + said[row] + 1, max(I64(0), length + said[row] - window + 1)
                own = max(I64(0), first - length)
                scores[mine, lowest : min(first, length)] = -np.inf
                scores[mine, length : length + own] = -np.inf
                ask(asking[mine], keys[row, head, own : said[row] + 1], scores[mine, length + own : end])
                for m in range(i * folded, (i + 1) * folded):
                    softmax(scores[m, lowest:end])
                collect(scores[mine, length + own : end], values[row, head, own : said[row] + 1], sums[mine])
            collect(scores[:every, lowest:length], prompt_values[lowest:length], sums[:every])
            for g in range(folded):
                for d in range(width):
                    for i in range(count):
                        out[head, g, d, order[begin + i]] = sums[i * folded + g, d]
            unit = take(a)

    return attend
