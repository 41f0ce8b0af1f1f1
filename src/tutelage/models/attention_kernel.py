"""Attention of a decoding step on a CPU: each row's new key and value kept, all keys asked, values collected, in one pass.

Keys are asked in whole blocks, of which all but the last lie in what is seen: behind a prompt and an answer there is room for
them, and what they say of cells that are not seen is overwritten.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import carray, cfunc, njit

from tutelage.models.attention_instructions import LINE, ask, collect, copy, soften
from tutelage.models.kernels import F32, FAST, I64, SIGNATURE, ZERO, float64, floats, integers, take
from tutelage.models.vectors import HOST

ROWS = 8
"""Rows of one prompt that are one unit of work."""
MOST_SUMS = 24
"""Vectors of collected values that stay in the registers."""
LANES = I64(HOST)


class Memory(NamedTuple):
    """A thread's own, by address: of each query of a unit itself, what it collects, one over its weights' sum, its weights."""

    asking: Any
    sums: Any
    shares: Any
    scores: Any
    stride: Any
    """Bytes from one query's weights to the next one's."""
    deep: Any
    """The same of queries, and of what they collect."""


class Unit(NamedTuple):
    """A key head of some rows of one prompt."""

    head: Any
    begin: Any
    """The first row's place in the order."""
    count: Any
    length: Any
    """Tokens of the prompt."""
    keys: Any
    """Address of the prompt's."""
    values: Any
    lowest: Any
    """The first cell of the prompt that any of the rows sees."""


@njit(inline="always")
def whole(cells: Any) -> Any:
    """So many cells in whole vectors."""
    return (cells + LANES - 1) // LANES * LANES


@njit(inline="always")
def unit_of(a: Any, number: Any, width: Any) -> Any:
    """The unit of this number."""
    kv, window, bounds, order, slots, said = (
        a[2],
        a[4],
        integers(a[9]),
        integers(a[10]),
        integers(a[11]),
        integers(a[12]),
    )
    block, head = number // kv, number % kv
    begin, end = bounds[2 * block], bounds[2 * block + 1]
    slot = slots[order[begin]]
    length, there = integers(a[13])[slot], (slot * kv + head) * a[6] * width * 4
    lowest = length
    for place in range(begin, end):
        lowest = min(lowest, max(I64(0), length + said[order[place]] - window + 1))
    return Unit(head, begin, end - begin, length, a[19] + there, a[20] + there, lowest)


@njit(inline="always")
def cells_of(a: Any, unit: Any, i: Any, width: Any) -> Any:
    """Bytes before the own cells of the unit's row i."""
    return (integers(a[10])[unit.begin + i] * a[2] + unit.head) * a[5] * width * 4


@njit(fastmath=FAST, inline="always")
def enter(a: Any, shape: Any, memory: Any, unit: Any) -> None:
    """The rows' new keys and values are kept, their queries read and scaled."""
    (width, folded, _), rows, one, scale = shape, a[3], I64(4), F32(float64(a[8]))
    for i in range(unit.count):
        row = integers(a[10])[unit.begin + i]
        fresh, own = (
            4 * (unit.head * width * rows + row),
            cells_of(a, unit, i, width) + integers(a[12])[row] * width * 4,
        )
        copy(width, 1, (a[15] + fresh, rows * 4, a[17] + own, one))
        copy(width, 1, (a[16] + fresh, rows * 4, a[18] + own, one))
        for g in range(folded):
            place = a[14] + 4 * ((unit.head * folded + g) * width * rows + row)
            copy(width, 1, (place, rows * 4, memory.asking + (i * folded + g) * memory.deep, one))
    numbers = unit.count * folded * memory.deep // 4
    asking, sums = carray(floats(memory.asking), (numbers,)), carray(floats(memory.sums), (numbers,))
    for n in range(numbers):
        asking[n] *= scale
        sums[n] = ZERO


@njit(fastmath=FAST, inline="always")
def look(a: Any, shape: Any, memory: Any, unit: Any, i: Any) -> None:
    """Row i asks its own keys, its queries' weights are made, and it collects its own values."""
    width, folded, together = shape
    said, window, length = integers(a[12])[integers(a[10])[unit.begin + i]], a[4], unit.length
    first, end = max(I64(0), length + said - window + 1), said + 1
    own = max(I64(0), first - length)
    low, behind, near = unit.lowest // LANES * LANES, whole(length), own // LANES * LANES
    seen = whole(end - near)
    here, mine = cells_of(a, unit, i, width), memory.scores + i * folded * memory.stride
    keys, values = a[17] + here + near * width * 4, a[18] + here + near * width * 4
    asking = memory.asking + i * folded * memory.deep
    ask(width, 1, (asking, I64(folded), keys, seen // LANES, mine + behind * 4, memory.stride, values))
    for g in range(folded):
        scores = carray(floats(mine + g * memory.stride), (behind + seen,))
        scores[low : min(first, length)] = -np.inf
        scores[length:behind] = -np.inf
        scores[behind : behind + own - near] = -np.inf
        scores[behind + end - near :] = -np.inf
        share = memory.shares + (i * folded + g) * 4
        soften(1, 1, (mine + g * memory.stride + low * 4, (behind - low + seen) // LANES, share))
    following = a[17] + cells_of(a, unit, min(i + 1, unit.count - 1), width)
    values += (own - near) * width * 4
    for g in range(0, folded, together):
        weights, sums = (
            mine + g * memory.stride + (behind + own - near) * 4,
            memory.sums + (i * folded + g) * memory.deep,
        )
        collect(width, together, (weights, memory.stride, values, end - own, sums, following))


@njit(fastmath=FAST, inline="always")
def leave(a: Any, shape: Any, memory: Any, unit: Any) -> None:
    """What the rows have collected, over the sums of their weights, goes where it is asked for."""
    (width, folded, _), rows, one = shape, a[3], I64(4)
    shares = carray(floats(memory.shares), (unit.count * folded,))
    for m in range(unit.count * folded):
        sums = carray(floats(memory.sums + m * memory.deep), (width,))
        for d in range(width):
            sums[d] *= shares[m]
        row, head = integers(a[10])[unit.begin + m // folded], unit.head * folded + m % folded
        copy(width, 1, (memory.sums + m * memory.deep, one, a[21] + 4 * (head * width * rows + row), rows * 4))


def attend_of(width: int, folded: int) -> Any:
    """The kernel for heads of `width` numbers, of which `folded` share a key.

    A unit is a kv head of up to ROWS rows of a prompt: each writes its key and value, asks all keys, collects values.
    """
    padded = -(-width // HOST) * HOST
    most, at_once = ROWS * folded, max(1, MOST_SUMS * HOST // padded)
    together = max(n for n in range(1, folded + 1) if folded % n == 0 and n <= at_once)

    @cfunc(SIGNATURE, cache=True, fastmath=FAST, error_model="numpy")
    def attend(a: Any) -> None:
        units, stride, deep, line = a[1] * a[2], a[7] * 4, I64(padded * 4), I64(LINE)
        room = np.zeros(most * (a[7] + 2 * padded + 1) + LINE, dtype=F32)
        asking = (I64(room.ctypes.data) + line - 1) // line * line
        sums, shares = asking + most * deep, asking + 2 * most * deep
        scores = (shares + most * 4 + 2 * line) // line * line
        memory = Memory(asking, sums, shares, scores, stride, deep)
        shape = (width, folded, together)
        number = take(a)
        while number < units:
            unit = unit_of(a, number, width)
            enter(a, shape, memory, unit)
            low, every = unit.lowest // LANES * LANES, unit.count * folded
            prompt, blocks = unit.keys + low * width * 4, (whole(unit.length) - low) // LANES
            own = a[17] + cells_of(a, unit, I64(0), width)
            ask(width, 1, (asking, every, prompt, blocks, scores + low * 4, stride, own))
            for i in range(unit.count):
                look(a, shape, memory, unit, i)
            seen, values = unit.length - unit.lowest, unit.values + unit.lowest * width * 4
            for m in range(0, every, together):
                weights = scores + m * stride + unit.lowest * 4
                # what follows belongs to another unit, maybe another thread's: it asks for no more than it reads
                collect(width, together, (weights, stride, values, seen, sums + m * deep, values))
            leave(a, shape, memory, unit)
            number = take(a)
        room[0] = ZERO  # numba frees an array after its last use, and what is used here are addresses

    return attend
