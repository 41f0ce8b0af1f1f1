"""W x for a step's few columns on a CPU, at the processor's speed: tiles of the result that stay in its registers.

The libraries' products are made for many rows: at 64 columns oneDNN reaches 0.75 to 0.85 of what the processor multiplies,
this one 0.95 (docs/log.md, 2026-11-22). A tile is a few rows of W by one to four vectors of columns, summed over the whole
depth. The weights come from memory, once; while one tile is summed the next one's are asked for, without which they are late.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from tutelage.models.kernels import SIGNATURE, take

LANES = 16
"""float32 numbers of a vector: 512 bits, as AVX-512 has. Where vectors are shorter PyTorch's product is faster, which `fused` measures."""
UNIT = 24
"""A thread takes a multiple of so many rows at once: of every tile's height a multiple."""
AT_ONCE = 2
"""Steps down the depth that are written out in a row."""
I64 = np.int64
FLOAT, LONG, INT, BIT = ir.FloatType(), ir.IntType(64), ir.IntType(32), ir.IntType(1)
VECTOR, MASK = ir.VectorType(FLOAT, LANES), ir.VectorType(BIT, LANES)
NOTHING = ir.Constant(VECTOR, [0.0] * LANES)
CONTRACT = ("contract",)
"""A product and a sum are one instruction."""


class Tile:
    """The instructions for `rows` rows of W times the first columns of x, of which the last vector has `left`."""

    def __init__(self, builder: Any, size: tuple[int, int], addresses: Sequence[Any], left: Any) -> None:
        self.builder, (self.rows, self.vectors) = builder, size
        self.weight, self.x, self.out, depth, count = addresses
        self.deep, self.wide = (builder.mul(n, _long(4)) for n in (depth, count))  # bytes from row to row
        lanes = ir.Constant(ir.VectorType(INT, LANES), list(range(LANES)))
        self.mask = builder.icmp_signed("<", lanes, self._spread(builder.trunc(left, INT), INT))
        self.sums = [[cgutils.alloca_once_value(builder, NOTHING) for _ in range(size[1])] for _ in range(size[0])]

    def multiply(self, depth: Any) -> None:
        """All of the sums, over the depth, and their way into memory."""
        builder = self.builder
        even = builder.mul(builder.sdiv(depth, _long(AT_ONCE)), _long(AT_ONCE))
        with cgutils.for_range_slice(builder, _long(0), even, _long(AT_ONCE), inc=True) as (k, _):
            for further in range(AT_ONCE):
                self._add(builder.add(k, _long(further)))
        with cgutils.for_range_slice(builder, even, depth, _long(1), inc=True) as (k, _):
            self._add(k)
        for row, sums in enumerate(self.sums):
            start = builder.add(self.out, builder.mul(self.wide, _long(row)))
            for vector, place in enumerate(sums):
                self._write(builder.load(place), start, vector)

    def _add(self, k: Any) -> None:
        """sums[row, columns] += W[row, k] x[k, columns]."""
        builder = self.builder
        if self.rows > 1:
            self._ask_for(builder.add(self.weight, builder.mul(self.deep, _long(self.rows))), k)
        start = builder.add(self.x, builder.mul(k, self.wide))
        columns = [self._read(start, vector) for vector in range(self.vectors)]
        for row, sums in enumerate(self.sums):
            cell = builder.add(self.weight, builder.add(builder.mul(self.deep, _long(row)), builder.mul(k, _long(4))))
            weight = self._spread(builder.load(builder.inttoptr(cell, FLOAT.as_pointer()), align=4), FLOAT)
            for place, x in zip(sums, columns, strict=True):
                product = builder.fmul(weight, x, flags=CONTRACT)
                builder.store(builder.fadd(builder.load(place), product, flags=CONTRACT), place)

    def _ask_for(self, following: Any, k: Any) -> None:
        """The part of the next tile's weights that k is of this one's: they lie in a row, `rows` numbers for each k."""
        place = ir.IntType(8).as_pointer()
        ahead = self._function(ir.VoidType(), [place, INT, INT, INT], "llvm.prefetch.p0")
        at = self.builder.add(following, self.builder.mul(k, _long(4 * self.rows)))
        read, keep, data = (ir.Constant(INT, each) for each in (0, 3, 1))
        self.builder.call(ahead, [self.builder.inttoptr(at, place), read, keep, data])

    def _read(self, start: Any, vector: int) -> Any:
        place = self._place(start, vector)
        if vector < self.vectors - 1:
            return self.builder.load(place, align=4)
        load = self._function(VECTOR, [place.type, INT, MASK, VECTOR], f"llvm.masked.load.v{LANES}f32.p0")
        return self.builder.call(load, [place, ir.Constant(INT, 4), self.mask, NOTHING])

    def _write(self, value: Any, start: Any, vector: int) -> None:
        place = self._place(start, vector)
        if vector < self.vectors - 1:
            self.builder.store(value, place, align=4)
            return
        kinds = [VECTOR, place.type, INT, MASK]
        store = self._function(ir.VoidType(), kinds, f"llvm.masked.store.v{LANES}f32.p0")
        self.builder.call(store, [value, place, ir.Constant(INT, 4), self.mask])

    def _place(self, start: Any, vector: int) -> Any:
        return self.builder.inttoptr(self.builder.add(start, _long(4 * LANES * vector)), VECTOR.as_pointer())

    def _spread(self, value: Any, kind: Any) -> Any:
        """A vector of nothing but this value."""
        nothing = ir.Constant(ir.VectorType(kind, LANES), ir.Undefined)
        first = self.builder.insert_element(nothing, value, ir.Constant(INT, 0))
        return self.builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(INT, LANES), [0] * LANES))

    def _function(self, result: Any, kinds: list[Any], name: str) -> Any:
        return cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(result, kinds), name)


def _long(value: int) -> Any:
    return ir.Constant(LONG, value)


def tile(rows: int, vectors: int) -> Any:
    """((address of W's row, of x's column, of the result's cell, depth, columns of x, columns in the last vector)) -> 0."""

    @intrinsic
    def run(_context: Any, _places: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            *addresses, left = cgutils.unpack_tuple(builder, arguments[0], 6)
            Tile(builder, (rows, vectors), addresses, left).multiply(addresses[3])
            return _long(0)

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


@cfunc(SIGNATURE, cache=True)
def product(a: Any) -> None:
    """out [N, C] = W [N, K] x [K, C]."""
    rows, depth, count, unit = a[1], a[2], a[3], a[7]
    start = take(a) * unit
    while start < rows:
        end, column = min(start + unit, rows), I64(0)
        while column < count:
            vectors = (count - column + LANES - 1) // LANES
            if vectors > 4:
                vectors = 3 if vectors == 5 else 4
            size = min(count - column, vectors * LANES)
            x, out, sizes = a[5] + 4 * column, a[6] + 4 * column, (start, depth, count, size - (vectors - 1) * LANES)
            if vectors == 4:
                strip4(a[4], x, out, end, sizes)
            elif vectors == 3:
                strip3(a[4], x, out, end, sizes)
            elif vectors == 2:
                strip2(a[4], x, out, end, sizes)
            else:
                strip1(a[4], x, out, end, sizes)
            column += size
        start = take(a) * unit
