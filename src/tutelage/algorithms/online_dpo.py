"""Online DPO: comparisons of the current policy's own answers, made by the reward, in every step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool
from pydantic import Field
from torch import Tensor

from tutelage.algorithms.base import Metrics, Models, State, Stateless
from tutelage.algorithms.policy_gradient import reference_logprobs, rollout_metrics
from tutelage.algorithms.preference import DPO
from tutelage.config import config
from tutelage.data.batch import PairsWithReference, Rollouts, per_group
from tutelage.functional.selection import best_against_worst, differ
from tutelage.functional.weights import keep, row_mean


@dataclass(frozen=True)
class OwnPairs(PairsWithReference):
    """Pairs of one group's answers; weights of a group sum to 1. `compared` is False for a group of equal rewards: it has
    one row, of weight 1, that is not trained on and stays in the denominator.
    """

    compared: Bool[Tensor, "B"]


@config
class OnlineDPO(Stateless):
    """DPO's loss on the best and the worst answer of each group (arXiv:2402.04792, algorithm 1, with a reward as the judge).

    Where several answers are equally good or bad, every such pair counts with an equal share. Answers are drawn from the
    current policy, and the gradient does not pass through how they are drawn, as in the paper.
    """

    name: Literal["online_dpo"] = "online_dpo"
    group_size: Annotated[int, Field(gt=1)] = 4
    """Answers sampled for each prompt; 2 are the paper's."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull to the reference: larger stays closer."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Probability that the reward has a pair the wrong way round (cDPO)."""

    needs = ("policy", "reference")
    passes: ClassVar[int] = 1
    minibatches: ClassVar[int] = 1
    may_rest: ClassVar[bool] = True
    """A step whose groups are all equal changes nothing."""

    def prepare(self, models: Models, batch: Rollouts, state: State) -> tuple[OwnPairs, State, Mapping[str, float]]:
        """The pairs, with the reference's log-probs of both answers."""
        rewards, index = per_group(batch.rewards, batch.answers.prompt_of)
        share, compared = best_against_worst(rewards), differ(rewards)
        share = torch.where(compared[:, None, None], share, 0)
        share[:, 0, 0] += (~compared).to(share.dtype)  # an equal group: one row that keeps its place
        group, best, worst = share.nonzero().T
        chosen, rejected = index[group, best], index[group, worst]
        ref = reference_logprobs(models, batch, needed=True)
        whole = keep(ref, batch.answers.mask).sum(-1)
        weight = share[group, best, worst]
        pairs = OwnPairs(
            chosen=batch.answers[chosen],
            rejected=batch.answers[rejected],
            preference=torch.ones_like(weight),
            weight=weight,
            margin=torch.zeros_like(weight),
            ref_chosen=whole[chosen],
            ref_rejected=whole[rejected],
            compared=compared[group],
        )
        metrics = rollout_metrics(batch, ref)
        metrics["reward/equal_groups"] = float((~compared).double().mean())
        metrics["reward/best_minus_worst"] = float((rewards.amax(1) - rewards.amin(1)).mean())
        return pairs, state, metrics

    def weights(self, batch: OwnPairs) -> Tensor:
        """[B]: a pair's share of its group, every group of the step counting the same, equal ones included."""
        return row_mean(batch.compared, batch.weight)

    def losses(self, models: Models, batch: OwnPairs) -> tuple[Tensor, Metrics]:
        """One loss a pair, and DPO's metrics."""
        return DPO(beta=self.beta, label_smoothing=self.label_smoothing).losses(models, batch)
