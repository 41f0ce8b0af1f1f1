"""Reward models from comparisons: the Bradley-Terry likelihood of who was preferred."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from tutelage.algorithms.base import Metrics, Models, State
from tutelage.config import config
from tutelage.data.batch import Pairs, distinct
from tutelage.functional.preference import soft_bradley_terry
from tutelage.functional.weights import row_mean


@config
class BradleyTerry:
    """-log sigmoid(r(chosen) - r(rejected)); ties and soft labels count by their probability."""

    name: Literal["bradley_terry"] = "bradley_terry"
    centering: float = 0.01
    """Weight of (r(chosen) + r(rejected))^2, which fixes the free offset of the scores near 0 (0: off)."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The reward model alone."""
        return ("reward",)

    def initial_state(self) -> State:
        """Nothing is carried from step to step."""
        return State()

    def prepare(self, models: Models, batch: Pairs, state: State) -> tuple[Pairs, State, Mapping[str, float]]:
        """Nothing is held fixed."""
        return batch, state, {}

    def weights(self, batch: Pairs) -> Tensor:
        """[B]: a row counts for its weight (annotator reliability), out of the weights of the whole step."""
        return row_mean(torch.ones(len(batch), dtype=torch.bool, device=batch.weight.device), batch.weight)

    def losses(self, models: Models, batch: Pairs) -> tuple[Tensor, Metrics]:
        """One loss a comparison."""
        assert models.reward is not None
        answers, which = distinct(batch.both())
        chosen, rejected = models.reward.scores(answers)[which].chunk(2)
        loss = soft_bradley_terry(chosen, rejected, batch.preference, batch.margin)
        loss = loss + self.centering * (chosen + rejected) ** 2
        difference = (chosen - rejected).detach()
        return loss, {
            "accuracy/comparison": agreement(difference, batch.preference),
            "reward/margin": difference * torch.sign(batch.preference - 0.5),
        }


def agreement(difference: Tensor, preference: Tensor) -> Tensor:
    """1 where the sign of `difference` agrees with the label, 0 where not, 1/2 where either side is a tie.  [B] -> [B]"""
    return 0.5 + 0.5 * torch.sign(difference.detach()) * torch.sign(preference - 0.5)
