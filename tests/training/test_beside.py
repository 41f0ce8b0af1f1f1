"""The second term of the loop: its gradient is added with its coefficient, in every optimiser step, from rows of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tutelage.algorithms.base import Models
from tutelage.algorithms.grpo import GRPO
from tutelage.algorithms.sft import SFT
from tutelage.data.batch import Rollouts, sequences
from tutelage.models.logprobs import CausalModel
from tutelage.models.tiny import tiny
from tutelage.records import read_jsonl
from tutelage.training.loop import Beside, Task, train
from tutelage.training.optim import Optimization
from tutelage.training.run import Run
from tutelage.training.update import accumulate

ANSWERS = sequences([(5, 6), (7,)], [0, 0, 1, 1], [[20, 21, 22], [30], [40, 41], [50]])
TEXTS = [sequences([(9,)], [0, 0], [[60 + n, 61, 62], [70]]) for n in range(40)]
METHOD = GRPO(kl_coefficient=0.0, passes=2, minibatches=2)


def draw(step: int) -> tuple[Rollouts, dict[str, float]]:
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0])
    return Rollouts(ANSWERS, rewards, torch.full((4, 3), -5.0), torch.ones(4, dtype=torch.bool)), {}


def gradient(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def test_the_gradient_of_the_sum_is_the_sum_for_any_split():
    """g(RL) + 0.3 g(texts): RL's own split into pieces does not touch the texts', and the other way round."""
    module, _ = tiny(hidden=16, heads=2, kv_heads=1, float64=True)
    models = Models(policy=CausalModel(module))
    batch = METHOD.prepare(models, draw(0)[0], METHOD.initial_state())[0]
    parts = []
    for algorithm, rows in ((METHOD, batch), (SFT(), TEXTS[0])):
        module.zero_grad()
        accumulate(algorithm, models, rows, 10**6)
        parts.append(gradient(module))
    for tokens in (1, 5, 10**6):
        module.zero_grad()
        accumulate(METHOD, models, batch, tokens)
        loss, measured = accumulate(SFT(), models, TEXTS[0], tokens, scale=0.3)
        assert_close(gradient(module), parts[0] + 0.3 * parts[1], rtol=1e-10, atol=1e-12)
        assert loss == measured.means()["loss"], "reported unscaled"
    assert float((0.3 * parts[1]).norm()) > 0.01 * float(parts[0].norm()), "both terms are there"


def run(folder: Path, coefficient: float | None, steps: int = 2) -> tuple[list[dict], list[int], torch.Tensor]:
    """Train; metrics, the numbers of the texts asked for, and the weights at the end."""
    module, _ = tiny(hidden=16, heads=2, kv_heads=1)
    asked: list[int] = []

    def texts(number: int):
        asked.append(number)
        return TEXTS[number]

    beside = None if coefficient is None else Beside("ptx", SFT(), texts, coefficient)
    settings = Optimization(save_every=1)
    models = Models(policy=CausalModel(module))
    task = Task(models, METHOD, draw, {"policy": module}, steps, 1e-3, settings, beside=beside)
    train(task, Run.open(folder, {"steps": steps}, "rl", resume=folder.exists()))
    weights = torch.cat([p.detach().flatten() for p in module.parameters()])
    return list(read_jsonl(folder / "metrics.jsonl")), asked, weights


@pytest.mark.slow
def test_every_optimiser_step_gets_texts_of_its_own_and_a_resumed_run_the_next_ones(tmp_path):
    rows, asked, whole = run(tmp_path / "whole", 0.5)
    assert asked == list(range(8)), "2 steps x 2 passes x 2 minibatches"
    assert all(row["ptx/loss"] > 1 for row in rows)
    assert all(0 <= row["ptx/accuracy/likely"] <= 1 for row in rows)
    _, first, _ = run(tmp_path / "two", 0.5, steps=1)
    again, second, resumed = run(tmp_path / "two", 0.5)
    assert (first, second) == ([0, 1, 2, 3], [4, 5, 6, 7])
    assert torch.equal(whole, resumed)
    assert again[1]["ptx/loss"] == rows[1]["ptx/loss"]


@pytest.mark.slow
def test_the_coefficient_counts(tmp_path):
    """Adam forgets the size of a gradient, not its direction: with more weight on the texts their loss falls lower."""
    without, _, plain = run(tmp_path / "without", None, steps=6)
    assert "ptx/loss" not in without[0]
    little, much = (run(tmp_path / str(c), c, steps=6) for c in (1e-6, 20.0))
    assert_close(little[2], plain, atol=1e-3, rtol=0)
    assert much[0][-1]["ptx/loss"] < little[0][-1]["ptx/loss"] - 0.05
