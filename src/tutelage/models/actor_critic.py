"""Policy and value on one trunk: the language-model head and a scalar head read the same hidden states, in one forward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.data.batch import Sequences
from tutelage.models.logprobs import CausalModel, HeadedModel, forward_hidden, in_pieces, states_logprobs


@dataclass(frozen=True, kw_only=True)
class ActorCriticModel(CausalModel):
    """A causal model, and a value read from the same trunk by the head of `value` (whose backbone is `module`).

    Gradients of the value loss reach the trunk, and so the policy: that is what sharing means.
    """

    value: HeadedModel

    def values(self, answers: Sequences) -> Float[Tensor, "B T"]:
        """V in the state that answer token t is chosen in; 0 where `mask` is False. Computes no logits."""
        return self.value.values(answers)

    def scores(self, answers: Sequences) -> Float[Tensor, "B"]:
        """V after the last real token of each row."""
        return self.value.scores(answers)

    def logprobs_entropy_values(
        self, answers: Sequences
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """log p, entropy and V of each token that the policy chose, in one forward; 0 where `mask` is False."""
        logp, entropy, values = in_pieces(self._measure_all, answers, self.tokens_per_pass)
        return logp, entropy, values

    def _measure_all(self, rows: Sequences) -> tuple[Tensor, ...]:
        hidden, layout = forward_hidden(self.module, rows, self.plain)
        states = hidden[layout.before[rows.mask]]
        values = self.value.module.head(states).squeeze(-1)
        read = (*states_logprobs(self.module, states, rows, self.temperature), values)
        return tuple(
            torch.zeros(rows.tokens.shape, dtype=x.dtype, device=x.device).masked_scatter(rows.mask, x) for x in read
        )
