"""What a run is measured against: this machine's F and BW in hardware.json, and the meter that compares every step with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.console import say
from tutelage.models import fused, gemm
from tutelage.models.hardware import Machine, conditions, machine
from tutelage.models.logprobs import HeadedModel
from tutelage.models.sampling import Decoder
from tutelage.rewards.combine import Combined
from tutelage.training.files import write_whole
from tutelage.training.limits import Limit
from tutelage.training.loop import Task
from tutelage.training.meter import Meter
from tutelage.training.mixed import MixedSource
from tutelage.training.optim import named_trainable
from tutelage.training.rollouts import RolloutSource
from tutelage.training.work import Passes

HARDWARE = "hardware.json"
PRODUCTS = {"onednn": "oneDNN", "amx": "the matrix unit", "default": "PyTorch's default library"}
STEPS = {
    "amx": "compiled kernels and the matrix unit (AMX)",
    "numba": "compiled kernels and products",
    "loops": "compiled kernels",
    "torch": "PyTorch's operations",
}


def open_meter(task: Task, folder: Path, passes: Passes) -> Meter:
    """The meter of a run whose folder is open; the machine is said. A resumed run keeps the F and BW that it has found so far."""
    weights = max((p for module in task.trained.values() for p in module.parameters()), key=Tensor.numel)
    found = known_machine(folder, weights.dtype, weights.device)
    say(f"this machine: {found.line()}{libraries(weights.device)}")
    trained = sum(p.numel() for p in named_trainable(task.trained).values())
    return Meter(passes, Limit(found, lambda better: keep_machine(folder, better)), trained)


def libraries(device: torch.device) -> str:
    """What multiplies and what decodes on a CPU, as the end of a sentence; empty elsewhere."""
    if device.type != "cpu":
        return ""
    return f"; products by {PRODUCTS[gemm.in_use()]}, decoding steps by {STEPS[fused.in_use()]}"


def known_machine(folder: Path, dtype: torch.dtype, device: torch.device) -> Machine:
    """What hardware.json holds, where it holds for this device, precision and number of threads; else what is measured now."""
    path = folder / HARDWARE
    if path.is_file():
        before = Machine(**json.loads(path.read_text(encoding="utf-8")))
        if before.same_conditions(conditions(dtype, device)):
            return before
    found = machine(dtype, device, torch.get_num_threads())
    keep_machine(folder, found)
    return found


def keep_machine(folder: Path, found: Machine) -> None:
    """Write hardware.json."""
    write_whole(folder / HARDWARE, json.dumps(found.to_json(), indent=1) + "\n")


def metered(task: Task, meter: Meter) -> Task:
    """The task whose source tells the meter what the policy says."""
    source: Any = task.draw
    if not isinstance(source, RolloutSource | MixedSource):
        return task
    exact = isinstance(source.sampler, Decoder) and source.sampler.precision == "exact"
    return replace(task, draw=replace(source, said=partial(meter.said, exact=exact)))


def scorers_of(rewards: Combined) -> tuple[nn.Module, ...]:
    """The decoders among the rewards: they read the answers here, packed."""
    found: Sequence[Any] = [getattr(part.reward, "reward", part.reward) for part in rewards.terms]
    scorers = [getattr(reward, "scorer", None) for reward in found]
    return tuple(scorer.module for scorer in scorers if isinstance(scorer, HeadedModel))
