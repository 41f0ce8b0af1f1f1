"""How weights move: AdamW, the learning-rate schedule as a function of the step, and the size of a pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from tutelage.config import config

Positive = Annotated[float, Field(gt=0)]
TOKENS_PER_PASS = 1024
"""Where neither the settings nor a machine's memory say otherwise."""


@config
class Optimization:
    """AdamW and what surrounds it."""

    learning_rate: Positive | None = None
    """Peak learning rate; default: 3e-4 with LoRA and 1e-5 for full fine-tuning (a command may state its own)."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: stay, or fall to `final_fraction` of the peak by the last step."""
    warmup_steps: Annotated[int, Field(ge=0)] = 2
    """Steps over which the learning rate rises from 0."""
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Where `linear` and `cosine` end, as a fraction of the peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this norm."""
    tokens_per_pass: Annotated[int, Field(gt=0)] | None = None
    """Packed tokens in one forward and backward (a quarter more where that keeps a prompt's rows together); default: at most
    1,024 on a CPU and 16,384 on a GPU, fewer where half the machine's memory holds fewer (2.5 MB each on a 135M model). Only
    memory and speed depend on it, never the gradient."""
    save_every: Annotated[int, Field(gt=0)] = 10
    """Steps between checkpoints (the last step and an interruption save too)."""
    keep_checkpoints: Annotated[int, Field(gt=0)] = 2
    """How many of the newest checkpoints stay on disk."""

    @property
    def pass_tokens(self) -> int:
        """`tokens_per_pass`, which a command has chosen by the machine's memory; from Python, 1,024 unless stated."""
        return self.tokens_per_pass or TOKENS_PER_PASS


def learning_rate(settings: Optimization, step: int, steps: int, peak: float) -> float:
    """The rate of step `step` (from 0) out of `steps`."""
    if step < settings.warmup_steps:
        return peak * (step + 1) / (settings.warmup_steps + 1)
    if settings.schedule == "constant":
        return peak
    done = min(1.0, (step - settings.warmup_steps) / max(1, steps - 1 - settings.warmup_steps))
    shape = 1 - done if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return peak * (settings.final_fraction + (1 - settings.final_fraction) * shape)


FUSED = ("cpu", "cuda")
"""Devices on which PyTorch updates weight, gradient and both averages together; elsewhere operation by operation."""


def adamw(parameters: Iterable[nn.Parameter], settings: Optimization) -> torch.optim.AdamW:
    """AdamW over the trainable ones of `parameters`, in one pass over memory; the loop sets the learning rate before each step."""
    trained = [p for p in parameters if p.requires_grad]
    fused = all(p.device.type in FUSED for p in trained)
    return torch.optim.AdamW(trained, lr=0.0, betas=settings.betas, weight_decay=settings.weight_decay, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The same rate for every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def named_trainable(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Trainable parameters of several modules as `module/name`, each tensor once."""
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for prefix, module in modules.items():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                found[f"{prefix}/{name}"] = parameter
    return found
