"""Supervised fine-tuning: maximise log p(answer | prompt) on the assistant's tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tutelage.algorithms.base import Metrics, Models, Unprepared
from tutelage.config import config
from tutelage.data.batch import Sequences
from tutelage.functional.weights import keep, sequence_mean, token_mean


@config
class SFT(Unprepared):
    """Imitation of demonstrations: minimise -log p(token) over the assistant's own tokens."""

    name: Literal["sft"] = "sft"
    average: Literal["token", "sequence"] = "token"
    """`token`: every trained token of the step counts the same; `sequence`: every example does (1/length inside it)."""

    needs = ("policy",)

    def weights(self, batch: Sequences) -> Tensor:
        """[B, T]."""
        return token_mean(batch.mask) if self.average == "token" else sequence_mean(batch.mask)

    def losses(self, models: Models, batch: Sequences) -> tuple[Tensor, Metrics]:
        """-log p of each trained token; its exponential mean is the perplexity."""
        assert models.policy is not None
        logp = keep(models.policy.logprobs(batch), batch.mask)
        return -logp, {"accuracy/likely": (logp.detach() > _HALF).to(logp.dtype)}


_HALF = float(torch.tensor(0.5).log())
"""A token counts as `likely` where the policy gives it more than half of the probability (then greedy says it too)."""
