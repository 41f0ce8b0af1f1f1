"""Answers that a policy sampled: rows that know their temperature, and rollouts with a reward for every step."""

from __future__ import annotations

from dataclasses import dataclass, fields

from jaxtyping import Bool, Float
from torch import Tensor

from tutelage.data.batch import Rollouts, Sequences


@dataclass(frozen=True)
class Sampled(Sequences):
    """Sequences with the temperature that each row was drawn at: every log-prob of them is taken at it.

    A run may change its sampling temperature from step to step; what is stored with the sample cannot be forgotten.
    """

    temperature: tuple[float, ...]


@dataclass(frozen=True)
class StepRollouts(Rollouts):
    """Rollouts whose answers were scored step by step (process rewards).

    `steps` is True on the last token of each step, one of the policy's own; `step_rewards` holds the step's reward there.
    """

    step_rewards: Float[Tensor, "B T"]
    steps: Bool[Tensor, "B T"]


def at_temperature(rows: Sequences, temperature: float) -> Sampled:
    """The same rows, all drawn at one temperature."""
    values = {f.name: getattr(rows, f.name) for f in fields(Sequences)}
    return Sampled(**values, temperature=(temperature,) * len(rows))
