"""What a run ran on, as far as it decides whether the same seed gives the same bits."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from tutelage.models.hardware import processor

PACKAGES = ("tutelage", "torch", "transformers", "tokenizers", "peft", "safetensors", "numpy")
VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "MKL_DYNAMIC",
    "MKL_CBWR",
    "ATEN_CPU_CAPABILITY",
    "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
)


def environment() -> dict[str, Any]:
    """Versions, processor, threads and the settings of the numerical libraries, as plain JSON data."""
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "variables": {name: os.environ.get(name) for name in VARIABLES},
    }


def differences(was: Any, now: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    """Where two nested mappings differ: dotted key -> (what was, what is); an absent key counts as None."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        found: dict[str, tuple[Any, Any]] = {}
        for name in dict.fromkeys([*was, *now]):
            found |= differences(was.get(name), now.get(name), f"{key}.{name}" if key else str(name))
        return found
    return {} if was == now else {key: (was, now)}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
