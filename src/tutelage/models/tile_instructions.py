"""Instructions of Intel's matrix unit (AMX) in kernels that numba compiles: float32 numbers split into three of bfloat16.

A tile is 16 rows of 64 bytes: of W's numbers 32 of each row, of x's 32 of each of 16 columns, of sums in float32 16. LLVM's own names
for what is called here are llvm.x86.tileloadd64, tdpbf16ps, tilestored64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tutelage.models.vectors import BYTES, Vectors, long

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
SECOND = 2
"""The cache that is asked to keep what comes later (LLVM's number: 3 the first, 2 the second)."""
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


class Piece(NamedTuple):
    """What is summed at once: 16 rows of W times up to four tiles of columns, over some blocks of the depth. Addresses and sizes."""

    weight: Any
    following: Any
    """The next piece's weights: those of its first block are split meanwhile, the others asked for."""
    planes: Any
    later: Any
    """Tiles of columns that will be multiplied after these: a part of them, for this piece to ask for."""
    out: Any
    scratch: Any
    depth: Any
    blocks: Any
    turn: Any
    """How many blocks came before, in this unit: they take the scratch's two places in turn."""
    across: Any
    """Bytes of a block's tiles, all columns'."""
    columns: Any
    left: Any
    """Columns of the last tile."""
    fresh: Any
    """Whether the sums begin here; otherwise they go on from what `out` holds."""


SIZE = len(Piece._fields)


class Tiles(Splitting):
    """The instructions for a piece that is `count` tiles of columns wide."""

    def __init__(self, builder: Any, count: int, piece: Piece) -> None:
        super().__init__(builder)
        self.count, self.piece = count, piece
        self.deep = builder.mul(piece.depth, long(4))  # bytes from a row of W to the next
        self.wide = builder.mul(piece.columns, long(4))
        self.outs = [builder.add(piece.out, long(4 * LANES * tile)) for tile in range(count)]

    def sum_up(self) -> None:
        """All of the sums and their way into memory."""
        builder = self.builder
        with builder.if_else(builder.icmp_signed("!=", self.piece.fresh, long(0))) as (then, otherwise):
            with then:
                for tile in range(self.count):
                    self.unit("tilezero", tile)
            with otherwise:
                for tile, out in enumerate(self.outs):
                    self._load(tile, out, self.wide)
        with cgutils.for_range_slice(builder, long(0), self.piece.blocks, long(1), inc=True) as (block, _):
            self._block(block)
        for tile, out in enumerate(self.outs[:-1]):
            self._store(tile, out, self.wide)
        self._store_last()

    def split(self, row: int, weight: Any, there: Any) -> None:
        """32 numbers of a row of W."""
        start = self.builder.add(weight, self.builder.mul(self.deep, long(row)))
        first, second = self.read(start), self.read(self.builder.add(start, long(4 * LANES)))
        self.lay(first, second, self.builder.add(there, long(row * 4 * LANES)))

    def turned(self, turn: Any) -> Any:
        """Where a block's weights lie."""
        odd = self.builder.and_(turn, long(1))
        return self.builder.add(self.piece.scratch, self.builder.mul(odd, long(PARTS * TILE)))

    def _block(self, block: Any) -> None:
        """Sums over 32 numbers more; between the products the next block's weights are split, and later ones asked for."""
        builder, piece = self.builder, self.piece
        turn, far = builder.add(piece.turn, block), builder.mul(block, long(4 * DEEP))
        here, there = self.turned(turn), self.turned(builder.add(turn, long(1)))
        ahead = builder.add(piece.following, far)
        last = builder.icmp_signed("==", builder.add(block, long(1)), piece.blocks)
        behind = builder.add(builder.add(piece.weight, far), long(4 * DEEP))
        weight = builder.select(last, piece.following, behind)
        for part in range(PARTS):
            self._load(WEIGHT + part, builder.add(here, long(part * TILE)), long(4 * LANES))
        planes, later = (builder.add(start, builder.mul(block, piece.across)) for start in (piece.planes, piece.later))
        rows = iter(range(UNIT))
        for part in range(PARTS):
            for tile in range(self.count):
                number = tile * PARTS + part
                self._load(ASKED, builder.add(planes, long(number * TILE)), long(4 * LANES))
                self.ask_for(builder.add(later, long(number * 4 * LANES)), SECOND)
                for other in range(PARTS - part):
                    self.unit("tdpbf16ps", tile, WEIGHT + other, ASKED)
                for _, row in zip(range(-(-UNIT // (2 * self.count))), rows, strict=False):
                    self.split(row, weight, there)
                    line = builder.add(ahead, builder.mul(self.deep, long(row)))
                    self.ask_for(line)
                    self.ask_for(builder.add(line, long(4 * LANES)))

    def _store_last(self) -> None:
        """The last tile; by way of the scratch where it is cut off."""
        builder, left = self.builder, self.piece.left
        with builder.if_else(builder.icmp_signed("==", left, long(LANES))) as (then, otherwise):
            with then:
                self._store(self.count - 1, self.outs[-1], self.wide)
            with otherwise:
                held, mask = builder.add(self.piece.scratch, long(2 * PARTS * TILE)), self.first(left)
                self._store(self.count - 1, held, long(4 * LANES))
                for row in range(UNIT):
                    numbers = self.read(builder.add(held, long(row * 4 * LANES)))
                    self.write(numbers, builder.add(self.outs[-1], builder.mul(self.wide, long(row))), mask)

    def _load(self, tile: int, address: Any, stride: Any) -> None:
        self.unit("tileloadd64", tile, self.builder.inttoptr(address, BYTES), stride)

    def _store(self, tile: int, address: Any, stride: Any) -> None:
        self.unit("tilestored64", tile, self.builder.inttoptr(address, BYTES), stride)

    def unit(self, name: str, *operands: Any) -> None:
        """An instruction of the matrix unit; a tile by its number."""
        values = [ir.Constant(SMALL, each) if isinstance(each, int) else each for each in operands]
        kind = [value.type for value in values]
        self.builder.call(self.function(ir.VoidType(), kind, f"llvm.x86.{name}"), values)


def _lay(_context: Any, _places: Any) -> Any:
    """((address of 16 numbers, of 16 more, of a tile's row, how many of them there are)) -> 0."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        first, second, there, count = cgutils.unpack_tuple(builder, arguments[0], 4)
        splitting = Splitting(builder)
        mask = splitting.first(count)
        splitting.lay(splitting.read(first, mask), splitting.read(second, mask), there)
        return long(0)

    return types.int64(types.UniTuple(types.int64, 4)), generate


def _configure(_context: Any, _place: Any) -> Any:
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


def _release(_context: Any) -> Any:
    """() -> 0: the unit is not kept for this thread any more."""

    def generate(_context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.tilerelease"), [])
        return long(0)

    return types.int64(), generate


def tiles(count: int) -> Any:
    """(a Piece's numbers) -> 0: its sums."""

    @intrinsic
    def run(_context: Any, _piece: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            Tiles(builder, count, Piece(*cgutils.unpack_tuple(builder, arguments[0], SIZE))).sum_up()
            return long(0)

        return types.int64(types.UniTuple(types.int64, SIZE)), generate

    return run


def _begin(_context: Any, _piece: Any) -> Any:
    """(a Piece's numbers) -> 0: its first block's weights, split."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        each = Tiles(builder, 1, Piece(*cgutils.unpack_tuple(builder, arguments[0], SIZE)))
        for row in range(UNIT):
            each.split(row, each.piece.weight, each.turned(each.piece.turn))
        return long(0)

    return types.int64(types.UniTuple(types.int64, SIZE)), generate


lay: Any = intrinsic(_lay)
configure: Any = intrinsic(_configure)
release: Any = intrinsic(_release)
begin: Any = intrinsic(_begin)
tiles1, tiles2, tiles3, tiles4 = tiles(1), tiles(2), tiles(3), tiles(4)
