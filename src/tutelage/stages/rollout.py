"""Answers sampled in fewer bits than the policy trains in: the sampler, and the correction that the method then needs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from tutelage.algorithms.corrected import Corrected
from tutelage.algorithms.grpo import GRPO
from tutelage.algorithms.ppo import PPO
from tutelage.algorithms.reinforce import Reinforce
from tutelage.config import config
from tutelage.models.rough import Precision
from tutelage.models.sampling import Decoder
from tutelage.training.loop import Task
from tutelage.training.rollouts import RolloutSource


@config
class Rollout:
    """How answers are sampled for training, and what is done about the difference to the policy that is trained."""

    precision: Precision = "exact"
    """What the sampler's linear layers multiply in: `exact` as the trainer, `bfloat16` or `int8` (faster, corrected by weights)."""
    correction: Literal["token", "sequence"] = "token"
    """Weights of the losses where the sampler is not exact: the ratio trainer / sampler of each token, or of the whole answer."""
    cap: float = Field(default=2.0, gt=0)
    """Largest such weight; with `sequence` and `.inf` the gradient is unbiased, at the price of variance."""


def check_rollout(rollout: Rollout, method: Any) -> None:
    """Raises ValueError for a method whose losses are not one a token of the policy's own answers."""
    if rollout.precision != "exact" and not isinstance(method, Reinforce | GRPO | PPO):
        raise ValueError(
            f"rollout.precision {rollout.precision} is corrected for in reinforce, grpo and ppo; got algorithm {method.name}"
        )


def with_rollout(rollout: Rollout, task: Task) -> Task:
    """The task with a sampler in fewer bits and its method corrected for it; as it is where the sampler is exact."""
    if rollout.precision == "exact":
        return task
    check_rollout(rollout, task.algorithm)
    source = task.draw
    assert isinstance(source, RolloutSource)
    assert isinstance(source.sampler, Decoder)
    rough = replace(source, sampler=replace(source.sampler, precision=rollout.precision))
    return replace(task, draw=rough, algorithm=Corrected(task.algorithm, rollout.cap, rollout.correction))
