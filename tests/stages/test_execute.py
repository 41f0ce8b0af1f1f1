"""What every command goes through: the library that multiplies is chosen, recorded, and kept when a run is resumed."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tutelage.config import dump
from tutelage.models import fused, gemm
from tutelage.models.load import save_policy
from tutelage.models.tiny import tiny
from tutelage.stages import recipe, run
from tutelage.training import pass_tokens
from tutelage.training.optim import Optimization


@dataclass(frozen=True)
class Settings:
    out: str
    gemm: str = "auto"
    kernels: str = "auto"
    device: str = "cpu"
    resume: bool = False
    model: str = "no/model/here"
    full: bool = True
    optimization: Optimization = field(default_factory=lambda: Optimization(tokens_per_pass=512))


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
    monkeypatch.setattr(fused, "missing", lambda: "")
    monkeypatch.setattr(fused, "fastest", lambda: "numba")
    return lambda cfg: run.execute("probe", cfg)


def test_what_was_measured_once_holds_for_the_whole_run(command, monkeypatch, tmp_path):
    folder, before = str(tmp_path / "run"), torch.backends.mkldnn.matmul.fp32_precision
    monkeypatch.setattr(gemm, "speedup", lambda which: 2.0)
    assert command(Settings(folder)) == (Settings(folder, gemm="onednn", kernels="numba"), "bf16")
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    monkeypatch.setattr(gemm, "speedup", lambda which: 1.0)  # a busier minute
    monkeypatch.setattr(fused, "missing", lambda: "uninstalled since")
    with pytest.raises(ValueError, match="uninstalled since"):
        command(Settings(folder, resume=True))
    assert command(Settings(folder, resume=True, kernels="torch"))[0].gemm == "onednn"
    assert command(Settings(folder, resume=True, gemm="default", kernels="torch"))[0].gemm == "default", (
        "a choice of one's own counts"
    )
    assert command(Settings(str(tmp_path / "other")))[0].gemm == "default"


@pytest.mark.slow
def test_the_tokens_of_a_pass_follow_the_memory_and_stay_with_the_run(command, monkeypatch, tmp_path):
    """Half of 1 MB holds no pass at all: the least is taken, and preflight says what does not fit."""
    save_policy(*tiny(), tmp_path / "model")
    memory = {"bytes": 24 * 10**9}
    monkeypatch.setattr(pass_tokens, "total_memory", lambda device: memory["bytes"])

    def chosen(folder: str, **changes: object) -> int | None:
        settings = {"model": str(tmp_path / "model"), "gemm": "default", "optimization": Optimization(), **changes}
        return command(Settings(str(tmp_path / folder), **settings))[0].optimization.tokens_per_pass

    assert chosen("run") == 1024
    memory["bytes"] = 10**6
    assert chosen("run", resume=True) == 1024, "a run ends as it was begun"
    assert chosen("run", resume=True, optimization=Optimization(tokens_per_pass=96)) == 96
    assert chosen("other") == 64
    assert chosen("unknown", model="no/model/here") == 1024
