"""The decoder's step on a CPU between its matrix products: norm and positions, each in one pass over memory.

PyTorch takes a dozen operations for what one loop does, and at 64 rows those take longer than a third of the step.
Compiled by numba (an optional dependency) for the processor at hand, kept on disk, run by PyTorch's own threads. A kernel
is called with one list of 64-bit numbers: a counter from which the threads take their units of work, then sizes and the
addresses of float32 numbers. So a thread that is slowed down takes fewer units.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

F32, I64 = np.float32, np.int64
SIGNATURE = types.void(types.CPointer(types.int64))
BLOCK = 32
"""Columns that a thread takes at once."""
FAST = {"reassoc", "contract", "arcp", "nsz"}
"""Sums in any order, multiplied and added at once; infinities stay what they are."""

LOG2E, LN2_HIGH, LN2_LOW = F32(1.4426950408889634), F32(0.693359375), F32(-2.12194440e-4)
E2, E3, E4, E5, E6, E7 = (
    F32(c)
    for c in (5.0000001201e-1, 1.6666665459e-1, 4.1665795894e-2, 8.3334519073e-3, 1.3981999507e-3, 1.9875691500e-4)
)
ONE, ZERO, LEAST, MOST, UP = F32(1), F32(0), F32(-87.3), F32(88.3), F32(128.5)
DOWN, BIAS, SHIFT = np.int32(128), np.int32(127), np.int32(23)


def at_address(kind: Any) -> Any:
    """The numbers of one kind at an address."""

    @intrinsic
    def numbers(_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    return numbers


floats, integers = at_address(types.float32), at_address(types.int64)


def next_unit(_context: Any, counter: Any) -> Any:
    """The counter's number, which no other thread gets."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", arguments[0], ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.CPointer(types.int64)), generate


take: Any = intrinsic(next_unit)


def _widened(_context: Any) -> Any:
    """Vectors of 512 bits in the kernel that says so: LLVM takes half of that for Intel's processors, where one instruction
    would slow down a whole core's clock; a kernel is nothing but such instructions."""

    def generate(_context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        # an attribute of a function with a value, which the set of llvmlite does not know by name
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return ir.Constant(ir.IntType(64), 0)

    return types.int64(), generate


wide: Any = intrinsic(_widened)


def from_bits(bits: Any, kind: Any, code: Any) -> Any:
    """The number that these bits are."""

    @intrinsic
    def number(_context: Any, given: Any) -> Any:
        return kind(bits), lambda _context, builder, _signature, arguments: builder.bitcast(arguments[0], code)

    return number


float32 = from_bits(types.int32, types.float32, ir.FloatType())
float64 = from_bits(types.int64, types.float64, ir.DoubleType())


@njit(fastmath=FAST, error_model="numpy", inline="always")
def exp(x: Any) -> Any:
    """e^x to 3e-7 of itself, in operations that vectorise: 2^k times a polynomial (Cephes' expf)."""
    x = min(max(x, LEAST), MOST)
    whole = np.int32(x * LOG2E + UP) - DOWN  # rounded: towards zero is downwards for what is positive
    r = x - F32(whole) * LN2_HIGH - F32(whole) * LN2_LOW
    tail = ((((E7 * r + E6) * r + E5) * r + E4) * r + E3) * r + E2
    return (tail * r * r + r + ONE) * float32((whole + BIAS) << SHIFT)


@njit(fastmath=FAST, error_model="numpy", inline="always")
def normed(a: Any, there: Any, size: Any, squares: Any) -> None:
    """So many columns of what `norm` does, of which the first number lies `there` bytes from the whole's."""
    depth, count, eps = a[1], a[2], F32(float64(a[3]))
    weight = carray(floats(a[6]), (depth,))
    x, out = carray(floats(a[4] + there), (depth, count)), carray(floats(a[5] + there), (depth, count))
    if a[7] != 0:
        plus = carray(floats(a[7] + there), (depth, count))
        for d in range(depth):
            for n in range(size):
                x[d, n] += plus[d, n]
    squares[:] = ZERO
    for d in range(depth):
        for n in range(size):
            squares[n] += x[d, n] * x[d, n]
    for n in range(size):
        squares[n] = ONE / np.sqrt(squares[n] / F32(depth) + eps)
    for d in range(depth):
        for n in range(size):
            out[d, n] = x[d, n] * squares[n] * weight[d]


@cfunc(SIGNATURE, cache=True, fastmath=FAST, error_model="numpy")
def norm(a: Any) -> None:
    """x [heads, D, N] += plus, where there is one; out = x weight / sqrt(mean of x^2 over D + eps)."""
    wide()
    depth, count, heads = a[1], a[2], a[8]
    squares = np.empty(BLOCK, dtype=F32)
    parts = (count + BLOCK - 1) // BLOCK
    unit = take(a)
    while unit < heads * parts:
        start = unit % parts * BLOCK
        normed(a, 4 * (unit // parts * depth * count + start), min(I64(BLOCK), count - start), squares)
        unit = take(a)


@cfunc(SIGNATURE, cache=True, fastmath=FAST, error_model="numpy")
def turn(a: Any) -> None:
    """x [H W, N]: each head's pairs (i, i + W/2) turned by the angles whose cos and signed sin are [W, N]."""
    wide()
    heads, half, count = a[1], a[2], a[3]
    x = carray(floats(a[4]), (heads, 2 * half, count))
    cos, sin = carray(floats(a[5]), (2 * half, count)), carray(floats(a[6]), (2 * half, count))
    unit = take(a)
    while unit < heads:
        for i in range(half):
            for n in range(count):
                first, second = x[unit, i, n], x[unit, i + half, n]
                x[unit, i, n] = first * cos[i, n] + second * sin[i, n]
                x[unit, i + half, n] = second * cos[i + half, n] + first * sin[i + half, n]
        unit = take(a)


def _calls(_context: Any, address: Any, argument: Any) -> Any:
    """A kernel at an address, on its list of numbers."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [arguments[1]])
        return ir.Constant(ir.IntType(64), 0)

    return types.int64(types.int64, types.int64), generate


call: Any = intrinsic(_calls)


@cfunc(SIGNATURE, cache=True)
def sequence(a: Any) -> None:
    """Kernel after kernel, each on its own list; no thread begins one before all have ended the one before (`barrier`)."""
    count, kernels, lists, size, barrier = a[1], integers(a[2]), a[3], a[4], a[5]
    for each in range(count):
        call(kernels[each], lists + each * size)
        call(barrier, I64(0))
