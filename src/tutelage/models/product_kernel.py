"""W x for a step's few columns on a CPU, at the processor's speed: tiles of the result that stay in its registers.

The libraries' products are made for many rows: at 64 columns oneDNN reaches 0.75 to 0.85 of what the processor multiplies,
this one 0.95 (docs/log.md, 2026-11-22). A tile is a few rows of W by one to four vectors of columns, summed over the whole
depth. The weights come from memory, once; while one tile is summed the next one's are asked for, without which they are late.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import carray, cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from tutelage.models.kernels import FAST, ONE, SIGNATURE, exp, floats, take, wide
from tutelage.models.vectors import Vectors, long

LANES = 16
"""float32 numbers of a vector: 512 bits, as AVX-512 has. Where vectors are shorter PyTorch's product is faster, which `fused` measures."""
UNIT = 24
"""A thread takes a multiple of so many rows at once: of every tile's height a multiple."""
AT_ONCE = 2
"""Steps down the depth that are written out in a row."""
I64 = np.int64


class Tile(Vectors):
    """The instructions for `rows` rows of W times the first columns of x, of which the last vector has `left`."""

    def __init__(self, builder: Any, size: tuple[int, int], addresses: Sequence[Any], left: Any) -> None:
        super().__init__(builder, LANES)
        self.rows, self.count = size
        self.weight, self.x, self.out, depth, count = addresses
        self.deep, self.wide = (builder.mul(n, long(4)) for n in (depth, count))  # bytes from row to row
        self.mask = self.first(left)
        self.sums = [[self.variable(self.nothing) for _ in range(size[1])] for _ in range(size[0])]

    def sum_up(self, depth: Any) -> None:
        """All of the sums, over the depth, and their way into memory."""
        builder = self.builder
        even = builder.mul(builder.sdiv(depth, long(AT_ONCE)), long(AT_ONCE))
        with cgutils.for_range_slice(builder, long(0), even, long(AT_ONCE), inc=True) as (k, _):
            for further in range(AT_ONCE):
                self._add(builder.add(k, long(further)))
        with cgutils.for_range_slice(builder, even, depth, long(1), inc=True) as (k, _):
            self._add(k)
        for row, sums in enumerate(self.sums):
            start = builder.add(self.out, builder.mul(self.wide, long(row)))
            for vector, place in enumerate(sums):
                self.write(builder.load(place), *self._cell(start, vector))

    def _add(self, k: Any) -> None:
        """sums[row, columns] += W[row, k] x[k, columns]."""
        builder = self.builder
        if self.rows > 1:  # of the next tile's weights the part that k is of this one's: they lie in a row
            following = builder.add(self.weight, builder.mul(self.deep, long(self.rows)))
            self.ask_for(builder.add(following, builder.mul(k, long(4 * self.rows))))
        start = builder.add(self.x, builder.mul(k, self.wide))
        columns = [self.read(*self._cell(start, vector)) for vector in range(self.count)]
        for row, sums in enumerate(self.sums):
            cell = builder.add(self.weight, builder.add(builder.mul(self.deep, long(row)), builder.mul(k, long(4))))
            weight = self.spread(self.number(cell))
            for place, x in zip(sums, columns, strict=True):
                builder.store(self.multiply_add(weight, x, builder.load(place)), place)

    def _cell(self, start: Any, vector: int) -> tuple[Any, Any]:
        """The address of a row's vector of columns, and the mask of the last one."""
        return self.builder.add(start, long(4 * LANES * vector)), self.mask if vector == self.count - 1 else None


def tile(rows: int, vectors: int) -> Any:
    """((address of W's row, of x's column, of the result's cell, depth, columns of x, columns in the last vector)) -> 0."""

    @intrinsic
    def run(_context: Any, _places: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            *addresses, left = cgutils.unpack_tuple(builder, arguments[0], 6)
            Tile(builder, (rows, vectors), addresses, left).sum_up(addresses[3])
            return long(0)

        return types.int64(types.UniTuple(types.int64, 6)), generate

    return run


def strip(height: int, vectors: int) -> Any:
    """Rows [at, end) of W by one to four vectors of columns, in tiles of `height` rows, and the rows left over one by one."""
    tall, single = tile(height, vectors), tile(1, vectors)

    @njit(inline="always")
    def run(weight: Any, x: Any, out: Any, end: Any, sizes: Any) -> Any:
        at, depth, count, left = sizes
        while at < end:
            places = (weight + 4 * at * depth, x, out + 4 * at * count, depth, count, left)
            if at + height <= end:
                tall(places)
                at += height
            else:
                single(places)
                at += 1

    return run


strip1, strip2, strip3, strip4 = strip(12, 1), strip(12, 2), strip(8, 3), strip(6, 4)
"""12 to 24 sums and the vectors that are multiplied fit in 32 registers."""


@njit(inline="always")
def strips(weight: Any, x: Any, out: Any, numbers: Any) -> None:
    """Rows [start, end) of out = W x, a few vectors of columns at a time."""
    start, end, depth, count = numbers
    column = I64(0)
    while column < count:
        vectors = (count - column + LANES - 1) // LANES
        if vectors > 4:
            vectors = 3 if vectors == 5 else 4
        size = min(count - column, vectors * LANES)
        here, there, sizes = x + 4 * column, out + 4 * column, (start, depth, count, size - (vectors - 1) * LANES)
        if vectors == 4:
            strip4(weight, here, there, end, sizes)
        elif vectors == 3:
            strip3(weight, here, there, end, sizes)
        elif vectors == 2:
            strip2(weight, here, there, end, sizes)
        else:
            strip1(weight, here, there, end, sizes)
        column += size


@njit(inline="always")
def biased(a: Any, start: Any, end: Any) -> None:
    """Rows [start, end) of what `product` sums, plus the bias, where there is one."""
    rows, count = a[1], a[3]
    if a[8] != 0:
        bias, out = carray(floats(a[8]), (rows,)), carray(floats(a[6]), (rows, count))
        for row in range(start, end):
            for n in range(count):
                out[row, n] += bias[row]


@njit(inline="always")
def opened(a: Any, start: Any, end: Any) -> None:
    """Rows [start, end) of what `gated` sums: out = g sigmoid(g) u."""
    cells, there = (end - start) * a[3], 4 * start * a[3]
    out, beside = carray(floats(a[7] + there), (cells,)), carray(floats(a[8] + there), (cells,))
    for n in range(cells):
        out[n] = out[n] / (ONE + exp(-out[n])) * beside[n]


@cfunc(SIGNATURE, cache=True)
def product(a: Any) -> None:
    """out [N, C] = W [N, K] x [K, C] + bias [N], where there is one."""
    rows, depth, count, unit = a[1], a[2], a[3], a[7]
    start = take(a) * unit
    while start < rows:
        end = min(start + unit, rows)
        strips(a[4], a[5], a[6], (start, end, depth, count))
        biased(a, start, end)
        start = take(a) * unit


@cfunc(SIGNATURE, cache=True, fastmath=FAST, error_model="numpy")
def gated(a: Any) -> None:
    """out [N, C] = g sigmoid(g) u, of g = W x and u = V x, which goes into `beside` first."""
    wide()
    rows, depth, count, unit = a[1], a[2], a[3], a[9]
    start = take(a) * unit
    while start < rows:
        end = min(start + unit, rows)
        strips(a[4], a[6], a[7], (start, end, depth, count))
        strips(a[5], a[6], a[8], (start, end, depth, count))
        opened(a, start, end)
        start = take(a) * unit
