"""Squares of 16 numbers times 16 with rows and columns exchanged, on their way into tiles of the matrix unit or as they are."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tutelage.models.tile_instructions import LANES, PARTS, TILE, Splitting
from tutelage.models.vectors import long

ROW = 4 * LANES
"""Bytes of a vector, and of a tile's row."""


class Transposing(Splitting):
    """The instructions that exchange rows and columns of 16 vectors."""

    def transposed(self, rows: list[Any]) -> list[Any]:
        """Number j of vector i becomes number i of vector j: halves are exchanged, then quarters, eighths and neighbours."""
        rows, apart = list(rows), LANES // 2
        while apart:
            for i in (i for i in range(LANES) if not i & apart):
                upper, lower = rows[i], rows[i + apart]
                above = [lane if not lane & apart else LANES + lane - apart for lane in range(LANES)]
                below = [lane + apart if not lane & apart else LANES + lane for lane in range(LANES)]
                rows[i], rows[i + apart] = self.shuffled(upper, lower, above), self.shuffled(upper, lower, below)
            apart //= 2
        return rows

    def rows(self, start: Any, stride: Any, mask: Any = None) -> list[Any]:
        """16 vectors, `stride` bytes apart; `mask` says of a row's number whether it is there."""
        places = [self.builder.add(start, self.builder.mul(stride, long(i))) for i in range(LANES)]
        return [self.read(place, None if mask is None else mask(i)) for i, place in enumerate(places)]

    def there_are(self, rows: Any) -> Any:
        """The mask of a square of which `rows` rows are there: the others are zeros, and not read."""

        def mask(row: int) -> Any:
            there = self.builder.icmp_signed(">", rows, long(row))
            return self.first(self.builder.select(there, long(LANES), long(0)))

        return mask


def _lay_transposed(_context: Any, _places: Any) -> Any:
    """((address, bytes from a row to the next, of the three tiles)) -> 0: 32 numbers of 16 rows, each row a tile's column."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        start, stride, there = cgutils.unpack_tuple(builder, arguments[0], 3)
        square = Transposing(builder)
        for row in range(LANES):
            here = builder.add(start, builder.mul(stride, long(row)))
            first, second = square.read(here), square.read(builder.add(here, long(ROW)))
            square.lay(first, second, builder.add(there, long(ROW * row)))
        for part in range(PARTS):
            tile = builder.add(there, long(TILE * part))
            for row, numbers in enumerate(square.transposed(square.rows(tile, long(ROW)))):
                square.write(numbers, builder.add(tile, long(ROW * row)))
        return long(0)

    return types.int64(types.UniTuple(types.int64, 3)), generate


def _transpose_square(_context: Any, _places: Any) -> Any:
    """((address, bytes to its next row, how many rows there are, where to, bytes to its next row)) -> 0: a square, exchanged."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        start, stride, rows, there, apart = cgutils.unpack_tuple(builder, arguments[0], 5)
        square = Transposing(builder)
        whole = builder.icmp_signed(">=", rows, long(LANES))
        with builder.if_else(whole) as (then, otherwise):
            for branch, mask in ((then, None), (otherwise, square.there_are(rows))):
                with branch:
                    for row, numbers in enumerate(square.transposed(square.rows(start, stride, mask))):
                        square.write(numbers, builder.add(there, builder.mul(apart, long(row))))
        return long(0)

    return types.int64(types.UniTuple(types.int64, 5)), generate


lay_transposed: Any = intrinsic(_lay_transposed)
transpose_square: Any = intrinsic(_transpose_square)
