"""Keys and values of the rows being decoded: preallocated once, active rows always the first ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PretrainedConfig

from tutelage.models.packing import Span, attend_spans


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

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Attention within each prompt, and a copy of its keys and values for its rows."""
        for span, rows in zip(self.spans, self.rows, strict=True):
            for buffer, fresh in ((self.cache.keys[layer], key), (self.cache.values[layer], value)):
                buffer[list(rows), :, : span.stop - span.start] = fresh[:, :, span.start : span.stop]
        return attend_spans(self.spans, query, key, value, scaling)


@dataclass(frozen=True)
class Step:
    """One new token for each of the first R rows: it is written at the row's end and sees the whole row."""

    cache: KeyValues
    at: Int[Tensor, "R"]
    hidden: Float[Tensor, "R 1 1 T"] = field(repr=False)

    @classmethod
    def of(cls, cache: KeyValues, rows: int, dtype: torch.dtype) -> Step:
        """The next step of the first `rows` rows."""
        at = cache.lengths[:rows].clone()
        width = int(at.max()) + 1
        seen = torch.arange(width, device=at.device)[None, :] <= at[:, None]
        mask = torch.zeros(rows, width, dtype=dtype, device=at.device).masked_fill_(~seen, float("-inf"))
        return cls(cache, at, mask[:, None, None, :])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Attention of one token a row over that row's own keys; query heads of one kv head share its read."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        rows, width = len(self.at), self.hidden.shape[-1]
        index = torch.arange(rows, device=self.at.device)
        keys[index, :, self.at] = key[0].transpose(0, 1)
        values[index, :, self.at] = value[0].transpose(0, 1)
        heads, kv = query.shape[1], keys.shape[1]
        q = query[0].transpose(0, 1).reshape(rows, kv, heads // kv, query.shape[-1])
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        weights = torch.matmul(q * scale, keys[:rows, :, :width].transpose(-1, -2)) + self.hidden
        out = torch.matmul(nn.functional.softmax(weights, dim=-1), values[:rows, :, :width])
        return out.reshape(1, rows, heads, query.shape[-1])
