"""What all policy-gradient methods share: rollouts -> the per-token rewards and the batch that a step holds fixed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.algorithms.base import Models, State
from tutelage.data.batch import Rollouts
from tutelage.functional.kl import k1


@dataclass(frozen=True)
class RunningMean(State):
    """The mean of all rewards seen in earlier steps, and how many they were."""

    mean: float = 0.0
    count: int = 0

    def updated(self, rewards: Tensor) -> RunningMean:
        """The state after another batch of rewards."""
        count = self.count + rewards.numel()
        return RunningMean(self.mean + (float(rewards.double().sum()) - rewards.numel() * self.mean) / count, count)


def reference_logprobs(models: Models, batch: Rollouts, needed: bool) -> Float[Tensor, "B T"]:
    """The reference's log-probs where a KL term needs them; otherwise the sampler's (a KL of 0) without a pass."""
    if not needed:
        return batch.sampler_logprobs
    assert models.reference is not None
    with torch.no_grad():
        return models.reference.logprobs(batch.answers)


def kl_rewards(batch: Rollouts, ref: Float[Tensor, "B T"], coefficient: float) -> Float[Tensor, "B T"]:
    """Per-token rewards -beta (log pi - log ref) (k1 in the reward), 0 where masked."""
    penalty = -coefficient * k1(batch.sampler_logprobs, ref)
    return torch.where(batch.answers.mask, penalty, 0.0)


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
