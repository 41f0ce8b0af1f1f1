"""Vectors of float32 numbers in kernels that numba compiles: the instructions that its own loops would not become.

A processor multiplies and adds whole vectors; LLVM makes them of a loop where it can prove that it may, and sums across
a vector for every number that a product of two rows gives. What is written here says which vectors stay in the registers.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils

from tutelage.models.kernels import E2, E3, E4, E5, E6, E7, LEAST, LN2_HIGH, LN2_LOW, LOG2E, MOST, UP

FLOAT, LONG, INT, BIT = ir.FloatType(), ir.IntType(64), ir.IntType(32), ir.IntType(1)
BYTES = ir.IntType(8).as_pointer()
CONTRACT = ("contract",)
"""A product and a sum are one instruction."""


def _widest() -> int:
    """Numbers of this processor's vectors."""
    has = binding.get_host_cpu_features()
    return 16 if has.get("avx512f") else 8 if has.get("avx") else 4


HOST = _widest()


def long(value: int) -> Any:
    """A number of 64 bits."""
    return ir.Constant(LONG, value)


class Vectors:
    """The instructions for vectors of so many `lanes`, at addresses in memory."""

    def __init__(self, builder: Any, lanes: int) -> None:
        self.builder, self.lanes = builder, lanes
        self.kind, self.whole = ir.VectorType(FLOAT, lanes), ir.VectorType(INT, lanes)
        self.nothing = self.all(0.0)

    def all(self, value: Any) -> Any:
        """A constant in every lane."""
        return ir.Constant(self.kind, [float(value)] * self.lanes)

    def bits(self, value: int) -> Any:
        """The same of 32-bit integers."""
        return ir.Constant(self.whole, [value] * self.lanes)

    def spread(self, value: Any, kind: Any = FLOAT) -> Any:
        """A vector of nothing but this value."""
        empty = ir.Constant(ir.VectorType(kind, self.lanes), ir.Undefined)
        first = self.builder.insert_element(empty, value, ir.Constant(INT, 0))
        return self.builder.shuffle_vector(first, empty, self.bits(0))

    def number(self, address: Any) -> Any:
        """The float32 number there."""
        return self.builder.load(self.builder.inttoptr(address, FLOAT.as_pointer()), align=4)

    def read(self, address: Any, mask: Any = None) -> Any:
        """A vector from memory; zeros where a mask says no."""
        place = self.place(address)
        if mask is None:
            return self.builder.load(place, align=4)
        kinds = [place.type, INT, mask.type, self.kind]
        load = self.function(self.kind, kinds, f"llvm.masked.load.v{self.lanes}f32.p0")
        return self.builder.call(load, [place, ir.Constant(INT, 4), mask, self.nothing])

    def write(self, value: Any, address: Any, mask: Any = None) -> None:
        """A vector into memory, but for what a mask keeps back."""
        place = self.place(address)
        if mask is None:
            self.builder.store(value, place, align=4)
            return
        kinds = [self.kind, place.type, INT, mask.type]
        store = self.function(ir.VoidType(), kinds, f"llvm.masked.store.v{self.lanes}f32.p0")
        self.builder.call(store, [value, place, ir.Constant(INT, 4), mask])

    def place(self, address: Any) -> Any:
        return self.builder.inttoptr(address, self.kind.as_pointer())

    def first(self, count: Any) -> Any:
        """The mask of the first `count` lanes."""
        lanes = ir.Constant(self.whole, list(range(self.lanes)))
        return self.builder.icmp_signed("<", lanes, self.spread(self.builder.trunc(count, INT), INT))

    def ask_for(self, address: Any, cache: int = 3) -> None:
        """Fetch what lies there into the first cache (3) or the second (2), meanwhile."""
        ahead = self.function(ir.VoidType(), [BYTES, INT, INT, INT], "llvm.prefetch.p0")
        read, keep, data = (ir.Constant(INT, each) for each in (0, cache, 1))
        self.builder.call(ahead, [self.builder.inttoptr(address, BYTES), read, keep, data])

    def add(self, x: Any, y: Any) -> Any:
        return self.builder.fadd(x, y, flags=CONTRACT)

    def multiply(self, x: Any, y: Any) -> Any:
        return self.builder.fmul(x, y, flags=CONTRACT)

    def multiply_add(self, x: Any, y: Any, z: Any) -> Any:
        """x y + z."""
        return self.add(self.multiply(x, y), z)

    def larger(self, x: Any, y: Any) -> Any:
        return self.builder.select(self.builder.fcmp_ordered(">", x, y), x, y)

    def variable(self, value: Any) -> Any:
        """A vector that a loop changes; it stays in a register."""
        return cgutils.alloca_once_value(self.builder, value)

    def across(self, vectors: list[Any]) -> Any:
        """The sum over the lanes of each of `lanes` vectors, side by side: half as many vectors each time, never one alone.

        First within quarters of 128 bits, then between them, as the processor exchanges lanes fastest.
        """
        quarter = min(4, self.lanes)
        for apart in (1, 2):
            vectors = [self._halved(x, y, apart, quarter) for x, y in zip(vectors[::2], vectors[1::2], strict=True)]
        while len(vectors) > 1:
            vectors = [self._folded(x, y, quarter) for x, y in zip(vectors[::2], vectors[1::2], strict=True)]
        return vectors[0]

    def _halved(self, x: Any, y: Any, apart: int, quarter: int) -> Any:
        """Within each quarter: for apart 1 [x0+x2, y0+y2, x1+x3, y1+y3], for 2 [x0+x2, x1+x3, y0+y2, y1+y3]."""
        low, high = [], []
        for start in range(0, self.lanes, quarter):
            other = start + self.lanes
            if apart == 1:
                low += [start, other, start + 1, other + 1]
                high += [start + 2, other + 2, start + 3, other + 3]
            else:
                low += [start, start + 1, other, other + 1]
                high += [start + 2, start + 3, other + 2, other + 3]
        return self.add(self.shuffled(x, y, low), self.shuffled(x, y, high))

    def _folded(self, x: Any, y: Any, quarter: int) -> Any:
        """Neighbouring quarters added: [x0+x1, x2+x3, y0+y1, y2+y3]."""
        starts = range(0, 2 * self.lanes, 2 * quarter)
        low = [start + lane for start in starts for lane in range(quarter)]
        return self.add(self.shuffled(x, y, low), self.shuffled(x, y, [lane + quarter for lane in low]))

    def shuffled(self, x: Any, y: Any, lanes: list[int]) -> Any:
        return self.builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(INT, len(lanes)), lanes))

    def exp(self, x: Any) -> Any:
        """e^x to 3e-7 of itself, as `kernels.exp`."""
        builder = self.builder
        x = self.larger(x, self.all(LEAST))
        x = builder.select(builder.fcmp_ordered("<", x, self.all(MOST)), x, self.all(MOST))
        scaled = self.multiply_add(x, self.all(LOG2E), self.all(UP))
        whole = builder.sub(builder.fptosi(scaled, self.whole), self.bits(128))
        turns = builder.sitofp(whole, self.kind)
        r = self.multiply_add(turns, self.all(-LN2_HIGH), x)
        r = self.multiply_add(turns, self.all(-LN2_LOW), r)
        tail = self.all(E7)
        for each in (E6, E5, E4, E3, E2):
            tail = self.multiply_add(tail, r, self.all(each))
        value = self.add(self.multiply_add(self.multiply(tail, r), r, r), self.all(1.0))
        power = builder.shl(builder.add(whole, self.bits(127)), self.bits(23))
        return self.multiply(value, builder.bitcast(power, self.kind))

    def reduced(self, x: Any, combine: Any) -> Any:
        """One vector's lanes combined, in every lane."""
        apart = self.lanes // 2
        while apart:
            x = combine(x, self.shuffled(x, x, [lane ^ apart for lane in range(self.lanes)]))
            apart //= 2
        return x

    def function(self, result: Any, kinds: list[Any], name: str) -> Any:
        return cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(result, kinds), name)
