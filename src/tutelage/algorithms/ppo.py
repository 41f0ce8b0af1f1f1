"""PPO: a clipped ratio, a learned value of every state, generalised advantages, the KL inside the reward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tutelage.algorithms.base import ActorCritic, Metrics, Models, ScalarModel, State
from tutelage.algorithms.policy_gradient import kl_rewards, reference_logprobs, rollout_metrics, value_metrics
from tutelage.config import config
from tutelage.data.batch import ActorCriticBatch, Rollouts, Sequences
from tutelage.functional.advantages import at_last_token, gae, whiten
from tutelage.functional.policy import clipped_surrogate, clipped_value_loss
from tutelage.functional.shaping import adapted_coefficient, missing_end
from tutelage.functional.weights import keep, token_mean


@dataclass(frozen=True)
class KLState(State):
    """beta as it stands: constant, or moved towards `kl_target` after each step."""

    coefficient: float


@config
class PPO:
    """Clipped surrogate (arXiv:1707.06347, eq. 7) with GAE (arXiv:1506.02438) and the per-token KL of InstructGPT."""

    name: Literal["ppo"] = "ppo"
    group_size: Annotated[int, Field(gt=0)] = 4
    """Answers sampled for each prompt."""
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The ratio pi/pi_old counts within 1 - clip .. 1 + clip."""
    value_clip: Annotated[float, Field(gt=0)] | None = 0.2
    """How far a value may move in one step's updates before its loss stops counting (None: no limit)."""
    value_coefficient: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the value loss beside the policy loss."""
    discount: Annotated[float, Field(gt=0, le=1)] = 1.0
    """gamma."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    """lambda: 1 trusts the sampled returns, 0 the value model."""
    bootstrap_truncated: bool = False
    """Whether an answer cut by the token limit is worth the value of its last state beyond the cut (else 0)."""
    whiten_advantages: bool = True
    """Shift and scale the advantages of the whole step to mean 0 and standard deviation 1."""
    kl_coefficient: Annotated[float, Field(ge=0)] = 0.05
    """beta: how much a nat of KL from the reference costs in reward, per token."""
    kl_target: Annotated[float, Field(gt=0)] | None = None
    """Nats an answer: after each step beta grows where the KL was above it and falls where it was below (None: fixed)."""
    kl_rate: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Speed of that: beta moves by at most kl_rate * 20 % a step."""
    missing_end_penalty: Annotated[float, Field(ge=0)] = 0.0
    """Taken from the reward of an answer that does not end by itself."""
    entropy_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy bonus: the policy is paid to stay undecided at the states it visits."""
    passes: Annotated[int, Field(gt=0)] = 2
    """Times that each step's answers are used."""
    minibatches: Annotated[int, Field(gt=0)] = 2
    """Optimiser steps in a pass."""

    presets: ClassVar[dict[str, dict[str, object]]] = {}

    @property
    def needs(self) -> tuple[str, ...]:
        """The reference only where the KL counts."""
        return ("policy", "value", "reference") if self.kl_coefficient > 0 else ("policy", "value")

    def initial_state(self) -> KLState:
        """beta before the first step."""
        return KLState(self.kl_coefficient)

    def prepare(
        self, models: Models, batch: Rollouts, state: KLState
    ) -> tuple[ActorCriticBatch, KLState, Mapping[str, float]]:
        """Per-token rewards, values, advantages by GAE, the returns that the value model learns, and the next beta."""
        assert models.value is not None
        mask = batch.answers.mask
        penalised = self.kl_coefficient > 0
        ref = reference_logprobs(models, batch, penalised)
        with torch.no_grad():
            values = keep(models.value.values(batch.answers), mask)
        scores = batch.rewards + missing_end(batch.finished, self.missing_end_penalty).to(batch.rewards)
        rewards = at_last_token(scores, mask) + kl_rewards(batch, ref, state.coefficient)
        beyond = self._beyond_the_cut(models.value, batch) if self.bootstrap_truncated else None
        advantages, returns = gae(rewards, values, mask, self.discount, self.gae_lambda, bootstrap=beyond)
        metrics = rollout_metrics(batch, ref if penalised else None)
        metrics |= value_metrics(values, returns, mask)
        if self.whiten_advantages:
            advantages = keep(whiten(advantages, mask), mask)
        if self.kl_target is not None and penalised:
            metrics["policy/kl_coefficient"] = state.coefficient
            state = KLState(adapted_coefficient(state.coefficient, metrics["policy/kl"], self.kl_target, self.kl_rate))
        prepared = ActorCriticBatch(batch.answers, advantages, batch.sampler_logprobs, ref, returns, values)
        return prepared, state, metrics

    def _beyond_the_cut(self, model: ScalarModel, batch: Rollouts) -> Float[Tensor, "B"]:
        """V after the last token of the answers that the token limit cut; 0 for those that ended."""
        with torch.no_grad():
            return torch.where(batch.finished, 0.0, model.scores(batch.answers))

    def weights(self, batch: ActorCriticBatch) -> Tensor:
        """[B, T]: every token of the optimiser step counts the same."""
        return token_mean(batch.answers.mask)

    def losses(self, models: Models, batch: ActorCriticBatch) -> tuple[Tensor, Metrics]:
        """-min(ratio A, clip(ratio) A) + c_v (V - G)^2 / 2 - c entropy, per token."""
        mask = batch.answers.mask
        logp, entropy, values = (keep(x, mask) for x in _forward(models, batch.answers))
        old = keep(batch.old_logprobs, mask)
        policy, clipped = clipped_surrogate(logp, old, batch.advantages, self.clip, self.clip)
        value = clipped_value_loss(values, batch.old_values, batch.returns, self.value_clip)
        losses = policy + self.value_coefficient * value
        if self.entropy_coefficient > 0:
            losses = losses - self.entropy_coefficient * entropy
        return losses, {
            "policy/entropy": entropy.detach(),
            "policy/clipped": clipped.detach(),
            "policy/moved": (old - logp).detach(),
            "value/loss": value.detach(),
        }


def _forward(models: Models, answers: Sequences) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs, entropies and values: in one forward where policy and value share their trunk."""
    assert models.policy is not None
    assert models.value is not None
    if models.value is models.policy:
        return cast(ActorCritic, models.policy).logprobs_entropy_values(answers)
    return (*models.policy.logprobs_and_entropy(answers), models.value.values(answers))
