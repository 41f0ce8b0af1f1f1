"""KTO: answers judged alone, as desirable or not; what an answer gains is measured from how far the policy has moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tutelage.algorithms.base import Metrics, Models, State, Stateless
from tutelage.algorithms.preference import answer_logprobs
from tutelage.algorithms.reward_model import agreement, row_weights
from tutelage.config import config
from tutelage.data.batch import Sequences
from tutelage.data.labelled import LabelledWithPartner, LabelledWithReference
from tutelage.functional.preference import implicit_reward, kto


@config
class KTO(Stateless):
    """lambda (1 - sigmoid(+-beta (h - z0))): + for desirable answers, - for undesirable ones (arXiv:2402.01306)."""

    name: Literal["kto"] = "kto"
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull to the reference: larger saturates sooner, so that the policy stays closer."""
    desirable_weight: Annotated[float, Field(gt=0)] = 1.0
    """lambda_D: what a desirable answer counts for. With unequal numbers, make lambda_D n_D / (lambda_U n_U) 1 to 4/3."""
    undesirable_weight: Annotated[float, Field(gt=0)] = 1.0
    """lambda_U: what an undesirable answer counts for."""

    needs = ("policy", "reference")

    def prepare(
        self, models: Models, batch: LabelledWithPartner, state: State
    ) -> tuple[LabelledWithReference, State, Mapping[str, float]]:
        """The reference's log-probs, and z0 = max(0, mean h of the mismatched answers) over the whole batch."""
        assert models.policy is not None
        assert models.reference is not None
        with torch.no_grad():
            ref = answer_logprobs(models.reference, batch.answers)
            # Both models read the same rows in the same layout: before the first update z0 is exactly 0
            other = answer_logprobs(models.policy, batch.mismatched) - answer_logprobs(
                models.reference, batch.mismatched
            )
        weights, desirable = self.weights(batch), batch.labels > 0.5
        z0 = (weights * other).sum().clamp(min=0)
        share = torch.where(desirable, (weights * desirable).sum(), (weights * ~desirable).sum())
        fields = {name: getattr(batch, name) for name in ("answers", "labels", "weight")}
        prepared = LabelledWithReference(**fields, ref_logprobs=ref, z0=z0.expand_as(ref), share=share)
        return prepared, state, {"kto/z0": float(z0)}

    def weights(self, batch: LabelledWithPartner | LabelledWithReference) -> Tensor:
        """[B]: a row counts for its weight out of the weights of the whole step."""
        return row_weights(batch.weight)

    def losses(self, models: Models, batch: LabelledWithReference) -> tuple[Tensor, Metrics]:
        """One loss a row. Rewards are means over the rows of one kind (0 where the step has none), the margin their difference."""
        assert models.policy is not None
        h = answer_logprobs(models.policy, batch.answers) - batch.ref_logprobs
        desirable = batch.labels > 0.5
        loss = kto(
            h,
            desirable,
            batch.z0,
            self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )
        # Divided by its kind's share, a row counts so that the mean over the step is the mean over that kind
        rewards = implicit_reward(h.detach(), self.beta) / batch.share
        return loss, {
            "accuracy/implicit": agreement(h - batch.z0, batch.labels),
            "reward/desirable": rewards * desirable,
            "reward/undesirable": rewards * ~desirable,
            "reward/margin": torch.where(desirable, rewards, -rewards),
        }

    def implicit(self, log_ratio: Tensor, answers: Sequences) -> Tensor:
        """The reward of answers whose log pi/ref is given.  [B] -> [B]"""
        return implicit_reward(log_ratio, self.beta)
