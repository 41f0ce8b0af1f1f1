"""GRPO: advantages by comparing a group's answers with each other, a clipped ratio, the KL as a term of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from tutelage.algorithms.base import Metrics, Models, State
from tutelage.algorithms.policy_gradient import reference_logprobs, rollout_metrics
from tutelage.config import config
from tutelage.data.batch import PolicyBatch, Rollouts, per_group, ungroup
from tutelage.functional import kl as estimators
from tutelage.functional.advantages import center, standardize
from tutelage.functional.policy import clipped_surrogate
from tutelage.functional.weights import constant, keep, sequence_mean, token_mean


@config
class GRPO:
    """Clipped surrogate with group advantages (arXiv:2402.03300, eq. 3); Dr. GRPO (arXiv:2503.20783) is a preset."""

    name: Literal["grpo"] = "grpo"
    group_size: Annotated[int, Field(gt=1)] = 8
    """Answers sampled for each prompt; their mean reward is the baseline."""
    advantage: Literal["standardize", "center"] = "standardize"
    """`standardize` divides by the group's standard deviation (the paper); `center` does not (Dr. GRPO)."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-4
    """Added to the standard deviation."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The ratio pi/pi_old counts down to 1 - clip_low."""
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    """The ratio counts up to 1 + clip_high (0.28: DAPO's clip-higher)."""
    kl_coefficient: Annotated[float, Field(ge=0)] = 0.04
    """beta: weight of the KL to the reference in the loss."""
    kl: Literal["ratio_k3", "k3", "k2"] = "ratio_k3"
    """`ratio_k3` and `k2` have the gradient of KL(pi, ref) at the visited states; plain `k3` (the paper) that of KL(ref, pi)."""
    average: Literal["token", "sequence", "constant"] = "token"
    """`token`: every token of the step counts the same; `sequence`: every answer does (the paper); `constant`: divide by max_length."""
    max_length: Annotated[int, Field(gt=0)] = 256
    """The constant of `average: constant`."""
    passes: Annotated[int, Field(gt=0)] = 1
    """Times that each step's answers are used."""
    minibatches: Annotated[int, Field(gt=0)] = 1
    """Optimiser steps in a pass."""

    presets: ClassVar[dict[str, dict[str, object]]] = {"dr_grpo": {"advantage": "center", "average": "constant"}}

    @property
    def needs(self) -> tuple[str, ...]:
        """The reference only where the KL counts."""
        return ("policy", "reference") if self.kl_coefficient > 0 else ("policy",)

    def initial_state(self) -> State:
        """Nothing is carried from step to step."""
        return State()

    def prepare(self, models: Models, batch: Rollouts, state: State) -> tuple[PolicyBatch, State, Mapping[str, float]]:
        """Group advantages (the same for every token of an answer) and the reference's log-probs."""
        penalised = self.kl_coefficient > 0
        ref = reference_logprobs(models, batch, penalised)
        grouped, index = per_group(batch.rewards, batch.answers.prompt_of)
        scores = standardize(grouped, self.epsilon) if self.advantage == "standardize" else center(grouped)
        mask = batch.answers.mask
        advantages = keep(ungroup(scores, index)[:, None].expand(mask.shape), mask)
        metrics = rollout_metrics(batch, ref if penalised else None)
        metrics["reward/equal_groups"] = float((grouped == grouped[:, :1]).all(1).float().mean())
        return PolicyBatch(batch.answers, advantages, batch.sampler_logprobs, ref), state, metrics

    def weights(self, batch: PolicyBatch) -> Tensor:
        """[B, T] by `average`."""
        if self.average == "constant":
            return constant(batch.answers.mask, self.max_length)
        return token_mean(batch.answers.mask) if self.average == "token" else sequence_mean(batch.answers.mask)

    def losses(self, models: Models, batch: PolicyBatch) -> tuple[Tensor, Metrics]:
        """-min(ratio A, clip(ratio) A) + beta KL, per token."""
        assert models.policy is not None
        logp, entropy = models.policy.logprobs_and_entropy(batch.answers)
        logp = keep(logp, batch.answers.mask)
        reused = self.passes * self.minibatches > 1
        # One optimiser step a batch: the ratio is 1 by construction, and rounding in the sampler cannot move it
        old = keep(batch.old_logprobs, batch.answers.mask) if reused else logp.detach()
        losses, clipped = clipped_surrogate(logp, old, batch.advantages, self.clip_low, self.clip_high)
        metrics = {"policy/entropy": entropy.detach(), "policy/clipped": clipped.detach()}
        if self.kl_coefficient > 0:
            losses = losses + self.kl_coefficient * self._kl(logp, batch, old)
        return losses, metrics

    def _kl(self, logp: Tensor, batch: PolicyBatch, old: Tensor) -> Tensor:
        ref = keep(batch.ref_logprobs, batch.answers.mask)
        if self.kl == "ratio_k3":
            return estimators.ratio_k3(logp, ref, old)
        return estimators.k3(logp, ref) if self.kl == "k3" else estimators.k2(logp, ref)
