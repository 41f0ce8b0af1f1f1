"""Whether the compiled kernels of `models/kernels.py` run, and how tensors get to them.

They need numba, and the thread pool that PyTorch itself uses (GNU OpenMP, as its Linux builds have): two pools would wait
for each other's idle threads. Where either is missing, PyTorch's operations do the same.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

Kernels = Literal["torch", "numba"]
FAR = 1 << 40
"""A window that hides nothing."""
_chosen: list[Kernels] = ["torch"]


def choose_kernels(wanted: str, device: torch.device) -> Kernels:
    """`auto`: numba's on a CPU where they can run, PyTorch's operations elsewhere.

    Raises ValueError for an unknown name, and for numba where it cannot run, with the reason.
    """
    if wanted not in ("auto", "torch", "numba"):
        raise ValueError(f"kernels: got {wanted!r}; allowed: auto, torch, numba")
    reason = f"the device is {device}, and they are for CPUs" if device.type != "cpu" else missing()
    if wanted == "numba" and reason:
        raise ValueError(f"kernels: numba's cannot run: {reason}")
    return "torch" if wanted == "torch" or reason else "numba"


@cache
def missing() -> str:
    """Why the kernels cannot run on this machine's CPU; empty where they can."""
    if find_spec("numba") is None:
        return "numba is not installed; install it with: pip install 'tutelage[fast]'"
    try:
        _pool()
        _compiled()
    except Exception as error:  # whatever a compiler or a system without this pool can raise: PyTorch does the same
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


@contextmanager
def running(kernels: Kernels) -> Iterator[None]:
    """Inside the block these kernels run. The setting is the whole process's, as `gemm.multiplying` is."""
    _chosen.append(kernels)
    try:
        yield
    finally:
        _chosen.pop()


def in_use() -> Kernels:
    """Which run now."""
    return _chosen[-1]


def fits(x: Tensor) -> bool:
    """Whether the kernels run now, and on such numbers."""
    return _chosen[-1] == "numba" and x.device.type == "cpu" and x.dtype == torch.float32


def norm(x: Float[Tensor, "N D"], weight: Float[Tensor, "D"], eps: float, plus: Float[Tensor, "N D"] | None) -> Tensor:
    """x += plus, in place; x weight / sqrt(mean(x^2) + eps). All of them stand in columns, D numbers a token."""
    out = torch.empty_like(x.t())
    added = 0 if plus is None else _address(plus.t())
    _run(_compiled().norm, len(out), out.shape[1], _bits(eps), _address(x.t()), _address(out), _address(weight), added)
    return out.t()


def turn(x: Float[Tensor, "H W N"], cos: Float[Tensor, "W N"], sin: Float[Tensor, "W N"]) -> None:
    """Each head's pairs turned, in place; `sin` is negative for the first half."""
    heads, width, count = x.shape
    _run(_compiled().turn, heads, width // 2, count, _address(x), _address(cos), _address(sin))


@dataclass(frozen=True)
class Asking:
    """The rows of a step as the attention kernel takes them: a few rows of one prompt at a time. R rows, P prompts."""

    slots: Int[Tensor, "R"]
    said: Int[Tensor, "R"]
    asked: Int[Tensor, "P"]
    """Tokens of each prompt."""
    cells: int
    """The most that a row sees."""
    order: np.ndarray[Any, Any] = field(repr=False)
    bounds: np.ndarray[Any, Any] = field(repr=False)

    @classmethod
    def of(cls, held: Sequence[int], slots: Tensor, said: Tensor, asked: Tensor, cells: int) -> Asking:
        """`held`: the prompt of each row."""
        order = sorted(range(len(held)), key=lambda row: held[row])
        most, bounds = _compiled().ROWS, []
        for at, row in enumerate(order):
            if at == 0 or held[row] != held[order[at - 1]] or at - bounds[-1][0] == most:
                bounds.append([at, at])
            bounds[-1][1] = at + 1
        return cls(slots, said, asked.contiguous(), cells, np.array(order), np.array(bounds))

    def attend(
        self,
        fresh: tuple[Float[Tensor, "H R W"], Float[Tensor, "K R W"], Float[Tensor, "K R W"]],
        own: tuple[Float[Tensor, "n K T W"], Float[Tensor, "n K T W"]],
        prompts: tuple[Float[Tensor, "n K S W"], Float[Tensor, "n K S W"]],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "R H W"]:
        """The new keys and values are written into `own`, then each row looks at its prompt and at itself."""
        query, key, value = (x.transpose(1, 2).contiguous() for x in fresh)
        (heads, width, rows), kv = query.shape, len(key)
        out = query.new_empty(rows, heads, width)
        _run(
            _attend(width, heads // kv),
            *(
                len(self.bounds),
                kv,
                rows,
                window or FAR,
                own[0].shape[2],
                prompts[0].shape[2],
                self.cells,
                _bits(scale),
            ),
            *(self.bounds.ctypes.data, self.order.ctypes.data),
            *(_address(x) for x in (self.slots, self.said, self.asked, query, key, value, *own, *prompts, out)),
        )
        return out


def _run(kernel: Any, *numbers: int) -> None:
    """One kernel on all of PyTorch's threads; the first number is their counter."""
    table = np.array([0, *numbers], dtype=np.int64)
    _pool()(kernel.address, table.ctypes.data, torch.get_num_threads(), 0)


def _address(x: Tensor) -> int:
    assert x.is_contiguous(), "a kernel reads memory in its order"
    return x.data_ptr()


def _bits(value: float) -> int:
    return int(np.float64(value).view(np.int64))


@cache
def _pool() -> Any:
    """Runs a function on so many threads of PyTorch's pool (GOMP_parallel of libgomp's interface for compilers)."""
    call = ctypes.CDLL(None).GOMP_parallel
    call.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    call.restype = None
    return call


@cache
def _compiled() -> Any:
    from tutelage.models import kernels

    return kernels


@cache
def _attend(width: int, folded: int) -> Any:
    return _compiled().attend_of(width, folded)
