"""What every command goes through: the library that multiplies is chosen, recorded, and kept when a run is resumed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tutelage.config import dump
from tutelage.models import gemm
from tutelage.stages import recipe, run


@dataclass(frozen=True)
class Settings:
    out: str
    gemm: str = "auto"
    device: str = "cpu"
    resume: bool = False


@pytest.fixture
def command(monkeypatch):
    """A command that writes its settings as runs do, and returns them with what PyTorch is set to."""

    def main(cfg: Settings) -> tuple[Settings, str]:
        Path(cfg.out).mkdir(exist_ok=True)
        dump(cfg, Path(cfg.out) / "config.yaml")
        return cfg, torch.backends.mkldnn.matmul.fp32_precision

    monkeypatch.setitem(sys.modules, "a_command", SimpleNamespace(main=main))
    monkeypatch.setitem(recipe.COMMANDS, "probe", ("a_command", "Settings"))
    monkeypatch.setattr(gemm, "rounding", lambda which: 0.0)
    return lambda cfg: run.execute("probe", cfg)


def test_what_was_measured_once_holds_for_the_whole_run(command, monkeypatch, tmp_path):
    folder, before = str(tmp_path / "run"), torch.backends.mkldnn.matmul.fp32_precision
    monkeypatch.setattr(gemm, "speedup", lambda: 2.0)
    assert command(Settings(folder)) == (Settings(folder, gemm="onednn"), "bf16")
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    monkeypatch.setattr(gemm, "speedup", lambda: 1.0)  # a busier minute
    assert command(Settings(folder, resume=True))[0].gemm == "onednn"
    assert command(Settings(folder, resume=True, gemm="default"))[0].gemm == "default", "a choice of one's own counts"
    assert command(Settings(str(tmp_path / "other")))[0].gemm == "default"
