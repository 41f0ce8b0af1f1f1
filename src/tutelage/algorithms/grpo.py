"""GRPO: advantages by comparing a group's answers with each other, a clipped ratio, the KL as a term of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tutelage.algorithms.base import Metrics, Models, State, Stateless
from tutelage.algorithms.policy_gradient import reference_logprobs, rollout_metrics
from tutelage.config import config
from tutelage.data.batch import PolicyBatch, Rollouts, per_group, ungroup
from tutelage.data.sampled import StepRollouts
from tutelage.functional.advantages import center, standardize
from tutelage.functional.kl import estimate
from tutelage.functional.policy import cispo, clipped_surrogate, mean_log_ratio
from tutelage.functional.shaping import soft_overlong, step_advantages
from tutelage.functional.weights import constant, group_token_mean, keep, sequence_mean, token_mean


@config
class GRPO(Stateless):
    """Clipped surrogate with group advantages (arXiv:2402.03300, eq. 3); Dr. GRPO, DAPO, GSPO and CISPO are presets."""

    name: Literal["grpo"] = "grpo"
    group_size: Annotated[int, Field(gt=1)] = 8
    """Answers sampled for each prompt; their mean reward is the baseline."""
    advantage: Literal["standardize", "center"] = "standardize"
    """`standardize` divides by the group's standard deviation, of G - 1 (the paper); `center` does not (Dr. GRPO)."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-4
    """Added to the standard deviation."""
    objective: Literal["clipped", "cispo"] = "clipped"
    """`clipped`: PPO's surrogate, a clipped token has no gradient; `cispo`: REINFORCE with the clipped ratio as a weight."""
    ratio: Literal["token", "sequence"] = "token"
    """pi/pi_old of each token, or (GSPO) the geometric mean over the answer's tokens, clipped as one."""
    clip_low: Annotated[float, Field(gt=0, le=1)] = 0.2
    """The ratio pi/pi_old counts down to 1 - clip_low (1: no bound)."""
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    """The ratio counts up to 1 + clip_high (0.28: DAPO's clip-higher, room for unlikely tokens to grow)."""
    kl_coefficient: Annotated[float, Field(ge=0)] = 0.04
    """beta: weight of the KL in the loss."""
    kl: Literal["ratio_k3", "k3", "k2"] = "ratio_k3"
    """`ratio_k3` and `k2` have the gradient of KL(pi, ref) at the visited states; plain `k3` (the paper) that of KL(ref, pi)."""
    kl_to: Literal["reference", "old"] = "reference"
    """To the reference, or to the policy that sampled (then it only acts where answers are used more than once)."""
    average: Literal["token", "group", "sequence", "constant"] = "token"
    """`token`: every token of the step counts the same; `group`: of its group (DAPO, eq. 8); `sequence`: every answer does (the paper); `constant`: divide by max_length."""
    max_length: Annotated[int, Field(gt=0)] | None = None
    """The longest answer, in tokens, for `constant` and `overlong`; the command fills in --max-new-tokens."""
    overlong: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of max_length, its end, over which a penalty falls from 0 to -1 (DAPO's soft overlong punishment; 0: none)."""
    attempts: Annotated[int, Field(ge=0)] = 0
    """Times that prompts whose answers all scored the same are replaced by others before a step (DAPO's dynamic sampling)."""
    entropy_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy bonus: the policy is paid to stay undecided at the states it visits."""
    passes: Annotated[int, Field(gt=0)] = 1
    """Times that each step's answers are used."""
    minibatches: Annotated[int, Field(gt=0)] = 1
    """Optimiser steps in a pass."""

    presets: ClassVar[dict[str, dict[str, object]]] = {
        "dr_grpo": {"advantage": "center", "average": "constant"},
        "dapo": {"clip_high": 0.28, "kl_coefficient": 0.0, "attempts": 3, "overlong": 0.2, "minibatches": 4},
        "gspo": {
            "ratio": "sequence", "average": "sequence", "clip_low": 3e-4, "clip_high": 4e-4, "kl_coefficient": 0.0,
            "minibatches": 4,
        },
        "cispo": {
            "objective": "cispo", "clip_low": 1.0, "clip_high": 4.0, "kl_coefficient": 0.0, "minibatches": 4,
        },
    }  # fmt: skip

    @property
    def needs(self) -> tuple[str, ...]:
        """The reference only where the KL to it counts."""
        return ("policy", "reference") if self._penalised else ("policy",)

    @property
    def limit(self) -> int:
        """`max_length`, which some settings need; ValueError where it was not said."""
        if self.max_length is None:
            raise ValueError(
                "algorithm.max_length: `average: constant` and `overlong` need the longest answer's tokens"
            )
        return self.max_length

    @property
    def _penalised(self) -> bool:
        return self.kl_coefficient > 0 and self.kl_to == "reference"

    def prepare(self, models: Models, batch: Rollouts, state: State) -> tuple[PolicyBatch, State, Mapping[str, float]]:
        """Group advantages and the reference's log-probs."""
        ref = reference_logprobs(models, batch, self._penalised)
        grouped, _ = per_group(batch.rewards, batch.answers.prompt_of)
        metrics = rollout_metrics(batch, ref if self._penalised else None)
        metrics["reward/equal_groups"] = float((grouped == grouped[:, :1]).all(1).float().mean())
        rewards = batch.rewards
        if self.overlong > 0:
            buffer = round(self.overlong * self.limit)
            penalty = soft_overlong(batch.answers.mask.sum(1), self.limit, buffer).to(rewards)
            metrics["reward/overlong"] = float(penalty.mean())
            rewards = rewards + penalty
        advantages = self._advantages(batch, rewards)
        return PolicyBatch(batch.answers, advantages, batch.sampler_logprobs, ref), state, metrics

    def _advantages(self, batch: Rollouts, rewards: Float[Tensor, "B"]) -> Float[Tensor, "B T"]:
        """The same for every token of an answer; with process rewards, of the steps that are still to end."""
        mask, prompt_of = batch.answers.mask, batch.answers.prompt_of
        if isinstance(batch, StepRollouts):
            epsilon = self.epsilon if self.advantage == "standardize" else None
            return step_advantages(batch.step_rewards, batch.steps, mask, prompt_of, epsilon)
        grouped, index = per_group(rewards, prompt_of)
        scores = standardize(grouped, self.epsilon) if self.advantage == "standardize" else center(grouped)
        return keep(ungroup(scores, index)[:, None].expand(mask.shape), mask)

    def weights(self, batch: PolicyBatch) -> Tensor:
        """[B, T] by `average`."""
        mask = batch.answers.mask
        if self.average == "constant":
            return constant(mask, self.limit)
        if self.average == "group":
            return group_token_mean(mask, batch.answers.prompt_of)
        return token_mean(mask) if self.average == "token" else sequence_mean(mask)

    def losses(self, models: Models, batch: PolicyBatch) -> tuple[Tensor, Metrics]:
        """-min(ratio A, clip(ratio) A) + beta KL - c entropy, per token."""
        assert models.policy is not None
        mask = batch.answers.mask
        logp, entropy = models.policy.logprobs_and_entropy(batch.answers)
        logp, entropy = keep(logp, mask), keep(entropy, mask)
        reused = self.passes * self.minibatches > 1
        # One optimiser step a batch: the ratio is 1 by construction, and rounding in the sampler cannot move it
        old = keep(batch.old_logprobs, mask) if reused else logp.detach()
        losses, clipped = self._surrogate(logp, old, batch)
        metrics = {"policy/entropy": entropy.detach(), "policy/clipped": clipped.detach()}
        if self.kl_coefficient > 0:
            losses = losses + self.kl_coefficient * self._kl(logp, batch, old)
        if self.entropy_coefficient > 0:
            losses = losses - self.entropy_coefficient * entropy
        return losses, metrics

    def _surrogate(self, logp: Tensor, old: Tensor, batch: PolicyBatch) -> tuple[Tensor, Tensor]:
        if self.ratio == "sequence":
            log_ratio = mean_log_ratio(logp, old, batch.answers.mask)
            if self.objective == "clipped":  # the answer's ratio stands on each of its tokens; so does its gradient
                zeros = log_ratio.new_zeros(log_ratio.shape)
                return clipped_surrogate(log_ratio, zeros, batch.advantages, self.clip_low, self.clip_high)
            old = (logp - log_ratio).detach()
        loss = clipped_surrogate if self.objective == "clipped" else cispo
        return loss(logp, old, batch.advantages, self.clip_low, self.clip_high)

    def _kl(self, logp: Tensor, batch: PolicyBatch, old: Tensor) -> Tensor:
        ref = old if self.kl_to == "old" else keep(batch.ref_logprobs, batch.answers.mask)
        return estimate(self.kl, logp, ref, old)
