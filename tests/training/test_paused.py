"""A step that has to wait: the run saves before it, says how to go on, and goes on bit for bit as if it had never waited."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tutelage.algorithms.base import Models
from tutelage.algorithms.sft import SFT
from tutelage.data.batch import Sequences, sequences
from tutelage.models.logprobs import CausalModel
from tutelage.models.tiny import tiny
from tutelage.records import read_jsonl
from tutelage.training.interrupt import Interrupted, Paused
from tutelage.training.loop import Task, train
from tutelage.training.optim import Optimization
from tutelage.training.run import Run

STEPS = 4


def run(folder: Path, waits_at: int | None = None, resume: bool = False) -> torch.Tensor:
    """Train a tiny model; all its weights at the end. `waits_at`: the step whose batch is not there yet."""
    module, _ = tiny(hidden=16, heads=2, kv_heads=1)

    def draw(step: int) -> tuple[Sequences, dict[str, float]]:
        if step == waits_at:
            raise Paused("nobody has judged yet")
        return sequences([(9,)], [0, 0], [[60 + step, 61], [70, 71 + step]]), {}

    models = Models(policy=CausalModel(module))
    task = Task(models, SFT(), draw, {"policy": module}, STEPS, 0.01, Optimization(save_every=100))
    train(task, Run.open(folder, {"seed": 0}, "sft", resume), resume_command="go on like this")
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize("waits_at", [0, 2, STEPS - 1])
def test_a_paused_run_goes_on_bit_for_bit(waits_at: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Interrupted, match="go on like this"):
        run(tmp_path / "paused", waits_at)
    assert f"step {waits_at}: nobody has judged yet" in capfd.readouterr().err
    with pytest.raises(Interrupted):
        run(tmp_path / "paused", waits_at, resume=True)  # still nobody: it waits at the same place
    resumed = run(tmp_path / "paused", resume=True)
    assert torch.equal(resumed, run(tmp_path / "whole"))
    assert [row["step"] for row in read_jsonl(tmp_path / "paused" / "metrics.jsonl")] == list(range(STEPS))
