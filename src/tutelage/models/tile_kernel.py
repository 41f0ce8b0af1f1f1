"""W x on a processor's matrix unit (Intel's AMX), as precisely as in float32: each number as a sum of three of bfloat16.

A float32 has 24 bits, a bfloat16 8: x = h + m + l, exactly. Six products of such parts, h h', h m', m h', h l', m m' and
l h', are summed in float32; what is left out is at most 2^-24 of a product, as a rounding is (Henry, Tang and Heinecke 2019,
arXiv:1904.06376). The unit multiplies 16 times as much in bfloat16 as the vectors in float32: six are well paid.

x is split once, by a kernel of its own, into tiles as the unit reads them. W is split on its way, a block of 16 rows and 32
numbers while the one before is multiplied: it comes from memory once, and as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cfunc, njit

from tutelage.models.kernels import BLOCK, F32, FAST, I64, SIGNATURE, normed, take, wide
from tutelage.models.product_kernel import biased, opened
from tutelage.models.tile_instructions import (
    DEEP,
    LANES,
    PARTS,
    SCRATCH,
    SIDE_BY_SIDE,
    TILE,
    UNIT,
    begin,
    configure,
    lay,
    release,
    tiles1,
    tiles2,
    tiles3,
    tiles4,
)

AT_ONCE = 3
"""Blocks of x that stay in the first cache."""


@njit(inline="always")
def own(memory: Any) -> Any:
    """The address of a thread's memory from where a line of the cache begins; the unit is ready for this kernel."""
    start = (I64(memory.ctypes.data) + 63) // 64 * 64
    configure(start)
    return start


@njit(inline="always")
def strips(weight: Any, planes: Any, out: Any, numbers: Any) -> None:
    """Rows [start, end) of out = W x, four tiles of columns at a time.

    Of x a few blocks stay in the first cache for all of these rows; what is summed so far waits in `out`.
    """
    start, end, depth, count, scratch, at_once = numbers
    number = (count + UNIT - 1) // UNIT
    for first in range(0, number, SIDE_BY_SIDE):
        several = min(I64(SIDE_BY_SIDE), number - first)
        left = min(I64(UNIT), count - (first + several - 1) * UNIT)
        most = at_once if left == UNIT else depth // DEEP  # a tile that is cut off cannot go on from memory
        turn = I64(0)
        for block in range(0, depth // DEEP, most):
            blocks = min(most, depth // DEEP - block)
            later = planes + (first + SIDE_BY_SIDE if first + SIDE_BY_SIDE < number else 0) * PARTS * TILE
            if block + most < depth // DEEP:
                later = planes + ((block + most) * number + first) * PARTS * TILE
            for row in range(start, end, UNIT):
                here = weight + 4 * (row * depth + block * DEEP)
                x = planes + (block * number + first) * PARTS * TILE
                there = out + 4 * (row * count + first * UNIT)
                following = here + 4 * UNIT * depth
                if row + UNIT >= end:
                    behind = (block + most) * DEEP
                    following = weight + 4 * (start * depth + (behind if behind < depth else 0))
                sizes = (depth, blocks, turn, number * PARTS * TILE, count, left, I64(block == 0))
                piece = (here, following, x, later, there, scratch, *sizes)
                if turn == 0:
                    begin(piece)
                if several == 4:
                    tiles4(piece)
                elif several == 3:
                    tiles3(piece)
                elif several == 2:
                    tiles2(piece)
                else:
                    tiles1(piece)
                turn += blocks
                later += several * PARTS * 4 * LANES


@njit(inline="always")
def laid(x: Any, planes: Any, numbers: Any) -> None:
    """Rows [start, end) of x [K, C], whole blocks of them, of tiles [first, last) into the tiles; missing columns are zeros."""
    start, end, first, last, count = numbers
    number = (count + UNIT - 1) // UNIT
    for block in range(start // DEEP, end // DEEP):
        for tile in range(first, last):
            there, columns = planes + (block * number + tile) * PARTS * TILE, min(I64(UNIT), count - tile * UNIT)
            here = x + 4 * (block * DEEP * count + tile * UNIT)
            for row in range(UNIT):
                lay((here + 4 * row * count, here + 4 * (row + UNIT) * count, there + 64 * row, columns))


@cfunc(SIGNATURE, cache=True)
def split(a: Any) -> None:
    """x [K, C] as tiles [K / 32, C / 16, 3 parts, 16, 32]."""
    depth, count, x, planes = a[1], a[2], a[3], a[4]
    block = take(a)
    while block < depth // DEEP:
        laid(x, planes, (block * DEEP, (block + 1) * DEEP, I64(0), (count + UNIT - 1) // UNIT, count))
        block = take(a)


@cfunc(SIGNATURE, cache=True, fastmath=FAST, error_model="numpy")
def norm(a: Any) -> None:
    """As `kernels.norm` of one head; what comes out is split, too."""
    wide()
    depth, count, planes = a[1], a[2], a[9]
    squares = np.empty(BLOCK, dtype=F32)
    number = (count + UNIT - 1) // UNIT
    start = take(a) * BLOCK
    while start < count:
        normed(a, 4 * start, min(I64(BLOCK), count - start), squares)
        first = start // UNIT
        laid(a[5], planes, (I64(0), depth, first, min(first + BLOCK // UNIT, number), count))
        start = take(a) * BLOCK


@cfunc(SIGNATURE, cache=True)
def product(a: Any) -> None:
    """out [N, C] = W [N, K] x + bias [N], where there is one; x as `split` leaves it, N at least a tile.

    Rows behind the last whole tile are summed with those before them, once more: each in one go, from nothing.
    """
    rows, depth, count, unit = a[1], a[2], a[3], a[7]
    whole = rows // UNIT * UNIT
    memory = np.empty(SCRATCH + 64, dtype=np.uint8)
    scratch = own(memory)
    start = take(a) * unit
    while start < whole:
        end, at_once = min(start + unit, whole), I64(AT_ONCE)
        while start < end:
            strips(a[4], a[5], a[6], (start, end, depth, count, scratch, at_once))
            biased(a, start, end)
            behind = end == whole and whole < rows
            start, end, at_once = (rows - UNIT, rows, depth // DEEP) if behind else (end, end, at_once)
        start = take(a) * unit
    release()
    memory[0] = 0  # numba frees an array after its last use: here


@cfunc(SIGNATURE, cache=True, fastmath=FAST, error_model="numpy")
def gated(a: Any) -> None:
    """out [N, C] = g sigmoid(g) u, of g = W x and u = V x, which goes into `beside` first; x as `split` leaves it, and so out, where asked for."""
    wide()
    rows, depth, count, unit = a[1], a[2], a[3], a[9]
    memory = np.empty(SCRATCH + 64, dtype=np.uint8)
    scratch = own(memory)
    start = take(a) * unit
    while start < rows:
        end = min(start + unit, rows)
        strips(a[4], a[6], a[7], (start, end, depth, count, scratch, I64(AT_ONCE)))
        strips(a[5], a[6], a[8], (start, end, depth, count, scratch, I64(AT_ONCE)))
        opened(a, start, end)
        if a[10] != 0:
            laid(a[7], a[10], (start, end, I64(0), (count + UNIT - 1) // UNIT, count))
        start = take(a) * unit
    release()
    memory[0] = 0  # numba frees an array after its last use: here
