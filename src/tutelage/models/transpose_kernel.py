"""What a training step's products ask beside the product itself: W^T in tiles, and a gradient's columns as rows."""

from __future__ import annotations

from typing import Any

from numba import cfunc

from tutelage.models.kernels import SIGNATURE, take
from tutelage.models.tile_instructions import DEEP, PARTS, TILE, UNIT
from tutelage.models.transposing import lay_transposed, transpose_square


@cfunc(SIGNATURE, cache=True)
def split_transposed(a: Any) -> None:
    """W [C, K] as the tiles of W^T: what `tile_kernel.split` makes of x [K, C]. Whole tiles only."""
    depth, count, weight, planes = a[1], a[2], a[3], a[4]
    number = count // UNIT
    tile = take(a)
    while tile < number:
        here = weight + 4 * tile * UNIT * depth
        for block in range(depth // DEEP):
            there = planes + (block * number + tile) * PARTS * TILE
            lay_transposed((here + 4 * block * DEEP, 4 * depth, there))
        tile = take(a)


@cfunc(SIGNATURE, cache=True)
def transpose(a: Any) -> None:
    """x [N, C] as [C, M]: its columns as rows, with zeros behind them. C and M in whole tiles."""
    rows, count, x, out, deep = a[1], a[2], a[3], a[4], a[5]
    tile = take(a)
    while tile < count // UNIT:
        for row in range(0, deep, UNIT):
            here, there = x + 4 * (row * count + tile * UNIT), out + 4 * (tile * UNIT * deep + row)
            transpose_square((here, 4 * count, rows - row, there, 4 * deep))
        tile = take(a)
