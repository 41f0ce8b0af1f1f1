"""Direct preference methods: the policy is its own reward model, r = beta log(pi / pi_ref)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tutelage.algorithms.base import LanguageModel, Metrics, Models, State
from tutelage.algorithms.reward_model import agreement
from tutelage.config import config
from tutelage.data.batch import Pairs, PairsWithReference, distinct
from tutelage.functional.preference import dpo, implicit_reward
from tutelage.functional.weights import keep, row_mean


@config
class DPO:
    """-log sigmoid(beta (h(chosen) - h(rejected))), h = log pi/ref of the whole answer (arXiv:2305.18290, eq. 7)."""

    name: Literal["dpo"] = "dpo"
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull to the reference: larger stays closer."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Probability that a label is wrong (cDPO); ties in the data count as 1/2 by themselves."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The policy, and the reference that its log-probs are compared with."""
        return ("policy", "reference")

    def initial_state(self) -> State:
        """Nothing is carried from step to step."""
        return State()

    def prepare(
        self, models: Models, batch: Pairs, state: State
    ) -> tuple[PairsWithReference, State, Mapping[str, float]]:
        """The reference's log-probs of both answers."""
        assert models.reference is not None
        with torch.no_grad():
            chosen, rejected = sequence_logprobs(models.reference, batch)
        fields = {name: getattr(batch, name) for name in ("chosen", "rejected", "preference", "weight", "margin")}
        return PairsWithReference(**fields, ref_chosen=chosen, ref_rejected=rejected), state, {}

    def weights(self, batch: PairsWithReference) -> Tensor:
        """[B]: a row counts for its weight out of the weights of the whole step."""
        return row_mean(torch.ones(len(batch), dtype=torch.bool, device=batch.weight.device), batch.weight)

    def losses(self, models: Models, batch: PairsWithReference) -> tuple[Tensor, Metrics]:
        """One loss a comparison; the implicit reward, its margin and accuracy as metrics."""
        assert models.policy is not None
        chosen, rejected = sequence_logprobs(models.policy, batch)
        chosen, rejected = chosen - batch.ref_chosen, rejected - batch.ref_rejected
        doubt = 1 - batch.preference
        smoothing = doubt + self.label_smoothing * (1 - 2 * doubt)
        loss = dpo(chosen, rejected, self.beta, smoothing)
        r_chosen, r_rejected = (implicit_reward(h.detach(), self.beta) for h in (chosen, rejected))
        return loss, {
            "accuracy/implicit": agreement(chosen - rejected, batch.preference),
            "reward/chosen": r_chosen,
            "reward/rejected": r_rejected,
            "reward/margin": r_chosen - r_rejected,
        }


def sequence_logprobs(model: LanguageModel, batch: Pairs) -> tuple[Tensor, Tensor]:
    """log p(chosen | prompt) and log p(rejected | prompt), summed over the answers' own tokens, from one forward.  [B], [B]"""
    answers, which = distinct(batch.both())
    chosen, rejected = keep(model.logprobs(answers), answers.mask).sum(-1)[which].chunk(2)
    return chosen, rejected
