"""The instructions of a step's attention, as `attention_kernel` puts them together: ask, soften, collect, copy.

A key is four vectors or so, and so is a query: what costs is not their product but to add its lanes. So a block of as many
keys as a vector has lanes is asked at once, and the lanes of all of their products are added together (`Vectors.across`).
Collected values stay in the registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tutelage.models.vectors import HOST, Vectors, long

LINE = 64
"""Bytes that the memory gives at once."""


def instructions(count: int, write: Callable[[Any, tuple[int, int], Sequence[Any]], None]) -> Any:
    """A function of two numbers known to the compiler, and of a tuple of `count` 64-bit ones, that `write` writes down."""

    @intrinsic(prefer_literal=True)
    def run(_context: Any, width: Any, together: Any, numbers: Any) -> Any:
        if not isinstance(width, types.IntegerLiteral) or not isinstance(together, types.IntegerLiteral):
            return None
        known = width.literal_value, together.literal_value

        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            write(Vectors(builder, HOST), known, cgutils.unpack_tuple(builder, arguments[2], count))
            return long(0)

        return types.int64(width, together, numbers), generate

    return run


class Numbers:
    """The vectors of `width` numbers that lie in a row; the last may be shorter."""

    def __init__(self, vectors: Vectors, width: int) -> None:
        self.vectors, self.count = vectors, -(-width // vectors.lanes)
        left = width % vectors.lanes
        self.mask = vectors.first(long(left)) if left else None

    def read(self, start: Any, at: int) -> Any:
        """The vector `at` of the row that starts there."""
        place = self.vectors.builder.add(start, long(4 * self.vectors.lanes * at))
        return self.vectors.read(place, self.mask if at == self.count - 1 else None)


def _ask(vectors: Vectors, known: tuple[int, int], numbers: Sequence[Any]) -> None:
    """scores[m, t] = query m times key t, for whole blocks of keys; queries begin with a vector.

    What is needed afterwards, as many numbers from `following` on, is asked of the memory meanwhile.
    """
    builder, (width, _) = vectors.builder, known
    query, queries, keys, blocks, scores, stride, following = numbers
    row = Numbers(vectors, width)
    apart, lanes = 4 * vectors.lanes * row.count, vectors.lanes
    with cgutils.for_range(builder, blocks) as block:
        begin = builder.add(keys, builder.mul(block.index, long(4 * width * lanes)))
        into = builder.add(scores, builder.mul(block.index, long(4 * lanes)))
        later = builder.add(following, builder.mul(block.index, long(4 * width * lanes)))
        for at in range(0, 4 * width * lanes, LINE):
            vectors.ask_for(builder.add(later, long(at)))
        with cgutils.for_range(builder, queries) as asking:
            mine = builder.add(query, builder.mul(asking.index, long(apart)))
            parts = [vectors.read(builder.add(mine, long(4 * lanes * at))) for at in range(row.count)]
            products = []
            for key in range(lanes):
                start, product = builder.add(begin, long(4 * width * key)), None
                for at, part in enumerate(parts):
                    here = row.read(start, at)
                    product = (
                        vectors.multiply(part, here) if product is None else vectors.multiply_add(part, here, product)
                    )
                products.append(product)
            vectors.write(vectors.across(products), builder.add(into, builder.mul(asking.index, stride)))


def _collect(vectors: Vectors, known: tuple[int, int], numbers: Sequence[Any]) -> None:
    """sums[m] += the sum over t of weights[m, t] values[t], for `together` rows of weights; `following` as of `_ask`."""
    builder, (width, together) = vectors.builder, known
    weights, stride, values, count, sums, following = numbers
    row = Numbers(vectors, width)
    apart = 4 * vectors.lanes * row.count
    places = [
        builder.add(sums, long(apart * m + 4 * vectors.lanes * at)) for m in range(together) for at in range(row.count)
    ]
    kept = [vectors.variable(vectors.read(place)) for place in places]
    with cgutils.for_range(builder, count) as cell:
        start = builder.add(values, builder.mul(cell.index, long(4 * width)))
        for at in range(0, 4 * width, LINE):
            vectors.ask_for(builder.add(builder.add(following, builder.mul(cell.index, long(4 * width))), long(at)))
        here = [row.read(start, at) for at in range(row.count)]
        at_cell = builder.add(weights, builder.mul(cell.index, long(4)))
        for m in range(together):
            weight = vectors.spread(vectors.number(builder.add(at_cell, builder.mul(stride, long(m)))))
            for at, value in enumerate(here):
                place = kept[m * row.count + at]
                builder.store(vectors.multiply_add(weight, value, builder.load(place)), place)
    for place, total in zip(places, kept, strict=True):
        vectors.write(builder.load(total), place)


def _copy(vectors: Vectors, known: tuple[int, int], numbers: Sequence[Any]) -> None:
    """A head's numbers from where they lie `apart` bytes apart to where they lie `beside` apart."""
    builder, (width, _) = vectors.builder, known
    source, apart, target, beside = numbers
    for _ in range(width):
        number = vectors.number(source)
        builder.store(number, builder.inttoptr(target, number.type.as_pointer()), align=4)
        source, target = builder.add(source, apart), builder.add(target, beside)


def _soften(vectors: Vectors, _known: tuple[int, int], numbers: Sequence[Any]) -> None:
    """scores = exp(scores - the highest), over whole vectors; into the number at `total` goes one over their sum.

    Of a loop for the highest LLVM makes no vectors, for numbers might be NaN.
    """
    builder = vectors.builder
    scores, count, total = numbers

    def each() -> Any:
        return cgutils.for_range(builder, count)

    def place(index: Any) -> Any:
        return builder.add(scores, builder.mul(index, long(4 * vectors.lanes)))

    highest, sums = vectors.variable(vectors.all(float("-inf"))), vectors.variable(vectors.nothing)
    with each() as at:
        builder.store(vectors.larger(vectors.read(place(at.index)), builder.load(highest)), highest)
    top = vectors.reduced(builder.load(highest), vectors.larger)
    with each() as at:
        weight = vectors.exp(builder.fsub(vectors.read(place(at.index)), top))
        vectors.write(weight, place(at.index))
        builder.store(vectors.add(builder.load(sums), weight), sums)
    share = builder.fdiv(vectors.all(1.0), vectors.reduced(builder.load(sums), vectors.add))
    vectors.write(share, total)


ask, collect, soften, copy = (
    instructions(count, write) for count, write in ((7, _ask), (6, _collect), (3, _soften), (4, _copy))
)
