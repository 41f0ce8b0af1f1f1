"""REINFORCE: raise the log-probability of what did better than the baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from tutelage.algorithms.base import Metrics, Models
from tutelage.algorithms.policy_gradient import (
    RunningMean,
    kl_rewards,
    kl_terms,
    reference_logprobs,
    rollout_metrics,
    task_rewards,
    value_metrics,
)
from tutelage.config import config
from tutelage.data.batch import ActorCriticBatch, PolicyBatch, Rollouts, per_group, ungroup
from tutelage.data.sampled import StepRollouts
from tutelage.functional.advantages import (
    at_last_token,
    center,
    first_token,
    leave_one_out,
    reward_to_go,
    standardize,
    whiten,
)
from tutelage.functional.kl import Estimator
from tutelage.functional.policy import clipped_value_loss, reinforce
from tutelage.functional.weights import keep, sequence_sum

EPSILON = 1e-8
"""Added to the standard deviation of a step's rewards."""


@config
class Reinforce:
    """-A_t log pi(a_t | s_t), A_t = reward to go - baseline; the KL to the reference in the reward or in the loss.

    Williams 1992; leave-one-out: Kool et al. 2019, Ahmadian et al. 2024 (arXiv:2402.14740).
    """

    name: Literal["reinforce"] = "reinforce"
    group_size: Annotated[int, Field(gt=0)] = 4
    """Answers sampled for each prompt."""
    credit: Literal["token", "answer"] = "token"
    """`token`: every token is an action and earns what comes after it; `answer`: the whole answer is one action (a bandit)."""
    baseline: Literal["none", "running_mean", "group_mean", "leave_one_out", "value"] = "running_mean"
    """What is subtracted: nothing, the mean of earlier steps, the group's mean, the mean of the group's other answers, or a learned value of the state."""
    normalize: Literal["none", "running", "step"] = "none"
    """Task rewards to mean 0 and standard deviation 1: by those of earlier steps (`running`, unbiased) or of this one (`step`)."""
    whiten_advantages: bool = False
    """Shift and scale the advantages of the whole step to mean 0 and standard deviation 1 (biased, a habit of control tasks)."""
    value_coefficient: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the value loss beside the policy loss, for the baseline `value`."""
    kl_coefficient: Annotated[float, Field(ge=0)] = 0.05
    """beta: how much a nat of KL from the reference costs."""
    kl: Estimator = "k1"
    """Estimator of the KL; docs/algorithms/kl.md says what each gives where. `k1` is for the reward, `k2` and `ratio_k3` for the loss."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where the KL counts; in the loss `k1` has no expected gradient at all."""
    entropy_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy bonus: the policy is paid to stay undecided at the states it visits."""
    discount: Annotated[float, Field(gt=0, le=1)] = 1.0
    """gamma of the reward to go; 1 is the text setting (only then is the KL term exact)."""

    presets: ClassVar[dict[str, dict[str, object]]] = {"rloo": {"baseline": "leave_one_out"}}
    passes: ClassVar[int] = 1
    minibatches: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.credit == "answer" and self.discount < 1:
            raise ValueError(
                f"discount: with credit `answer` there is one action and nothing to discount; got {self.discount}"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        """The reference only where the KL counts, the value model only where it is the baseline."""
        value = ("value",) if self.baseline == "value" else ()
        return ("policy", *value, "reference") if self.kl_coefficient > 0 else ("policy", *value)

    def initial_state(self) -> RunningMean:
        """What earlier steps earned: for `running_mean` and `running`, kept by all (it is a curve worth seeing)."""
        return RunningMean()

    def prepare(
        self, models: Models, batch: Rollouts, state: RunningMean
    ) -> tuple[PolicyBatch, RunningMean, Mapping[str, float]]:
        """Per-token rewards (task at the end, KL along the way) to go, minus the baseline."""
        penalised, mask = self.kl_coefficient > 0, batch.answers.mask
        ref = reference_logprobs(models, batch, penalised)
        rewards = task_rewards(self._normalized(batch, state))
        if self.kl_in == "reward":
            rewards = rewards + kl_rewards(batch, ref, self.kl_coefficient, self.kl, self._one_action)
        if self._one_action:
            rewards = at_last_token(rewards.sum(-1), mask)
        returns, totals = reward_to_go(rewards, mask, self.discount), rewards.sum(-1)
        metrics = rollout_metrics(batch, ref if penalised else None)
        if self.baseline == "value":
            values = self._values(models, batch)
            metrics |= value_metrics(values, returns, self._judged(mask))
            prepared: PolicyBatch = ActorCriticBatch(
                batch.answers, self._scaled(returns - values, mask), batch.sampler_logprobs, ref, returns, values
            )
        else:
            advantages = self._scaled(returns - self._baseline(totals, batch, state)[:, None], mask)
            prepared = PolicyBatch(batch.answers, advantages, batch.sampler_logprobs, ref)
        return prepared, state.updated(totals, batch.rewards), metrics

    @property
    def _one_action(self) -> bool:
        return self.credit == "answer"

    def _normalized(self, batch: Rollouts, state: RunningMean) -> Rollouts:
        if self.normalize == "none":
            return batch
        if isinstance(batch, StepRollouts):
            raise ValueError(
                f"normalize: {self.normalize!r} is for one reward an answer; for process rewards use 'none'"
            )
        if self.normalize == "running":
            return replace(batch, rewards=(batch.rewards - state.reward_mean) / state.reward_std)
        return replace(batch, rewards=standardize(batch.rewards[None], EPSILON)[0])

    def _baseline(self, totals: Float[Tensor, "B"], batch: Rollouts, state: RunningMean) -> Float[Tensor, "B"]:
        if self.baseline == "none":
            return torch.zeros_like(totals)
        if self.baseline == "running_mean":
            return torch.full_like(totals, state.mean)
        grouped, index = per_group(totals, batch.answers.prompt_of)
        rule = center if self.baseline == "group_mean" else leave_one_out
        return totals - ungroup(rule(grouped), index)

    def _values(self, models: Models, batch: Rollouts) -> Float[Tensor, "B T"]:
        """V of each token's state; with one action, V of the prompt on every token."""
        assert models.value is not None
        with torch.no_grad():
            values = keep(models.value.values(batch.answers), batch.answers.mask)
        if self._one_action:
            values = keep(values, first_token(batch.answers.mask)).sum(-1, keepdim=True).expand(values.shape)
        return keep(values, batch.answers.mask)

    def _judged(self, mask: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        """The tokens in whose states an action is chosen, and so a value is learned."""
        return first_token(mask) if self._one_action else mask

    def _scaled(self, advantages: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        return keep(whiten(advantages, mask) if self.whiten_advantages else advantages, mask)

    def weights(self, batch: PolicyBatch) -> Tensor:
        """[B, T]: the sum over an answer's tokens, the mean over answers: the gradient of the expected return."""
        return sequence_sum(batch.answers.mask)

    def losses(self, models: Models, batch: PolicyBatch) -> tuple[Tensor, Metrics]:
        """-A_t log pi (+ beta KL, + c (V - G)^2 / 2, - c_e entropy), per token."""
        assert models.policy is not None
        mask = batch.answers.mask
        logp, entropy = models.policy.logprobs_and_entropy(batch.answers)
        logp = keep(logp, mask)
        losses, metrics = reinforce(logp, batch.advantages), {"policy/entropy": entropy.detach()}
        if self.kl_coefficient > 0 and self.kl_in == "loss":
            losses = losses + self.kl_coefficient * kl_terms(self.kl, logp, batch.ref_logprobs, mask, self._one_action)
        if self.entropy_coefficient > 0:
            losses = losses - self.entropy_coefficient * keep(entropy, mask)
        if isinstance(batch, ActorCriticBatch):
            assert models.value is not None
            values = keep(models.value.values(batch.answers), mask)
            error = clipped_value_loss(values, batch.old_values, batch.returns, None)
            value = keep(error, self._judged(mask))
            losses, metrics["value/loss"] = losses + self.value_coefficient * value, value.detach()
        return losses, metrics
