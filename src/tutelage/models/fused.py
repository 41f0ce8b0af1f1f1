"""Whether the compiled kernels of `models/kernels.py` run, and how tensors get to them.

They need numba, and the thread pool that PyTorch itself uses (GNU OpenMP, as its Linux builds have): two pools would wait
for each other's idle threads. Where either is missing, PyTorch's operations do the same.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.models.compiled import MATRIX_UNIT, MODULES, TRANSPOSE, compiled
from tutelage.models.gemm import one_thread
from tutelage.models.matrix_unit import refused

Kernels = Literal["torch", "loops", "numba", "amx"]
"""PyTorch's operations; the compiled loops between the products; those and compiled products; these by the matrix unit."""
FASTER = 1.05
"""How much faster the compiled product must be: 1.2 to 1.4 was seen, with AVX-512; below 1 without."""
MOST_COLUMNS = 512
"""From there on PyTorch's products are as fast as those of the vectors."""
TURNS, MOST_UNITS = 4, 4
"""A thread takes rows at least so many times, where there are enough: one that is slowed down then takes fewer. Many rows at
once are 3 to 5 % faster (docs/log.md, 2026-11-22)."""
_chosen: list[Kernels] = ["torch"]


def choose_kernels(wanted: str, device: torch.device) -> Kernels:
    """`auto`: numba's on a CPU where they can run, its products where they are faster, measured in 0.1 s.

    They are held against the library that multiplies now (`gemm.multiplying`). Raises ValueError for an unknown name, and
    for numba's where they cannot run, with the reason.
    """
    if wanted not in ("auto", *get_args(Kernels)):
        raise ValueError(f"kernels: got {wanted!r}; allowed: auto, {', '.join(get_args(Kernels))}")
    if wanted == "torch":
        return "torch"
    reason = f"the device is {device}, and they are for CPUs" if device.type != "cpu" else missing()
    if wanted == "amx":
        reason = reason or no_matrix_unit()
    if reason and wanted != "auto":
        raise ValueError(f"kernels: {wanted} cannot run: {reason}")
    if reason:
        return "torch"
    return fastest() if wanted == "auto" else cast(Kernels, wanted)


def fastest() -> Kernels:
    """Whose products take the least time, PyTorch's (`loops`) or which of the compiled ones."""
    spent = seconds(("loops", "numba") if no_matrix_unit() else ("loops", "numba", "amx"))
    best = min(spent, key=lambda kernels: spent[kernels])
    return best if spent["loops"] > FASTER * spent[best] else "loops"


def seconds(several: Sequence[Kernels]) -> dict[Kernels, float]:
    """How long products of a decoding step's shape take on one thread: weights from memory, best of five rounds each."""
    draw = torch.Generator().manual_seed(0)
    weights, x = torch.randn(24, 576, 576, generator=draw), torch.randn(576, 64, generator=draw)
    best = dict.fromkeys(several, float("inf"))
    for _ in range(6):  # the first one warms up; the best hides it
        for kernels in several:
            with running(kernels), one_thread():
                multiply = torch.mm if kernels == "loops" else product
                begun = time.perf_counter()
                for weight in weights:
                    multiply(weight, x)
                best[kernels] = min(best[kernels], time.perf_counter() - begun)
    return best


@cache
def missing() -> str:
    """Why the kernels cannot run on this machine's CPU; empty where they can."""
    if find_spec("numba") is None:
        return "numba is not installed; install it with: pip install 'tutelage[fast]'"
    try:
        _pool()
        for module in MODULES:
            if module not in (MATRIX_UNIT, TRANSPOSE):
                compiled(module)
    except Exception as error:  # whatever a compiler or a system without this pool can raise: PyTorch does the same
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


@cache
def no_matrix_unit() -> str:
    """Why the products of AMX cannot run; empty where they can."""
    try:
        reason = refused()
        if not reason:
            compiled(MATRIX_UNIT)
            compiled(TRANSPOSE)
    except Exception as error:  # as in `missing`
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return reason


@contextmanager
def running(kernels: Kernels) -> Iterator[Kernels]:
    """Inside the block these kernels run. The setting is the whole process's, as `gemm.multiplying` is."""
    _chosen.append(kernels)
    try:
        yield kernels
    finally:
        _chosen.pop()


def in_use() -> Kernels:
    """Which run now."""
    return _chosen[-1]


def fits(x: Tensor) -> bool:
    """Whether the loops run now, and on such numbers."""
    return _chosen[-1] != "torch" and x.device.type == "cpu" and x.dtype == torch.float32


def multiplies(weight: Float[Tensor, "N K"], x: Float[Tensor, "K C"]) -> bool:
    """Whether the compiled product runs now, and takes these."""
    laid = weight.is_contiguous() and x.is_contiguous() and weight.dtype == torch.float32
    if not (has_products() and fits(x) and laid):
        return False
    return x.shape[1] <= MOST_COLUMNS or hasattr(multiplying(weight), "split")


def has_products() -> bool:
    """Whether the kernels that run now multiply too."""
    return _chosen[-1] in ("numba", "amx")


def multiplying(weight: Float[Tensor, "N K"]) -> Any:
    """The module whose products multiply these weights: the matrix unit's take whole tiles."""
    if _chosen[-1] != "amx":
        return compiled("product_kernel")
    kernels, (rows, depth) = compiled(MATRIX_UNIT), weight.shape
    return compiled("product_kernel") if rows % kernels.UNIT or depth % kernels.DEEP else kernels


def tiles(depth: int, columns: int) -> Float[Tensor, "..."]:
    """Room for so large an x in tiles, where products read it so."""
    return planes(depth, columns) if _chosen[-1] == "amx" else torch.empty(0)


def planes(depth: int, columns: int) -> Float[Tensor, "..."]:
    """Room for x [depth, columns] in the matrix unit's tiles."""
    kernels = compiled(MATRIX_UNIT)
    return torch.empty(-(-depth // kernels.DEEP) * -(-columns // kernels.UNIT) * kernels.PARTS * kernels.TILE // 4)


def product(weight: Float[Tensor, "N K"], x: Float[Tensor, "K C"]) -> Float[Tensor, "N C"]:
    """W x."""
    (rows, depth), columns = weight.shape, x.shape[1]
    out, kernels, read = x.new_empty(rows, columns), multiplying(weight), x
    if hasattr(kernels, "split"):
        read = tiles(depth, columns)
        run(kernels.split, depth, columns, address(x), address(read))
    places = address(weight), address(read), address(out)
    run(kernels.product, rows, depth, columns, *places, unit_of(rows, kernels.UNIT), 0)
    return out


def unit_of(rows: int, unit: int) -> int:
    """How many of a product's rows a thread takes at once: so many, or several times as many."""
    return unit * max(1, min(MOST_UNITS, rows // (unit * TURNS * torch.get_num_threads())))


def norm(x: Float[Tensor, "N D"], weight: Float[Tensor, "D"], eps: float, plus: Float[Tensor, "N D"] | None) -> Tensor:
    """x += plus, in place; x weight / sqrt(mean(x^2) + eps). All of them stand in columns, D numbers a token."""
    out = torch.empty_like(x.t())
    added = 0 if plus is None else address(plus.t())
    run(compiled().norm, len(out), out.shape[1], bits(eps), address(x.t()), address(out), address(weight), added, 1)
    return out.t()


def turn(x: Float[Tensor, "H W N"], cos: Float[Tensor, "W N"], sin: Float[Tensor, "W N"]) -> None:
    """Each head's pairs turned, in place; `sin` is negative for the first half."""
    heads, width, count = x.shape
    run(compiled().turn, heads, width // 2, count, address(x), address(cos), address(sin))


def blocks(
    logits: Float[Tensor, "V R"], size: int, temperature: float
) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R"]]:
    """Of each `size` logits of a row the highest, and in float64 the sum of exp((logit - highest) / temperature)."""
    vocabulary, rows = logits.shape
    highest = logits.new_empty(-(-vocabulary // size), rows)
    total = torch.empty_like(highest, dtype=torch.float64)
    numbers = size, vocabulary, rows, bits(temperature), address(logits), address(highest), address(total)
    run(compiled("draw_kernel").blocks, *numbers)
    return highest, total


def run(kernel: Any, *numbers: int) -> None:
    """One kernel on all of PyTorch's threads; the first number is their counter."""
    table = np.array([0, *numbers], dtype=np.int64)
    _pool()(kernel.address, table.ctypes.data, torch.get_num_threads(), 0)


def address(x: Tensor) -> int:
    """Where its numbers lie. The tensor must live until the kernel has run."""
    assert x.is_contiguous(), "a kernel reads memory in its order"
    assert x.dtype in (torch.float32, torch.float64, torch.int64), f"a kernel does not read {x.dtype}"
    return x.data_ptr()


def bits(value: float) -> int:
    return int(np.float64(value).view(np.int64))


@cache
def _pool() -> Any:
    """Runs a function on so many threads of PyTorch's pool (GOMP_parallel of libgomp's interface for compilers)."""
    call = ctypes.CDLL(None).GOMP_parallel
    call.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    call.restype = None
    return call
