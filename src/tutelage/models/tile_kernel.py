"""W x on a processor's matrix unit (Intel's AMX), as precisely as in float32: each number as a sum of three of bfloat16.

A float32 has 24 bits, a bfloat16 8: x = h + m + l, exactly. Six products of such parts, h h', h m', m h', h l', m m' and
l h', are summed in float32; what is left out is below 2^-25 of a product, less than a rounding (Henry, Tang and Heinecke
2019, arXiv:1904.06376). The unit multiplies 16 times as much in bfloat16 as the vectors in float32: six are well paid.

x is split once, by a kernel of its own, into tiles as the unit reads them. W is split on its way, a block of 16 rows and 32
numbers while the one before is multiplied: it comes from memory once, and as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from tutelage.models.kernels import FAST, I64, ONE, SIGNATURE, exp, floats, take, wide
from tutelage.models.vectors import BYTES, LONG, Vectors, long

LANES = 16
UNIT = 16
"""Rows of W that a tile holds; columns of x, too."""
DEEP = 32
"""Numbers of a row that a tile holds: 64 bytes of bfloat16."""
TILE = 1024
"""Bytes."""
PARTS = 3
SIDE_BY_SIDE = 4
"""Tiles of columns that are summed at once: of the unit's eight, three hold W's parts, and one what it is multiplied by."""
WEIGHT, ASKED = SIDE_BY_SIDE, 7
"""The first of W's three, and the one for x."""
SMALL = ir.IntType(8)
HALF, TOP = 0x8000, 0xFFFF0000 - (1 << 32)
SCRATCH = 2 * PARTS * TILE + TILE
"""A thread's own bytes: W's parts of two blocks in turn, and a tile of the result that is cut off."""


class Splitting(Vectors):
    """The instructions that split float32 numbers into three of bfloat16."""

    def __init__(self, builder: Any) -> None:
        super().__init__(builder, LANES)

    def lay(self, first: Any, second: Any, there: Any) -> None:
        """Two vectors as a row of three tiles, number i of one beside number i of the other."""
        for part, (low, high) in enumerate(zip(self.parts(first), self.parts(second), strict=True)):
            row = self.builder.or_(self.builder.lshr(low, self.bits(16)), high)
            place = self.builder.inttoptr(self.builder.add(there, long(part * TILE)), self.whole.as_pointer())
            self.builder.store(row, place, align=4)

    def parts(self, x: Any) -> list[Any]:
        """Three vectors whose numbers end after 16 bits: x to the nearest of these, what is left so too, what is left."""
        parts = []
        for _ in range(PARTS - 1):
            near = self.builder.add(self.builder.bitcast(x, self.whole), self.bits(HALF))
            parts.append(self.builder.and_(near, self.bits(TOP)))
            x = self.builder.fsub(x, self.builder.bitcast(parts[-1], self.kind))
        return [*parts, self.builder.bitcast(x, self.whole)]


class Tiles(Splitting):
    """The instructions for 16 rows of W times `count` tiles of columns."""

    def __init__(self, builder: Any, count: int, addresses: Sequence[Any]) -> None:
        super().__init__(builder)
        self.count = count
        self.weight, self.planes, self.out, self.depth, self.across_all, self.columns, self.scratch = addresses
        self.deep = builder.mul(self.depth, long(4))  # bytes from a row of W to the next

    def sum_up(self, left: Any) -> None:
        """All of the sums and their way into memory, where the last tile has `left` columns."""
        builder = self.builder
        for tile in range(self.count):
            self.unit("tilezero", tile)
        for row in range(UNIT):
            self._split(row, self.weight, self.scratch)
        blocks = builder.sdiv(self.depth, long(DEEP))
        with cgutils.for_range_slice(builder, long(0), blocks, long(1), inc=True) as (block, _):
            self._block(block, blocks)
        wide = builder.mul(self.columns, long(4))
        for tile in range(self.count - 1):
            self._store(tile, builder.add(self.out, long(4 * LANES * tile)), wide)
        self._store_last(wide, left)

    def _block(self, block: Any, blocks: Any) -> None:
        """Sums over 32 numbers more; between the products the next block's weights are split, and later ones asked for."""
        builder = self.builder
        here = builder.add(self.scratch, builder.mul(builder.and_(block, long(1)), long(PARTS * TILE)))
        there = builder.sub(builder.add(self.scratch, builder.add(self.scratch, long(PARTS * TILE))), here)
        following = builder.add(block, long(1))
        last = builder.icmp_signed("==", following, blocks)
        weight = builder.add(
            self.weight, builder.mul(builder.select(last, long(0), following), long(4 * DEEP))
        )  # of the last block's following one nothing is used
        ahead = builder.add(self.weight, builder.mul(self.deep, long(UNIT)))
        ahead = builder.add(ahead, builder.mul(block, long(4 * DEEP * UNIT)))
        for part in range(PARTS):
            self._load(WEIGHT + part, builder.add(here, long(part * TILE)))
        planes = builder.add(self.planes, builder.mul(block, self.across_all))
        rows = iter(range(UNIT))
        for part in range(PARTS):
            for tile in range(self.count):
                self._load(ASKED, builder.add(planes, long((tile * PARTS + part) * TILE)))
                for other in range(PARTS - part):
                    self.unit("tdpbf16ps", tile, WEIGHT + other, ASKED)
                for _, row in zip(range(-(-UNIT // (2 * self.count))), rows, strict=False):
                    self._split(row, weight, there)
                    for line in range(2):
                        self.ask_for(builder.add(ahead, long((2 * row + line) * 64)))

    def _split(self, row: int, weight: Any, there: Any) -> None:
        start = self.builder.add(weight, self.builder.mul(self.deep, long(row)))
        first, second = self.read(start), self.read(self.builder.add(start, long(4 * LANES)))
        self.lay(first, second, self.builder.add(there, long(row * 4 * LANES)))

    def _store_last(self, wide: Any, left: Any) -> None:
        """The last tile; by way of the scratch where it is cut off."""
        builder = self.builder
        out = builder.add(self.out, long(4 * LANES * (self.count - 1)))
        with builder.if_else(builder.icmp_signed("==", left, long(LANES))) as (then, otherwise):
            with then:
                self._store(self.count - 1, out, wide)
            with otherwise:
                held, mask = builder.add(self.scratch, long(2 * PARTS * TILE)), self.first(left)
                self._store(self.count - 1, held, long(4 * LANES))
                for row in range(UNIT):
                    numbers = self.read(builder.add(held, long(row * 4 * LANES)))
                    self.write(numbers, builder.add(out, builder.mul(wide, long(row))), mask)

    def _load(self, tile: int, address: Any) -> None:
        self.unit("tileloadd64", tile, self.builder.inttoptr(address, BYTES), long(4 * LANES))

    def _store(self, tile: int, address: Any, stride: Any) -> None:
        self.unit("tilestored64", tile, self.builder.inttoptr(address, BYTES), stride)

    def unit(self, name: str, *operands: Any) -> None:
        """An instruction of the matrix unit; a tile by its number."""
        values = [ir.Constant(SMALL, each) if isinstance(each, int) else each for each in operands]
        kind = [value.type for value in values]
        self.builder.call(self.function(ir.VoidType(), kind, f"llvm.x86.{name}"), values)


@intrinsic
def lay(_context: Any, _places: Any) -> Any:
    """((address of 16 numbers, of 16 more, of a tile's row, how many of them there are)) -> 0."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        first, second, there, count = cgutils.unpack_tuple(builder, arguments[0], 4)
        splitting = Splitting(builder)
        mask = splitting.first(count)
        splitting.lay(splitting.read(first, mask), splitting.read(second, mask), there)
        return long(0)

    return types.int64(types.UniTuple(types.int64, 4)), generate


@intrinsic
def configure(_context: Any, _place: Any) -> Any:
    """(address of 64 bytes) -> 0: eight tiles of 16 rows of 64 bytes; what this thread's unit held is gone."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        sizes = [1, 0] + [0] * 14 + [64, 0] * 8 + [0] * 16 + [UNIT] * 8 + [0] * 8
        kind = ir.ArrayType(SMALL, len(sizes))
        builder.store(ir.Constant(kind, sizes), builder.inttoptr(arguments[0], kind.as_pointer()), align=1)
        load = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [BYTES]), "llvm.x86.ldtilecfg"
        )
        builder.call(load, [builder.inttoptr(arguments[0], BYTES)])
        return long(0)

    return types.int64(types.int64), generate


@intrinsic
def release(_context: Any) -> Any:
    """() -> 0: the unit is not kept for this thread any more."""

    def generate(_context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.tilerelease"), [])
        return long(0)

    return types.int64(), generate


def tiles(count: int) -> Any:
    """((address of W's 16 rows, of x's tiles, of the result; depth, bytes of a block's tiles, columns, scratch, columns of the last tile)) -> 0."""

    @intrinsic
    def run(_context: Any, _places: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            *addresses, left = cgutils.unpack_tuple(builder, arguments[0], 8)
            Tiles(builder, count, addresses).sum_up(left)
            return long(0)

        return types.int64(types.UniTuple(types.int64, 8)), generate

    return run


tiles1, tiles2, tiles3, tiles4 = tiles(1), tiles(2), tiles(3), tiles(4)


@njit(inline="always")
def own(memory: Any) -> Any:
    """The address of a thread's memory from where a line of the cache begins; the unit is ready for this kernel."""
    start = (I64(memory.ctypes.data) + 63) // 64 * 64
    configure(start)
    return start


@njit(inline="always")
def strips(weight: Any, planes: Any, out: Any, numbers: Any) -> None:
    """Rows [start, end) of out = W x, four tiles of columns at a time."""
    start, end, depth, count, scratch = numbers
    number = (count + UNIT - 1) // UNIT
    across_all = number * PARTS * TILE
    for first in range(0, number, SIDE_BY_SIDE):
        several = min(I64(SIDE_BY_SIDE), number - first)
        left = min(I64(UNIT), count - (first + several - 1) * UNIT)
        x = planes + first * PARTS * TILE
        for row in range(start, end, UNIT):
            here, there = weight + 4 * row * depth, out + 4 * (row * count + first * UNIT)
            places = (here, x, there, depth, across_all, count, scratch, left)
            if several == 4:
                tiles4(places)
            elif several == 3:
                tiles3(places)
            elif several == 2:
                tiles2(places)
            else:
                tiles1(places)


@cfunc(SIGNATURE, cache=True)
def split(a: Any) -> None:
    """x [K, C] as tiles [K / 32, C / 16, 3 parts, 16, 32]; missing columns are zeros."""
    depth, count, x, planes = a[1], a[2], a[3], a[4]
    number = (count + UNIT - 1) // UNIT
    block = take(a)
    while block < depth // DEEP:
        for tile in range(number):
            there, columns = planes + (block * number + tile) * PARTS * TILE, min(I64(UNIT), count - tile * UNIT)
            here = x + 4 * (block * DEEP * count + tile * UNIT)
            for row in range(UNIT):
                lay((here + 4 * row * count, here + 4 * (row + UNIT) * count, there + 64 * row, columns))
        block = take(a)


@cfunc(SIGNATURE, cache=True)
def product(a: Any) -> None:
    """out [N, C] = W [N, K] x + bias [N], where there is one; N in whole tiles, x as `split` leaves it."""
    rows, depth, count, unit = a[1], a[2], a[3], a[7]
    memory = np.empty(SCRATCH + 64, dtype=np.uint8)
    scratch = own(memory)
    start = take(a) * unit
    while start < rows:
        end = min(start + unit, rows)
        strips(a[4], a[5], a[6], (start, end, depth, count, scratch))
        if a[8] != 0:
            bias, out = carray(floats(a[8]), (rows,)), carray(floats(a[6]), (rows, count))
            for row in range(start, end):
                for n in range(count):
                    out[row, n] += bias[row]
        start = take(a) * unit
    release()
    memory[0] = 0  # it lives until here


@cfunc(SIGNATURE, cache=True, fastmath=FAST, error_model="numpy")
def gated(a: Any) -> None:
    """out [N, C] = g sigmoid(g) u, of g = W x and u = V x, which goes into `beside` first; x as `split` leaves it."""
    wide()
    rows, depth, count, unit = a[1], a[2], a[3], a[9]
    memory = np.empty(SCRATCH + 64, dtype=np.uint8)
    scratch = own(memory)
    start = take(a) * unit
    while start < rows:
        end = min(start + unit, rows)
        strips(a[4], a[6], a[7], (start, end, depth, count, scratch))
        strips(a[5], a[6], a[8], (start, end, depth, count, scratch))
        cells, there = (end - start) * count, 4 * start * count
        out, beside = carray(floats(a[7] + there), (cells,)), carray(floats(a[8] + there), (cells,))
        for n in range(cells):
            out[n] = out[n] / (ONE + exp(-out[n])) * beside[n]
        start = take(a) * unit
    release()
    memory[0] = 0  # it lives until here
