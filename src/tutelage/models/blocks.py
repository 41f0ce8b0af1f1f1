"""Attention on a processor, block by block: as matrix products of scores that fit in a cache and are not kept.

A block is some consecutive queries of a span and only the keys that any of them sees: a later key, another answer or
what has left the window costs nothing. On an AMD CPU this took 0.4 to 0.65 of the time of `scaled_dot_product_attention`,
forward and backward, up to some hundred tokens, and as much from 1,000 on: that multiplies with MKL whatever library was
chosen (models/gemm.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

BLOCK = 192
"""Queries of a block: fewer make slow products, more see keys that most of them mask. 128 to 256 are about equal."""
CELLS = 2**20
"""Scores at a time, where one kv head has that few: kv heads go in slices. 4 MB stay in a cache between the passes."""


@dataclass(frozen=True)
class Block:
    """Queries start..stop of a line, and the pieces of the line that hold the keys they see, in order."""

    start: int
    stop: int
    keys: tuple[tuple[int, int], ...]
    mask: Float[Tensor, "q e"]
    """Additive, for the last e of the keys; those before are seen by all the queries."""

    def moved(self, by: int) -> Block:
        """The same, further down a line."""
        keys = tuple((start + by, stop + by) for start, stop in self.keys)
        return Block(self.start + by, self.stop + by, keys, self.mask)

    def gather(self, x: Float[Tensor, "K N D"]) -> Float[Tensor, "K k D"]:
        """What the queries see, side by side."""
        parts = [x[:, start:stop] for start, stop in self.keys]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def add(self, grad: Float[Tensor, "K N D"], part: Float[Tensor, "K k D"], heads: slice) -> None:
        """The gradient of what was gathered, for these kv heads, into the line's."""
        at = 0
        for start, stop in self.keys:
            grad[heads, start:stop] += part[:, at : at + stop - start]
            at += stop - start


def cut(
    sizes: Sequence[int], sight: Callable[[int, int], Bool[Tensor, "q n"]], dtype: torch.dtype
) -> tuple[Block, ...]:
    """Blocks of a span of pieces of these sizes: short ones together, long ones in equal parts.

    `sight(start, stop)` says for these queries which of the tokens before `stop` they see.
    """
    edges, at = [0], 0
    for size in sizes:
        if edges[-1] < at and at + size - edges[-1] > BLOCK:
            edges.append(at)
        if size > BLOCK:
            parts = -(-size // BLOCK)
            edges += [at + size * part // parts for part in range(1, parts + 1)]
        at += size
    edges += [at] if edges[-1] < at else []
    return tuple(_block(start, stop, sight(start, stop), dtype) for start, stop in pairwise(edges))


def _block(start: int, stop: int, seen: Bool[Tensor, "q n"], dtype: torch.dtype) -> Block:
    columns = seen.any(0).nonzero()[:, 0]
    breaks = (columns.diff() != 1).nonzero()[:, 0] + 1
    runs = columns.tensor_split(breaks.tolist())
    seen = seen[:, columns]
    whole = int(seen.all(0).int().cumprod(0).sum())  # the leading keys that every query sees need no mask
    mask = torch.zeros(seen[:, whole:].shape, dtype=dtype).masked_fill_(~seen[:, whole:], float("-inf"))
    return Block(start, stop, tuple((int(run[0]), int(run[-1]) + 1) for run in runs), mask)


def attend_blocks(
    blocks: Sequence[Block],
    query: Float[Tensor, "1 H N D"],
    key: Float[Tensor, "1 K N D"],
    value: Float[Tensor, "1 K N D"],
    scale: float,
) -> Float[Tensor, "1 N H D"]:
    """Softmax attention of the blocks' queries over their keys; query heads of one kv head share it."""
    return _Blocks.apply(query * scale, key, value, blocks)  # type: ignore[return-value]


class _Blocks(torch.autograd.Function):
    """Only scaled queries, keys and values are kept for the backward pass, which computes the scores again."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block]) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(query, key, value)
        ctx.blocks = blocks
        q, k, v = _heads(query, key, value)
        out = q.new_empty(q.shape[2], *q.shape[:2], v.shape[2])
        rows = out.permute(1, 2, 0, 3)  # [K, H / K, N, D]: what is written here lies token by token
        for block in blocks:
            size = block.stop - block.start
            folded = _fold(q, block)
            keys, values = block.gather(k), block.gather(v)
            for heads in _slices(folded, keys):
                seen = torch.bmm(_probabilities(folded[heads], keys[heads], block.mask), values[heads])
                rows[heads, :, block.start : block.stop] = seen.unflatten(1, (-1, size))
        return out.flatten(1, 2)[None]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v = _heads(*ctx.saved_tensors)
        g = grad[0].unflatten(1, q.shape[:2]).permute(1, 2, 0, 3)
        dq, dk, dv = q.new_empty(q.shape[2], *q.shape[:2], q.shape[3]), torch.zeros_like(k), torch.zeros_like(v)
        rows = dq.permute(1, 2, 0, 3)
        for block in ctx.blocks:
            size = block.stop - block.start
            folded, behind = _fold(q, block), _fold(g, block)
            keys, values = block.gather(k), block.gather(v)
            for heads in _slices(folded, keys):
                p = _probabilities(folded[heads], keys[heads], block.mask)
                block.add(dv, torch.bmm(p.transpose(1, 2), behind[heads]), heads)
                ds = torch.bmm(behind[heads], values[heads].transpose(1, 2))
                ds = torch._softmax_backward_data(ds, p, -1, p.dtype)
                block.add(dk, torch.bmm(ds.transpose(1, 2), folded[heads]), heads)
                rows[heads, :, block.start : block.stop] = torch.bmm(ds, keys[heads]).unflatten(1, (-1, size))
        return dq.flatten(1, 2).transpose(0, 1)[None], dk[None], dv[None], None


def _heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [K, H / K, N, D] by the kv head they share; keys and values [K, N, D] in one piece, read by many blocks."""
    return query[0].unflatten(0, (key.shape[1], -1)), key[0].contiguous(), value[0].contiguous()


def _fold(x: Float[Tensor, "K h N D"], block: Block) -> Float[Tensor, "K h*q D"]:
    """A copy of the block's rows, those of all query heads of a kv head below each other."""
    return x[:, :, block.start : block.stop].clone(memory_format=torch.contiguous_format).flatten(1, 2)


def _slices(folded: Tensor, keys: Tensor) -> list[slice]:
    """The kv heads, as many at a time as have `CELLS` scores together, at least one."""
    step = max(1, CELLS // (folded.shape[1] * keys.shape[1]))
    return [slice(start, start + step) for start in range(0, keys.shape[0], step)]


def _probabilities(
    folded: Float[Tensor, "K h*q D"], keys: Float[Tensor, "K k D"], mask: Float[Tensor, "q e"]
) -> Float[Tensor, "K h*q k"]:
    scores = torch.bmm(folded, keys.transpose(1, 2))
    if mask.shape[1]:
        scores.unflatten(1, (-1, len(mask)))[..., -mask.shape[1] :] += mask
    return torch.softmax(scores, -1, out=scores)
