"""Nash learning from human feedback: win against a rival, under a preference that may have cycles."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tutelage.algorithms.base import Metrics, Models, State
from tutelage.algorithms.policy_gradient import kl_rewards, reference_logprobs, rollout_metrics
from tutelage.config import config
from tutelage.data.batch import PolicyBatch, Rollouts, per_group, ungroup
from tutelage.functional.advantages import at_last_token, leave_one_out, reward_to_go
from tutelage.functional.nash import HALF
from tutelage.functional.policy import reinforce
from tutelage.functional.weights import keep, sequence_sum


@dataclass(frozen=True)
class PastPolicies(State):
    """The steps done, and the pool: past policies on the disk, each named by the steps it had been trained for."""

    steps: int = 0
    members: Sequence[int] = ()


@config
class NashMD:
    """-(P(y > y') - 1/2 - beta log pi/mu) log pi against a rival y' (arXiv:2312.00886, section 7), the KL per token, to go.

    The rival is the mixture pi^(1 - mixing) mu^mixing, normalised at every token, or now and then a past policy. Its answers
    are only judged: they are not in the batch. A rollout's `rewards` are P(y > y').
    """

    name: Literal["nash_md"] = "nash_md"
    group_size: Annotated[int, Field(gt=0)] = 4
    """Answers sampled for each prompt, and as many by the rival; answer k meets the rival's answer k."""
    mixing: Annotated[float, Field(ge=0, le=1)] = 0.125
    """b, the reference's share in the rival: 0 is self-play, 1 plays against the reference alone."""
    kl_coefficient: Annotated[float, Field(ge=0)] = 0.05
    """tau: how much a nat of KL from the reference costs in probability of winning."""
    baseline: Literal["half", "leave_one_out"] = "half"
    """What is subtracted: 1/2 (the paper), or the mean return of the group's other answers."""
    pool_every: Annotated[int, Field(ge=0)] = 0
    """Steps between two policies that are put into the pool, the start first; 0: no pool."""
    pool_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """With a pool: the probability that a step's rival is a past policy, each equally likely."""

    presets: ClassVar[dict[str, dict[str, object]]] = {
        "self_play": {"mixing": 0.0},
        "past_policies": {"mixing": 0.0, "pool_every": 10},
        "best_response": {"mixing": 1.0, "kl_coefficient": 0.0},
    }
    passes: ClassVar[int] = 1
    minibatches: ClassVar[int] = 1

    @property
    def needs(self) -> tuple[str, ...]:
        """The reference only where the KL counts (the rival has its own way to it)."""
        return ("policy", "reference") if self.kl_coefficient > 0 else ("policy",)

    def initial_state(self) -> PastPolicies:
        """No step done, nobody in the pool."""
        return PastPolicies()

    def members(self, step: int) -> tuple[int, ...]:
        """The pool when a step begins: the policies before steps 0, `pool_every`, 2 `pool_every` ... up to `step` itself."""
        return tuple(range(0, step + 1, self.pool_every)) if self.pool_every else ()

    def past_rival(self, step: int, seed: int) -> int | None:
        """The pool's member that a step plays against, None for the mixture: a function of (seed, step) alone."""
        members, draw = self.members(step), random.Random(f"{seed}/{step}/rival")
        return draw.choice(members) if members and draw.random() < self.pool_share else None

    def prepare(
        self, models: Models, batch: Rollouts, state: PastPolicies
    ) -> tuple[PolicyBatch, PastPolicies, Mapping[str, float]]:
        """P(y > y') at the end and the KL along the way, to go, minus the baseline."""
        penalised, mask = self.kl_coefficient > 0, batch.answers.mask
        ref = reference_logprobs(models, batch, penalised)
        rewards = at_last_token(batch.rewards, mask) + kl_rewards(batch, ref, self.kl_coefficient)
        baseline = self._baseline(rewards.sum(-1), batch)
        advantages = keep(reward_to_go(rewards, mask) - baseline[:, None], mask)
        after = PastPolicies(state.steps + 1, list(self.members(state.steps)))
        metrics = rollout_metrics(batch, ref if penalised else None)
        metrics["pool/size"] = float(len(after.members))
        return PolicyBatch(batch.answers, advantages, batch.sampler_logprobs, ref), after, metrics

    def _baseline(self, returns: Float[Tensor, "B"], batch: Rollouts) -> Float[Tensor, "B"]:
        if self.baseline == "half":
            return returns.new_full(returns.shape, HALF)
        grouped, index = per_group(returns, batch.answers.prompt_of)
        return returns - ungroup(leave_one_out(grouped), index)

    def weights(self, batch: PolicyBatch) -> Tensor:
        """[B, T]: the sum over an answer's tokens, the mean over answers: the gradient of the expected return."""
        return sequence_sum(batch.answers.mask)

    def losses(self, models: Models, batch: PolicyBatch) -> tuple[Tensor, Metrics]:
        """-A_t log pi."""
        assert models.policy is not None
        logp, entropy = models.policy.logprobs_and_entropy(batch.answers)
        return reinforce(keep(logp, batch.answers.mask), batch.advantages), {"policy/entropy": entropy.detach()}
