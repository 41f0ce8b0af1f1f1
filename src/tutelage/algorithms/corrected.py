"""Any policy-gradient method on answers that were drawn in other arithmetic than it trains in: importance weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.algorithms.base import Algorithm, Metrics, Models
from tutelage.data.batch import Rollouts, Rows, Sequences
from tutelage.functional.policy import importance_weight
from tutelage.functional.weights import keep


@dataclass(frozen=True)
class CorrectedRows(Rows):
    """What a method holds fixed, and what each token of each row counts for besides."""

    rows: Rows
    weight: Float[Tensor, "B T"]

    def sequences(self) -> tuple[Sequences, ...]:
        """The method's own."""
        return self.rows.sequences()


@dataclass(frozen=True)
class Corrected:
    """`method` with each loss times min(pi_trainer / pi_sampler, cap), detached (Yao et al. 2025, truncated importance sampling).

    Both are the policy of before the step: the sampler's log-probs in its own arithmetic (int8, bfloat16), the trainer's from
    one pass without gradient. Everything else (ratios, clips, KL) is from the trainer's log-probs, as if it had sampled.
    `token`: the ratio of each token, little variance, blind to what came before it. `sequence`: that of the whole answer;
    with cap = inf the expected gradient is then exactly the method's own.
    """

    method: Algorithm
    cap: float = 2.0
    level: Literal["token", "sequence"] = "token"

    @property
    def needs(self) -> tuple[str, ...]:
        """The method's, and the policy."""
        return tuple(dict.fromkeys((*self.method.needs, "policy")))

    @property
    def passes(self) -> int:
        """The method's."""
        return getattr(self.method, "passes", 1)

    @property
    def minibatches(self) -> int:
        """The method's."""
        return getattr(self.method, "minibatches", 1)

    def initial_state(self) -> Any:
        """The method's."""
        return self.method.initial_state()

    def prepare(self, models: Models, batch: Rollouts, state: Any) -> tuple[CorrectedRows, Any, Mapping[str, float]]:
        """The method's own on the trainer's log-probs, the weights, and how far the sampler is off."""
        assert models.policy is not None
        mask = batch.answers.mask
        with torch.no_grad():
            trainer = keep(models.policy.logprobs(batch.answers), mask)
        sampler = keep(batch.sampler_logprobs.to(trainer.dtype), mask)
        rows, state, metrics = self.method.prepare(models, replace(batch, sampler_logprobs=trainer), state)
        assert len(rows) == len(batch), "a method that leaves rows out cannot be corrected row by row"
        if self.level == "sequence":
            both = (x.sum(1, keepdim=True).expand(mask.shape) for x in (trainer, sampler))
        else:
            both = (trainer, sampler)
        weight = importance_weight(*both, cap=self.cap)
        return CorrectedRows(rows, weight), state, {**metrics, **mismatch(trainer, sampler, mask, weight)}

    def weights(self, batch: CorrectedRows) -> Tensor:
        """The method's."""
        return self.method.weights(batch.rows)

    def losses(self, models: Models, batch: CorrectedRows) -> tuple[Tensor, Metrics]:
        """The method's, each times its weight; metrics as they are."""
        losses, metrics = self.method.losses(models, batch.rows)
        assert losses.shape == batch.weight.shape, "a correction is for losses a token"
        return losses * batch.weight, metrics


def mismatch(
    trainer: Float[Tensor, "B T"], sampler: Float[Tensor, "B T"], mask: Tensor, weight: Float[Tensor, "B T"]
) -> dict[str, float]:
    """How far the sampler is from the trainer, over all sampled tokens.

    Mean |log ratio|, KL(sampler, trainer) a token by k1, the largest ratio, and the effective sample size of the weights as a
    share of the tokens, (sum w)^2 / (n sum w^2): 1 where all count the same.
    """
    apart, counts = (trainer - sampler)[mask], weight[mask].double()
    return {
        "rollout/logprob_gap": float(apart.abs().mean()),
        "rollout/kl": float(-apart.mean()),
        "rollout/max_ratio": float(apart.max().exp()),
        "rollout/effective_share": float(counts.sum() ** 2 / (counts.square().sum() * len(counts))),
    }
