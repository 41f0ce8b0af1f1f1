"""Which library multiplies float32 matrices on a CPU: PyTorch's default (MKL on x86), oneDNN, or our products on Intel's matrix
unit (`models/matrix_products.py`; only those of linear layers and heads), whichever is fastest here.

On an AMD CPU with AVX-512 oneDNN multiplied the same float32 numbers 2.2 times as fast as MKL (docs/log.md, 2026-11-21).
PyTorch reaches oneDNN only through a setting that also permits rounding the inputs to bfloat16, which oneDNN does
on some CPUs and did not on that one. So both are measured: speed, and whether the result is still float32's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, cast, get_args

import torch

Gemm = Literal["default", "onednn", "amx"]
FASTER = 1.15
"""How much faster than the default another must be: below that the choice would change from run to run."""
_chosen: list[Gemm] = ["default"]


def choose_gemm(wanted: str, device: torch.device) -> Gemm:
    """`auto`: the fastest of those that give float32's result, measured in 0.2 s; the default elsewhere than on a CPU.

    Raises ValueError for an unknown name, and for one that cannot multiply here, with the reason.
    """
    if wanted not in ("auto", *get_args(Gemm)):
        raise ValueError(f"gemm: got {wanted!r}; allowed: auto, {', '.join(get_args(Gemm))}")
    if wanted == "auto":
        return _fastest(device)
    gemm = cast(Gemm, wanted)
    if reason := missing(gemm, device):
        raise ValueError(f"gemm: {gemm} cannot multiply here: {reason}")
    return gemm


def missing(gemm: Gemm, device: torch.device) -> str:
    """Why it cannot multiply on this device; empty where it can."""
    from tutelage.models.fused import no_matrix_unit

    if gemm == "default":
        return ""
    if device.type != "cpu":
        return f"it multiplies on CPUs only; the device is {device}"
    if gemm == "amx":
        return no_matrix_unit()
    return "" if torch.backends.mkldnn.is_available() else "this PyTorch has none"


def _fastest(device: torch.device) -> Gemm:
    others: list[Gemm] = [gemm for gemm in ("onednn", "amx") if not missing(gemm, device)]
    gained: dict[Gemm, float] = {gemm: speedup(gemm) for gemm in others if gemm == "amx" or rounding(gemm) < 2**-16}
    gained["default"] = FASTER
    return max(gained, key=lambda gemm: gained[gemm])


@contextmanager
def multiplying(gemm: Gemm) -> Iterator[None]:
    """Inside the block `gemm` multiplies float32 matrices on the CPU. The setting is the whole process's."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16" if gemm == "onednn" else "ieee"
    _chosen.append(gemm)
    try:
        yield
    finally:
        matmul.fp32_precision = before
        _chosen.pop()


def in_use() -> Gemm:
    """Which one multiplies now."""
    return _chosen[-1]


def rounding(gemm: Gemm) -> float:
    """Largest error of a product of random float32 matrices, relative to its largest entry: 1e-6, or 4e-3 in bfloat16."""
    x, w = _matrices(64, 512, 128)
    exact = x.double() @ w.double()
    with multiplying(gemm):
        return float(((x @ w) - exact).abs().max() / exact.abs().max())


def speedup(gemm: Gemm) -> float:
    """How much faster than the default it is at a training step's shape, on one thread: best of five each, alternating."""
    from tutelage.models.matrix_products import by_rows

    x, w = _matrices(1024, 576, 1536)
    weight = w.t().contiguous()
    best: dict[Gemm, float] = {"default": float("inf"), gemm: float("inf")}
    for _ in range(6):  # the first one warms up; the best hides it
        for each in best:
            with multiplying(each), one_thread():
                begun = time.perf_counter()
                by_rows(x, weight) if each == "amx" else torch.mm(x, weight.t())
                best[each] = min(best[each], time.perf_counter() - begun)
    return best["default"] / best[gemm]


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, PyTorch has one thread: what is measured so is hardly disturbed by other work, as two threads are that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _matrices(rows: int, inner: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(rows, inner, generator=draw), torch.randn(inner, columns, generator=draw)
