"""The whole next-token distribution at every trained token, a few hundred tokens at a time: never a [B, T, V] tensor."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tutelage.data.batch import Sequences
from tutelage.models.label_head import at_rows, exact, head_of
from tutelage.models.logprobs import CausalModel, drawn_at, forward_hidden, in_pieces

PIECE = 128
"""Tokens whose logits exist at the same time, and several tensors like them: 128 x 49,152 x 4 B = 24 MiB each."""
Readout = Callable[[slice], Float[Tensor, "n V"]]
"""A piece of the N trained tokens (in the order of `mask`) -> their logits at the temperature they were drawn at."""
Measure = Callable[[Float[Tensor, "n V"], Float[Tensor, "n V"]], tuple[Float[Tensor, "n"], ...]]
"""Log-probabilities of a teacher and of a student over the vocabulary -> numbers a token."""


@dataclass(frozen=True)
class DistributionModel(CausalModel):
    """A causal model that can be compared with another over the whole vocabulary."""

    @staticmethod
    def of(model: CausalModel) -> DistributionModel:
        """The same model with these abilities."""
        return DistributionModel(**{f.name: getattr(model, f.name) for f in fields(CausalModel)})

    def states(self, answers: Sequences) -> Float[Tensor, "B T D"]:
        """The hidden state that answer token t is chosen in; 0 where `mask` is False."""

        def measure(rows: Sequences) -> tuple[Tensor]:
            with self.context(self.module) if self.context else nullcontext():
                hidden, layout = forward_hidden(self.module, rows, self.plain)
            read = hidden[layout.before[rows.mask]]
            return (spread(read, rows.mask),)

        return in_pieces(measure, answers, self.tokens_per_pass)[0]

    def readout(self, answers: Sequences, states: Float[Tensor, "B T D"]) -> Readout:
        """Logits from `states`, in fp32 (float64 stays), as the model itself makes them."""
        at_mask = states[answers.mask]
        temperature = drawn_at(answers, self.temperature, exact(at_mask[:0]))
        head = head_of(self.module)
        if type(head) is nn.Linear and head.bias is None:
            weight = exact(head.weight)
            head = lambda hidden: exact(hidden) @ weight.T  # noqa: E731

        def read(piece: slice) -> Tensor:
            logits = exact(head(at_mask[piece]))
            return logits / at_rows(temperature, piece)

        return read


def spread(values: Float[Tensor, "N *D"], mask: Tensor) -> Float[Tensor, "B T *D"]:
    """One entry a trained token -> [B, T, ...], 0 where `mask` is False."""
    empty = values.new_zeros(*mask.shape, *values.shape[1:])
    return empty.masked_scatter(mask.view(*mask.shape, *(1,) * (values.ndim - 1)), values)


def compare_distributions(
    teacher: Readout, student: Readout, count: int, measure: Measure
) -> tuple[Float[Tensor, "N"], ...]:
    """`measure` at each of `count` tokens, piece by piece; a piece's logits are made anew in backward.

    Where one vocabulary has more rows than the other (embeddings padded to a round size), the ids that only one has are
    left out of both. The caller makes sure that equal ids are equal tokens. `count` is at least 1.
    """

    def compared(piece: slice) -> tuple[Tensor, ...]:
        p, q = teacher(piece), student(piece)
        shared = min(p.shape[-1], q.shape[-1])
        return measure(p[:, :shared].log_softmax(-1), q[:, :shared].log_softmax(-1))

    pieces = [slice(at, min(at + PIECE, count)) for at in range(0, count, PIECE)]
    parts = [checkpoint(compared, piece, use_reentrant=False) for piece in pieces]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
