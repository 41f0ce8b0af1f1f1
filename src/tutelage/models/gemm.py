"""Which library multiplies float32 matrices on a CPU: PyTorch's default (MKL on x86) or oneDNN, whichever is faster here.

On an AMD CPU with AVX-512 oneDNN multiplied the same float32 numbers 2.2 times as fast as MKL (docs/log.md, 2026-11-21).
PyTorch reaches oneDNN only through a setting that also permits rounding the inputs to bfloat16, which oneDNN does
on some CPUs and did not on that one. So both are measured: speed, and whether the result is still float32's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Gemm = Literal["default", "onednn"]
FASTER = 1.15
"""How much faster oneDNN must be: below that the choice would change from run to run."""


def choose_gemm(wanted: str, device: torch.device) -> Gemm:
    """`auto`: oneDNN where it is faster and gives float32's result, measured in 0.1 s; the default elsewhere.

    Raises ValueError for an unknown name, and for oneDNN where there is none.
    """
    if wanted not in ("auto", "default", "onednn"):
        raise ValueError(f"gemm: got {wanted!r}; allowed: auto, default, onednn")
    here = device.type == "cpu" and torch.backends.mkldnn.is_available()
    if wanted == "onednn" and not here:
        raise ValueError(f"gemm: onednn multiplies on CPUs only, and only where PyTorch has it; the device is {device}")
    if wanted == "auto":
        return "onednn" if here and rounding("onednn") < 2**-16 and speedup() > FASTER else "default"
    return "onednn" if wanted == "onednn" else "default"


@contextmanager
def multiplying(gemm: Gemm) -> Iterator[None]:
    """Inside the block `gemm` multiplies float32 matrices on the CPU. The setting is the whole process's."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16" if gemm == "onednn" else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def in_use() -> Gemm:
    """Which one multiplies now."""
    return "onednn" if torch.backends.mkldnn.matmul.fp32_precision == "bf16" else "default"  # type: ignore[attr-defined]


def rounding(gemm: Gemm) -> float:
    """Largest error of a product of random float32 matrices, relative to its largest entry: 1e-6, or 4e-3 in bfloat16."""
    x, w = _matrices(64, 512, 128)
    exact = x.double() @ w.double()
    with multiplying(gemm):
        return float(((x @ w) - exact).abs().max() / exact.abs().max())


def speedup() -> float:
    """How much faster oneDNN is than the default at a training step's shape: best of five each, alternating."""
    x, w = _matrices(256, 576, 1536)
    best: dict[Gemm, float] = {"default": float("inf"), "onednn": float("inf")}
    for _ in range(6):  # the first one warms up; the best hides it
        for gemm in best:
            with multiplying(gemm):
                begun = time.perf_counter()
                torch.mm(x, w)
                best[gemm] = min(best[gemm], time.perf_counter() - begun)
    return best["default"] / best["onednn"]


def _matrices(rows: int, inner: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(rows, inner, generator=draw), torch.randn(inner, columns, generator=draw)
