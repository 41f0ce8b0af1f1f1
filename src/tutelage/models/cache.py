"""Keys and values of the rows being decoded: preallocated once, active rows always the first ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PretrainedConfig

from tutelage.models.attention import Look, Span, attend_spans
from tutelage.models.gemm import multiplying


@dataclass
class KeyValues:
    """[layers][rows, kv heads, tokens, D] for keys and values, and how many tokens each row has."""

    keys: list[Float[Tensor, "R K T D"]]
    values: list[Float[Tensor, "R K T D"]]
    lengths: Int[Tensor, "R"]

    @classmethod
    def allocate(cls, config: PretrainedConfig, rows: int, tokens: int, like: Tensor) -> KeyValues:
        """Room for `rows` rows of `tokens` tokens in the dtype and on the device of `like`."""
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (rows, heads, tokens, width)
        # zeros, not empty: a hidden cell has weight 0, and 0 times whatever NaN lay in memory is NaN
        buffers = [[like.new_zeros(shape) for _ in range(config.num_hidden_layers)] for _ in range(2)]
        return cls(buffers[0], buffers[1], torch.zeros(rows, dtype=torch.long, device=like.device))

    def move(self, source: int, target: int) -> None:
        """Row `source` takes the place of row `target` (a finished one): active rows stay side by side."""
        length = int(self.lengths[source])
        for buffer in (*self.keys, *self.values):
            buffer[target, :, :length] = buffer[source, :, :length]
        self.lengths[target] = self.lengths[source]


@dataclass(frozen=True)
class Prefill:
    """A line of prompts, each computed once; its keys and values go to every row that answers it."""

    spans: Sequence[Span]
    rows: Sequence[Sequence[int]]
    cache: KeyValues

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, look: Look) -> Tensor:
        """Attention within each prompt, and a copy of its keys and values for its rows."""
        for span, rows in zip(self.spans, self.rows, strict=True):
            for buffer, fresh in ((self.cache.keys[layer], key), (self.cache.values[layer], value)):
                buffer[list(rows), :, : span.tokens] = fresh[:, :, span.start : span.stop]
        return attend_spans(self.spans, query, key, value, look)


@dataclass(frozen=True)
class Step:
    """One new token for each of the first R rows: it is written at the row's end and sees the whole row."""

    cache: KeyValues
    at: Int[Tensor, "R"]
    """Where each row's new token goes."""
    width: int
    """Cells that any row sees."""
    cells: Int[Tensor, "R*K"] = field(repr=False)
    """Where the new keys go in the cache, seen as one list of cells."""
    _masks: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, cache: KeyValues, rows: int) -> Step:
        """The next step of the first `rows` rows."""
        at = cache.lengths[:rows].clone()
        _, kv, room, _ = cache.keys[0].shape
        cells = torch.arange(rows * kv, device=at.device) * room + at.repeat_interleave(kv)
        return cls(cache, at, int(at.max()) + 1, cells)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, look: Look) -> Tensor:
        """Attention of one token a row over that row's own keys; query heads of one kv head share its read."""
        rows, heads, width = len(self.at), query.shape[1], query.shape[3]
        keys, values = self._grown(self.cache.keys[layer], key), self._grown(self.cache.values[layer], value)
        kv = key.shape[1]
        folded = query[0].transpose(0, 1).reshape(rows * kv, heads // kv, width)
        scale = width**-0.5 if look.scaling is None else look.scaling
        mask = self.mask(look.window, folded)
        with multiplying("default"):  # many tiny products: oneDNN takes twice as long to set them up
            # keys times query is 1.7 times as fast as query times keys here: few queries share the many keys of a row
            scores = torch.bmm(keys, (folded * scale).transpose(1, 2)).transpose(1, 2)
            if look.cap is not None:
                scores = scores.div_(look.cap).tanh_().mul_(look.cap)
            seen = torch.add(scores, mask, out=folded.new_empty(scores.shape))
            out = torch.bmm(nn.functional.softmax(seen, dim=-1), values)
        return out.view(1, rows, heads, width)

    def mask(self, window: int | None, like: Tensor) -> Float[Tensor, "R*K 1 T"]:
        """Additive: what a row has not written yet, and what has left its window."""
        place = (window, like.dtype)
        if place not in self._masks:
            cells = torch.arange(self.width, device=self.at.device)[None, :]
            seen = cells <= self.at[:, None]
            if window is not None:
                seen &= cells > self.at[:, None] - window
            mask = torch.zeros(seen.shape, dtype=like.dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
            self._masks[place] = mask.repeat_interleave(like.shape[0] // len(self.at), dim=0)[:, None]
        return self._masks[place]

    def _grown(self, buffer: Float[Tensor, "R K T D"], fresh: Float[Tensor, "1 K R D"]) -> Float[Tensor, "R*K t D"]:
        """The rows with their new cell written, cut to the cells that are seen."""
        rows, kv, room, width = buffer.shape
        buffer.view(-1, width).index_copy_(0, self.cells, fresh[0].transpose(0, 1).reshape(-1, width))
        return buffer.view(rows * kv, room, width)[: len(self.cells), : self.width]
