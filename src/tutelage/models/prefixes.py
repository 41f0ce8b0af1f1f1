"""A scalar head read after every prefix of an answer, in one forward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.data.batch import Sequences
from tutelage.functional.prefixes import prefix_mask
from tutelage.models.logprobs import HeadedModel, forward_hidden, in_pieces
from tutelage.models.packing import Packed


@dataclass(frozen=True)
class PrefixReader(HeadedModel):
    """A headed model that is asked about every prefix: the prompt, the prompt and a token, ... the whole answer."""

    def prefix_values(self, answers: Sequences) -> Float[Tensor, "B T+1"]:
        """The head after the first t answer tokens in column t, 0 where no prefix counts (see `functional.prefixes`).

        Column t < T is `values`' column t; a row's last one is its `scores`.
        """

        def measure(rows: Sequences) -> tuple[Tensor]:
            hidden, layout = forward_hidden(self.module.backbone, rows, self.plain)
            prefixes = prefix_mask(rows.mask, rows.lengths)
            read = self.module.head(hidden[ends(layout, rows)[prefixes]]).squeeze(-1)
            empty = torch.zeros(prefixes.shape, dtype=read.dtype, device=read.device)
            return (empty.masked_scatter(prefixes, read),)

        return in_pieces(measure, answers, self.tokens_per_pass)[0]


def ends(layout: Packed, rows: Sequences) -> Int[Tensor, "B T+1"]:
    """Where on the line each prefix of a row ends: before its next token, or at the row's last one."""
    wide = torch.nn.functional.pad(layout.before, (0, 1))
    return wide.scatter(1, rows.lengths[:, None], layout.last[:, None])
