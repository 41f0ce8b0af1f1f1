"""Best-of-N, or rejection-sampling fine-tuning: imitate the policy's own best answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from tutelage.algorithms.base import Metrics, Models, State, Stateless
from tutelage.algorithms.policy_gradient import rollout_metrics
from tutelage.algorithms.sft import SFT
from tutelage.config import config
from tutelage.data.batch import Rollouts, Rows, Sequences, per_group, ungroup
from tutelage.functional.selection import differ, top_shares
from tutelage.functional.weights import keep
from tutelage.statistics.best_of_n import best_of_n_kl_bound, best_of_n_unbiased


@dataclass(frozen=True)
class BestAnswers(Rows):
    """Answers that may be imitated. `share` is the chance of each to be kept, below 1 among equals; `counted` is False in
    groups that teach nothing: they stay in the denominators.
    """

    answers: Sequences
    share: Float[Tensor, "B"]
    counted: Bool[Tensor, "B"]


@config
class BestOfN(Stateless):
    """-log p of the best of N answers drawn from the current policy (RAFT, arXiv:2304.06767; Llama 2, arXiv:2307.09288).

    With `average` sum and `equal_groups` share its expected gradient is that of the cross-entropy E[-log pi(y)], y being the
    best of N: the step goes towards the best-of-N policy.
    """

    name: Literal["best_of_n"] = "best_of_n"
    group_size: Annotated[int, Field(gt=1)] = 8
    """N: answers sampled for each prompt."""
    fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The share of each group that is kept, rounded up to whole answers (default: the best one alone)."""
    equal_groups: Literal["skip", "share"] = "skip"
    """Where all answers earn the same: `skip` learns nothing there; `share` imitates all of them, a lot's chance each."""
    average: Literal["token", "sequence", "sum"] = "token"
    """`token`: every kept token counts the same; `sequence`: every kept answer does; `sum`: -log p of whole answers."""

    needs = ("policy",)
    passes: ClassVar[int] = 1
    minibatches: ClassVar[int] = 1
    may_rest: ClassVar[bool] = True
    """A step whose groups are all equal changes nothing."""

    def kept(self, answers: int) -> int:
        """How many of a group's answers are kept."""
        return 1 if self.fraction is None else math.ceil(self.fraction * answers)

    def prepare(self, models: Models, batch: Rollouts, state: State) -> tuple[BestAnswers, State, Mapping[str, float]]:
        """The best of each group; the others leave the batch."""
        rewards, index = per_group(batch.rewards, batch.answers.prompt_of)
        kept, counted = self.kept(rewards.shape[1]), differ(rewards)
        share = ungroup(top_shares(rewards, kept), index)
        if self.equal_groups == "share":
            counted = torch.ones_like(counted)
        counts = ungroup(counted[:, None].expand_as(index).to(rewards.dtype), index) > 0
        rows = share.nonzero()[:, 0]
        metrics = rollout_metrics(batch, None) | best_of_n_curve(rewards)
        metrics["best_of_n/kl_at_most"] = kl_bound(rewards.shape[1], kept)
        metrics["best_of_n/groups_used"] = float(counted.double().mean())
        return BestAnswers(batch.answers[rows], share[rows], counts[rows]), state, metrics

    def weights(self, batch: BestAnswers) -> Tensor:
        """[B, T]: an answer's share on its tokens, over the shares of the whole step, groups that are skipped included."""
        mask = batch.answers.mask
        each = mask * batch.share[:, None]
        if self.average == "sequence":
            each = each / mask.sum(1, keepdim=True).clamp(min=1)
        whole = each.sum() if self.average == "token" else batch.share.sum()
        return keep(each, batch.counted[:, None].expand_as(each)) / torch.where(whole > 0, whole, 1)

    def losses(self, models: Models, batch: BestAnswers) -> tuple[Tensor, Metrics]:
        """-log p of each token of the kept answers: SFT's."""
        return SFT().losses(models, batch.answers)


def best_of_n_curve(rewards: Float[Tensor, "P G"]) -> dict[str, float]:
    """`best_of_n/n` for n = 1..G: the reward that the best of n answers would have, unbiased, mean over prompts."""
    rows, answers = rewards.tolist(), rewards.shape[1]
    return {
        f"best_of_n/{n}": sum(best_of_n_unbiased(row, row, n) for row in rows) / len(rows)
        for n in range(1, answers + 1)
    }


def kl_bound(answers: int, kept: int) -> float:
    """At most so many nats lie between the distribution of the `kept` best of `answers` samples and the policy.

    log N - (N-1)/N for the best one (arXiv:2401.01879), log(N / kept) for several: a kept answer is one of N samples, so it
    comes at most N / kept times as often as the policy says it.
    """
    return best_of_n_kl_bound(answers) if kept == 1 else math.log(answers / kept)
