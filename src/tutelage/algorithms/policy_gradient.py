"""What all policy-gradient methods share: rollouts -> the per-token rewards and the batch that a step holds fixed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tutelage.algorithms.base import Models, State
from tutelage.data.batch import Rollouts
from tutelage.data.sampled import StepRollouts
from tutelage.functional.advantages import at_last_token
from tutelage.functional.kl import Estimator, estimate, k1
from tutelage.functional.weights import keep


@dataclass(frozen=True)
class RunningMean(State):
    """What earlier steps earned: the mean of their returns, and the moments of their task rewards before any KL."""

    mean: float = 0.0
    count: int = 0
    reward_mean: float = 0.0
    reward_squares: float = 0.0
    """Sum of the squared deviations of task rewards from their mean."""

    @property
    def reward_std(self) -> float:
        """Of the task rewards, with n - 1; 1 where nothing has varied yet, so that one may divide by it."""
        spread = self.reward_squares / (self.count - 1) if self.count > 1 else 0.0
        return math.sqrt(spread) if spread > 0 else 1.0

    def updated(self, returns: Float[Tensor, "B"], rewards: Float[Tensor, "B"]) -> RunningMean:
        """The state after another batch (Chan, Golub & LeVeque 1983: moments of two samples become those of both)."""
        new = rewards.numel()
        count = self.count + new
        mean = self.mean + float((returns.double() - self.mean).sum()) / count
        batch_mean = float(rewards.double().mean())
        gap = batch_mean - self.reward_mean
        squares = float((rewards.double() - batch_mean).square().sum()) + gap**2 * self.count * new / count
        return RunningMean(mean, count, self.reward_mean + gap * new / count, self.reward_squares + squares)


def reference_logprobs(models: Models, batch: Rollouts, needed: bool) -> Float[Tensor, "B T"]:
    """The reference's log-probs where a KL term needs them; otherwise the sampler's (a KL of 0) without a pass."""
    if not needed:
        return batch.sampler_logprobs
    assert models.reference is not None
    with torch.no_grad():
        return models.reference.logprobs(batch.answers)


def task_rewards(batch: Rollouts) -> Float[Tensor, "B T"]:
    """The task's rewards where they are earned: of each step at its end (process rewards), else of the answer at its end."""
    if isinstance(batch, StepRollouts):
        return keep(batch.step_rewards, batch.steps)
    return at_last_token(batch.rewards, batch.answers.mask)


def kl_terms(
    name: Estimator, logp: Float[Tensor, "B T"], ref: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], per_answer: bool
) -> Float[Tensor, "B T"]:
    """The estimator at every token; `per_answer` of the whole answer's log-probs, on its last token. 0 where masked."""
    logp, ref = keep(logp, mask), keep(ref, mask)
    return at_last_token(estimate(name, logp.sum(-1), ref.sum(-1)), mask) if per_answer else estimate(name, logp, ref)


def kl_rewards(
    batch: Rollouts, ref: Float[Tensor, "B T"], coefficient: float, name: Estimator = "k1", per_answer: bool = False
) -> Float[Tensor, "B T"]:
    """Per-token rewards -beta * estimator, 0 where masked. Only k1 has the gradient of the KL here (functional/kl.py)."""
    return -coefficient * kl_terms(name, batch.sampler_logprobs, ref, batch.answers.mask, per_answer)


def rollout_metrics(batch: Rollouts, ref: Float[Tensor, "B T"] | None) -> dict[str, float]:
    """What to watch in every method: rewards, lengths, finished share and the KL from the reference (k1, per answer)."""
    lengths = batch.answers.mask.sum(-1).float()
    metrics = {
        "reward/mean": float(batch.rewards.mean()),
        "reward/std": float(batch.rewards.std(correction=0)),
        "answer/length": float(lengths.mean()),
        "answer/finished": float(batch.finished.float().mean()),
        "policy/logprob": float(torch.where(batch.answers.mask, batch.sampler_logprobs, 0.0).sum() / lengths.sum()),
    }
    if ref is not None:
        kl = torch.where(batch.answers.mask, k1(batch.sampler_logprobs, ref), 0.0)
        metrics["policy/kl"] = float(kl.sum(-1).mean())
        metrics["policy/kl_per_token"] = float(kl.sum() / lengths.sum())
    return metrics


def value_metrics(
    values: Float[Tensor, "B T"], returns: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> dict[str, float]:
    """How much of the returns' variance the values explain: 1 - Var(G - V) / Var(G)."""
    error, target = (returns - values)[mask], returns[mask]
    spread = float(target.var(correction=0))
    return {
        "value/mean": float(values[mask].mean()),
        "value/explained": 1 - float(error.var(correction=0)) / spread if spread > 0 else 0.0,
    }
