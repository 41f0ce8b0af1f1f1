"""Sequences in, [B, T] numbers out: log-probs, entropies, values and scores, aligned once for the whole house.

Column t speaks of answer token t given everything before it; the shift by one happens in `packing.pack` and nowhere else.
The head is applied only where a label is, in fp32, in chunks whose logits are never kept: memory does not grow with
vocabulary times length.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tutelage.data.batch import Sequences
from tutelage.data.sampled import Sampled
from tutelage.models.label_head import Temperature, exact, label_logprobs
from tutelage.models.packing import backbone_of, micro_batches, pack, packed_hidden, padded_hidden, unsupported


def states_logprobs(
    model: nn.Module, states: Float[Tensor, "N D"], answers: Sequences, temperature: float
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """log p and entropy of the N trained tokens of `answers`, each at the temperature it was drawn at, else at `temperature`."""
    return label_logprobs(
        model, states, answers.tokens[answers.mask], drawn_at(answers, temperature, exact(states[:0]))
    )


def drawn_at(answers: Sequences, default: float, like: Tensor) -> Temperature:
    """The temperature of each trained token of `Sampled` rows, in the precision of `like`; else `default` for all."""
    if not isinstance(answers, Sampled):
        return default
    return like.new_tensor(answers.temperature)[:, None].expand(answers.mask.shape)[answers.mask]


def forward_hidden(model: nn.Module, batch: Sequences, plain: bool = False) -> tuple[Float[Tensor, "N D"], Any]:
    """Hidden states of a batch and where each row reads them: packed where the model can, padded rows where it cannot."""
    backbone = backbone_of(model)
    if plain or unsupported(backbone.config, backbone):
        return padded_hidden(backbone, batch)
    packed = pack(batch)
    return packed_hidden(backbone, packed), packed


@dataclass(frozen=True)
class CausalModel:
    """A Hugging Face causal model as the methods see it.

    `temperature` is the one answers are sampled at: training divides by it too (`Sampled` rows bring their own). `context`
    enters for each forward (a LoRA reference is the same module with its adapter off). Without gradient a whole batch is
    cut to `tokens_per_pass`.
    """

    module: nn.Module
    temperature: float = 1.0
    context: Callable[[nn.Module], Any] | None = None
    tokens_per_pass: int = 2048
    plain: bool = False

    def logprobs(self, answers: Sequences) -> Float[Tensor, "B T"]:
        """log p(token t | all before it); 0 where `mask` is False."""
        return self.logprobs_and_entropy(answers)[0]

    def logprobs_and_entropy(self, answers: Sequences) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """The same and the entropy of the distribution each token was drawn from."""
        logp, entropy = in_pieces(self._measure, answers, self.tokens_per_pass)
        return logp, entropy

    def _measure(self, answers: Sequences) -> tuple[Tensor, Tensor]:
        with self.context(self.module) if self.context else nullcontext():
            hidden, layout = forward_hidden(self.module, answers, self.plain)
            states = hidden[layout.before[answers.mask]]
            logp, entropy = states_logprobs(self.module, states, answers, self.temperature)
        empty = torch.zeros(answers.tokens.shape, dtype=logp.dtype, device=logp.device)
        return empty.masked_scatter(answers.mask, logp), empty.masked_scatter(answers.mask, entropy)


@dataclass(frozen=True)
class HeadedModel:
    """A backbone with a head hidden -> 1, read before each token (values) or at the last one (scores)."""

    module: Any
    """A module with a `backbone` and a `head`, such as `models.heads.ScalarModel`."""
    tokens_per_pass: int = 2048
    plain: bool = False

    def values(self, answers: Sequences) -> Float[Tensor, "B T"]:
        """V in the state that answer token t is chosen in; 0 where `mask` is False."""

        def measure(rows: Sequences) -> tuple[Tensor]:
            hidden, layout = forward_hidden(self.module.backbone, rows, self.plain)
            read = self.module.head(hidden[layout.before[rows.mask]]).squeeze(-1)
            return (
                torch.zeros(rows.tokens.shape, dtype=read.dtype, device=read.device).masked_scatter(rows.mask, read),
            )

        return in_pieces(measure, answers, self.tokens_per_pass)[0]

    def scores(self, answers: Sequences) -> Float[Tensor, "B"]:
        """One score a row, at its last real token."""
        return in_pieces(lambda rows: (self.module.head(self._last(rows)).squeeze(-1),), answers, self.tokens_per_pass)[
            0
        ]

    def features(self, answers: Sequences) -> Float[Tensor, "B D"]:
        """What the head reads to score a row: the hidden state of its last real token."""
        return in_pieces(lambda rows: (self._last(rows),), answers, self.tokens_per_pass)[0]

    def _last(self, rows: Sequences) -> Float[Tensor, "B D"]:
        hidden, layout = forward_hidden(self.module.backbone, rows, self.plain)
        return hidden[layout.last]


def in_pieces(measure: Callable[[Sequences], tuple[Tensor, ...]], batch: Sequences, tokens: int) -> tuple[Tensor, ...]:
    """With gradient, the batch as it is (the loop has cut it); without, in pieces of about `tokens` packed tokens."""
    if torch.is_grad_enabled() or len(batch) == 0:
        return measure(batch)
    pieces = micro_batches(batch, tokens)
    results = [measure(batch[piece]) for piece in pieces]
    order = torch.argsort(torch.cat(pieces)).to(batch.tokens.device)
    return tuple(torch.cat(column)[order] for column in zip(*results, strict=True))
