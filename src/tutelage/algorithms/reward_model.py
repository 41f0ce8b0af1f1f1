"""Reward models from comparisons: the Bradley-Terry likelihood of who was preferred, and Davidson's with ties."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tutelage.algorithms.base import Metrics, Models, Unprepared
from tutelage.config import config
from tutelage.data.batch import Pairs, distinct
from tutelage.functional.preference import davidson, davidson_log_probs, soft_bradley_terry
from tutelage.functional.weights import row_mean


@config
class BradleyTerry(Unprepared):
    """-log sigmoid(r(chosen) - r(rejected)); ties and soft labels count by their probability."""

    name: Literal["bradley_terry"] = "bradley_terry"
    centering: Annotated[float, Field(ge=0)] = 0.01
    """Weight of (r(chosen) + r(rejected))^2, which fixes the free offset of the scores near 0 (0: off)."""
    nu: Annotated[float, Field(gt=0)] | None = None
    """A tie is a soft label of 1/2; with a number, an outcome of Davidson's model: equals tie with nu / (2 + nu)."""

    needs = ("reward",)

    def weights(self, batch: Pairs) -> Tensor:
        """[B]: a row counts for its weight (annotator reliability, its share of a ranking), out of those of the whole step."""
        return row_weights(batch.weight)

    def losses(self, models: Models, batch: Pairs) -> tuple[Tensor, Metrics]:
        """One loss a comparison; an answer that stands in several of them is scored once."""
        assert models.reward is not None
        answers, which = distinct(batch.both())
        chosen, rejected = models.reward.scores(answers)[which].chunk(2)
        difference = (chosen - rejected).detach()
        metrics = {
            "accuracy/comparison": agreement(difference, batch.preference),
            "reward/margin": difference * torch.sign(batch.preference - 0.5),
        }
        if self.nu is None:
            loss = soft_bradley_terry(chosen, rejected, batch.preference, batch.margin)
        else:
            loss = davidson(chosen, rejected, batch.preference, self.nu, batch.margin)
            metrics |= tie_metrics(difference - batch.margin, batch.preference, self.nu)
        return loss + self.centering * (chosen + rejected) ** 2, metrics


def row_weights(weight: Tensor) -> Tensor:
    """Each row's weight out of the weights of the whole step.  [B] -> [B]"""
    return row_mean(torch.ones(len(weight), dtype=torch.bool, device=weight.device), weight)


def agreement(difference: Tensor, preference: Tensor) -> Tensor:
    """1 where the sign of `difference` agrees with the label, 0 where not, 1/2 where either side is a tie.  [B] -> [B]"""
    return 0.5 + 0.5 * torch.sign(difference.detach()) * torch.sign(preference - 0.5)


def tie_metrics(difference: Tensor, preference: Tensor, nu: float) -> dict[str, Tensor]:
    """The share of ties in the data, and that which Davidson's model expects: equal where nu fits best.  each [B]"""
    expected = davidson_log_probs(difference.detach(), nu)[..., 2].exp()
    return {"ties/observed": (preference == 0.5).to(expected.dtype), "ties/expected": expected}
