"""The modules of compiled kernels: imported at their first use, which compiles them; kept on disk for the next."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from tutelage.models.builtin import cache_directory

MATRIX_UNIT, TRANSPOSE = "tile_kernel", "transpose_kernel"
MODULES = (
    "kernels",
    "vectors",
    "attention_instructions",
    "attention_kernel",
    "product_kernel",
    "draw_kernel",
    "training_kernels",
    "tile_instructions",
    MATRIX_UNIT,
    "transposing",
    TRANSPOSE,
)


@cache
def compiled(module: str = "kernels") -> Any:
    """One of the modules of kernels; the first use on a machine compiles it, and keeps it for the next."""
    with kept():
        return import_module(f"tutelage.models.{module}")


@contextmanager
def kept() -> Iterator[None]:
    """What numba compiles inside is kept on disk for just these sources: it watches a function's own file alone."""
    config: Any = import_module("numba.core.config")

    sources = b"".join(Path(__file__).with_name(f"{module}.py").read_bytes() for module in MODULES)
    before, folder = config.CACHE_DIR, cache_directory() / "kernels" / hashlib.sha256(sources).hexdigest()[:16]
    config.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        config.CACHE_DIR = before
