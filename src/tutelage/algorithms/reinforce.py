"""REINFORCE: raise the log-probability of what did better than the baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tutelage.algorithms.base import Metrics, Models
from tutelage.algorithms.policy_gradient import RunningMean, kl_rewards, reference_logprobs, rollout_metrics
from tutelage.config import config
from tutelage.data.batch import PolicyBatch, Rollouts, per_group, ungroup
from tutelage.functional.advantages import at_last_token, center, leave_one_out, reward_to_go
from tutelage.functional.policy import reinforce
from tutelage.functional.weights import keep, sequence_sum


@config
class Reinforce:
    """-A_t log pi(a_t | s_t), A_t = reward to go - baseline, the KL to the reference inside the reward (k1, per token).

    Williams 1992; leave-one-out: Kool et al. 2019, Ahmadian et al. 2024 (arXiv:2402.14740).
    """

    name: Literal["reinforce"] = "reinforce"
    group_size: Annotated[int, Field(gt=0)] = 4
    """Answers sampled for each prompt."""
    baseline: Literal["none", "running_mean", "group_mean", "leave_one_out"] = "running_mean"
    """What is subtracted: nothing, the mean of earlier steps, the group's mean, or the mean of the group's other answers."""
    kl_coefficient: Annotated[float, Field(ge=0)] = 0.05
    """beta: how much a nat of KL from the reference costs in reward."""
    discount: Annotated[float, Field(gt=0, le=1)] = 1.0
    """gamma of the reward to go; 1 is the text setting (only then is the KL term exact)."""

    presets: ClassVar[dict[str, dict[str, object]]] = {"rloo": {"baseline": "leave_one_out"}}
    passes: ClassVar[int] = 1
    minibatches: ClassVar[int] = 1

    @property
    def needs(self) -> tuple[str, ...]:
        """The reference only where the KL counts."""
        return ("policy", "reference") if self.kl_coefficient > 0 else ("policy",)

    def initial_state(self) -> RunningMean:
        """The running mean of rewards; used by one of the baselines, kept by all (it is a curve worth seeing)."""
        return RunningMean()

    def prepare(
        self, models: Models, batch: Rollouts, state: RunningMean
    ) -> tuple[PolicyBatch, RunningMean, Mapping[str, float]]:
        """Per-token rewards (task at the end, KL along the way) to go, minus the baseline."""
        penalised = self.kl_coefficient > 0
        ref = reference_logprobs(models, batch, penalised)
        mask = batch.answers.mask
        rewards = at_last_token(batch.rewards, mask) + kl_rewards(batch, ref, self.kl_coefficient)
        totals = rewards.sum(-1)
        to_go = reward_to_go(rewards, mask, self.discount)
        advantages = keep(to_go - self._baseline(totals, batch, state)[:, None], mask)
        prepared = PolicyBatch(batch.answers, advantages, batch.sampler_logprobs, ref)
        return prepared, state.updated(totals), rollout_metrics(batch, ref if penalised else None)

    def _baseline(self, totals: Float[Tensor, "B"], batch: Rollouts, state: RunningMean) -> Float[Tensor, "B"]:
        if self.baseline == "none":
            return torch.zeros_like(totals)
        if self.baseline == "running_mean":
            return torch.full_like(totals, state.mean)
        grouped, index = per_group(totals, batch.answers.prompt_of)
        rule = center if self.baseline == "group_mean" else leave_one_out
        return totals - ungroup(rule(grouped), index)

    def weights(self, batch: PolicyBatch) -> Tensor:
        """[B, T]: the sum over an answer's tokens, the mean over answers: the gradient of the expected return."""
        return sequence_sum(batch.answers.mask)

    def losses(self, models: Models, batch: PolicyBatch) -> tuple[Tensor, Metrics]:
        """-A_t log pi."""
        assert models.policy is not None
        logp, entropy = models.policy.logprobs_and_entropy(batch.answers)
        logp = keep(logp, batch.answers.mask)
        return reinforce(logp, batch.advantages), {"policy/entropy": entropy.detach()}
