"""What this machine can do, measured and never read from a data sheet: FLOP/s of large products, bytes/s of a large read."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tutelage.memory import NOTE
from tutelage.models.gemm import Gemm, in_use, multiplying, rounding
from tutelage.models.matrix_products import by_rows

SECONDS = 0.15
"""How long each of the two is measured."""
PRODUCTS = {"cpu": ((512,) * 3, (1024,) * 3), "other": ((4096,) * 3, (8192,) * 3)}
"""Shapes [n, k] x [k, m] that are tried; the best one counts."""
L3 = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")


@dataclass(frozen=True)
class Machine:
    """F and BW of performance.md, and under what they hold."""

    flops: float
    """F: FLOP/s of the best product of two large matrices in `dtype` (a multiplication and an addition count 2)."""
    bandwidth: float
    """BW: bytes/s of reading a buffer that no cache holds."""
    dtype: str
    threads: int
    device: str
    """`cpu` or `cuda:0`."""
    name: str
    """The processor's or the graphics card's model."""
    memory: int
    """Bytes of the machine, or of the card."""
    allocator: str

    def best(self, other: Machine) -> Machine:
        """The better of two measurements: what disturbs one only ever slows it."""
        assert self.same_conditions(other), "F and BW of other threads, precision or devices do not compare"
        return replace(self, flops=max(self.flops, other.flops), bandwidth=max(self.bandwidth, other.bandwidth))

    def same_conditions(self, other: Machine) -> bool:
        """Whether device, precision and threads are the same, so that one measurement stands for the other."""
        return (self.device, self.name, self.dtype, self.threads) == (
            other.device,
            other.name,
            other.dtype,
            other.threads,
        )

    def line(self) -> str:
        """One line for the console."""
        return (
            f"{self.name}, {self.threads} thread{'s' * (self.threads != 1)}, {self.memory / 1e9:.1f} GB, {self.dtype} "
            f"on {self.device}, allocator {self.allocator}; measured F {rate(self.flops, 'FLOP/s')}, "
            f"BW {rate(self.bandwidth, 'B/s')}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data, as hardware.json holds it."""
        return asdict(self)


def rate(value: float, unit: str) -> str:
    """`148 GFLOP/s`, three digits."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor:
            return f"{value / factor:.3g} {letter}{unit}"
    return f"{value:.3g} {unit}"


@cache
def machine(dtype: torch.dtype, device: torch.device, threads: int) -> Machine:
    """`measure`, once a process for each precision, device and number of threads (torch's own, as the caller read it)."""
    assert threads == torch.get_num_threads(), "the threads are torch's own"
    return measure(dtype, device)


def measure(dtype: torch.dtype, device: torch.device, seconds: float = SECONDS) -> Machine:
    """Measure for about `seconds` each; the best of all repetitions counts."""
    flops, bandwidth = product_rate(dtype, device, seconds), read_rate(device, seconds)
    return replace(conditions(dtype, device), flops=flops, bandwidth=bandwidth)


def conditions(dtype: torch.dtype, device: torch.device) -> Machine:
    """What a measurement would be made under; nothing is measured (both rates are 0)."""
    return Machine(
        flops=0.0,
        bandwidth=0.0,
        dtype=str(dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        device=str(device),
        name=torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        memory=total_memory(device),
        allocator=allocator(device),
    )


def product_rate(dtype: torch.dtype, device: torch.device, seconds: float = SECONDS) -> float:
    """F: FLOP/s of the best of several large matrix products, 2 n k m FLOP each, by whichever library is fastest.

    The matrix unit's products count where it multiplies now.
    """
    shapes = PRODUCTS["cpu" if device.type == "cpu" else "other"]
    libraries = _libraries(dtype, device)
    each = seconds / (len(shapes) * len(libraries))
    rates = []
    for n, k, m in shapes:
        a, b = torch.ones(n, k, dtype=dtype, device=device), torch.ones(k, m, dtype=dtype, device=device)
        out = torch.empty(n, m, dtype=dtype, device=device)
        for library in libraries:
            multiply: Callable[..., Any] = by_rows if library == "amx" else lambda a, b, out: torch.mm(a, b, out=out)
            with multiplying(library):
                once = fastest(lambda a=a, b=b, out=out, multiply=multiply: multiply(a, b, out), device, each)
            rates.append(2 * n * k * m / once)
    return max(rates)


def _libraries(dtype: torch.dtype, device: torch.device) -> tuple[Gemm, ...]:
    """Of float32 on a CPU also oneDNN, where it does not round, and the matrix unit, where it multiplies now."""
    if dtype != torch.float32 or device.type != "cpu":
        return ("default",)
    exact = torch.backends.mkldnn.is_available() and rounding("onednn") < 2**-16
    return ("default", *(["onednn"] if exact else []), *(["amx"] if in_use() == "amx" else []))


def read_rate(device: torch.device, seconds: float = SECONDS) -> float:
    """BW: bytes/s of adding up a buffer three times as large as the last cache."""
    buffer = torch.ones(buffer_bytes(device) // 4, device=device)
    return buffer.nbytes / fastest(buffer.sum, device, seconds)


def buffer_bytes(device: torch.device) -> int:
    """Three times the last cache of a CPU (32 MiB where the system does not say), from 64 MiB to 1 GiB; 2 GiB elsewhere."""
    if device.type != "cpu":
        return 2 << 30
    text = L3.read_text().strip() if L3.is_file() else ""
    size = int(text[:-1]) << 10 if text.endswith("K") and text[:-1].isdigit() else 32 << 20
    return min(max(3 * size, 64 << 20), 1 << 30)


def fastest(work: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Seconds of the fastest of at least two repetitions, after one that warms up, within about `seconds`."""
    best, count, began = float("inf"), -1, time.perf_counter()
    while count < 2 or time.perf_counter() - began < seconds:
        settle(device)
        clock = time.perf_counter()
        work()
        settle(device)
        if count >= 0:
            best = min(best, time.perf_counter() - clock)
        count += 1
    return best


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was asked: only then do seconds mean something. A CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def processor() -> str:
    """The processor's model: on Linux `platform` gives its architecture only."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def peak_memory(place: torch.device) -> int:
    """Bytes at the peak so far: of the GPU's memory where the model is there, else of this process."""
    if place.type == "cuda":
        return torch.cuda.max_memory_allocated(place)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def total_memory(device: torch.device) -> int:
    """Bytes of the card, or of the machine; 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # not POSIX
        return 0


def allocator(device: torch.device) -> str:
    """Who hands out memory: a card's caching allocator, a preloaded library, or the C library as the command set it up."""
    if device.type == "cuda":
        return f"torch {torch.cuda.get_allocator_backend()}"
    preloaded = [name for name in ("jemalloc", "tcmalloc", "mimalloc") if name in os.environ.get("LD_PRELOAD", "")]
    return preloaded[0] if preloaded else os.environ.get(NOTE) or platform.libc_ver()[0] or "system"
