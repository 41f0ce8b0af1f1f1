"""Attention between packed tokens: who sees whom, in as few scores as the layout allows.

A span is a sequence, or a prompt and its answers. Answers see the prompt and themselves: over all pairs of a span's tokens
most scores would be thrown away. Float32 and float64 on a CPU go block by block (models/blocks.py), each over what it sees;
all else (a GPU, half precision, soft-capped scores) through PyTorch's own attention, where it is cheaper with the answers
side by side over the prompt's keys and their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tutelage.models.blocks import Block, attend_blocks, cut

SPLIT = 0.5
"""Answers run side by side where that needs at most this share of the scores: gathering them costs as much as 0.3 of them."""


@dataclass(frozen=True)
class Look:
    """How a layer looks: its scale (default: width ** -0.5), window and soft-cap, None where it has none."""

    scaling: float | None = None
    window: int | None = None
    """A token sees itself and the `window` - 1 tokens before it."""
    cap: float | None = None
    """Scores s become cap * tanh(s / cap) (Gemma 2, arXiv:2408.00118)."""


@dataclass(frozen=True)
class Span:
    """Tokens start..stop on the line: a prompt, then answers to it of the given lengths; without any, one sequence.

    With `parents` they are a tree: answer n goes on from piece `parents[n]` (0: the prompt, n: the n-th answer), as a later
    turn of a dialogue does from an earlier answer.
    """

    start: int
    stop: int
    answers: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    _masks: dict[tuple[int | None, torch.dtype], Tensor | None] = field(default_factory=dict, repr=False, compare=False)
    _blocks: dict[tuple[int | None, torch.dtype], tuple[Block, ...]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def tokens(self) -> int:
        """How many there are."""
        return self.stop - self.start

    @property
    def prompt(self) -> int:
        """How many of them are the prompt's."""
        return self.tokens - sum(self.answers)

    @property
    def split(self) -> bool:
        """Whether the answers run side by side, padded to the longest, rather than in one square of scores."""
        if len(self.answers) < 2 or self.parents:
            return False
        longest = max(self.answers)
        beside = self.prompt**2 + len(self.answers) * longest * (self.prompt + longest)
        return beside <= SPLIT * self.tokens**2

    def attend(self, query: Tensor, key: Tensor, value: Tensor, look: Look) -> Float[Tensor, "1 n H D"]:
        """Attention among the span's own tokens, given as [1, heads, n, D]."""
        if self.split:
            return _side_by_side(self, query, key, value, look)
        mask = self.mask(look.window, query)
        return attend(query, key, value, mask, look).transpose(1, 2)

    def blocks(self, window: int | None, dtype: torch.dtype) -> tuple[Block, ...]:
        """The same as blocks of queries, with the tokens counted on the line. Made once for all layers."""
        place = (window, dtype)
        if place not in self._blocks:
            sight = Sight(self.prompt, self.answers, self.parents)
            blocks = cut((self.prompt, *self.answers), lambda start, stop: sight(start, stop, window), dtype)
            self._blocks[place] = tuple(block.moved(self.start) for block in blocks)
        return self._blocks[place]

    def mask(self, window: int | None, like: Tensor) -> Float[Tensor, "q k"] | None:
        """Additive; of an answer over the prompt and itself where `split`, else of all tokens. None: causal is right."""
        place = (window, like.dtype)
        if place not in self._masks:
            self._masks[place] = self._additive(window, like)
        return self._masks[place]

    def _additive(self, window: int | None, like: Tensor) -> Tensor | None:
        if self.split:
            seen = _causal(max(self.answers), self.prompt + max(self.answers), window)
        elif len(self.answers) > 1:
            seen = group_sight(self.prompt, self.answers, window, self.parents)
        elif window is not None and window < self.tokens:
            seen = _causal(self.tokens, self.tokens, window)
        else:
            return None
        return torch.zeros(seen.shape, dtype=like.dtype).masked_fill_(~seen, float("-inf")).to(like.device)


class Sight:
    """Who sees whom in a prompt and its answers, for some of its tokens at a time: all at once are the square of many."""

    def __init__(self, prompt: int, answers: Sequence[int], parents: Sequence[int] = ()) -> None:
        sizes, first = [prompt, *answers], [0]
        self.line = torch.eye(len(sizes), dtype=torch.bool)  # piece i goes on, at first or second hand, from piece j
        for piece, parent in enumerate(parents or [0] * len(answers), start=1):
            self.line[piece] |= self.line[parent]
            first.append(first[parent] + sizes[parent])
        self.owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        self.place = torch.cat([torch.arange(at, at + size) for at, size in zip(first, sizes, strict=True)])

    def __call__(self, start: int, stop: int, window: int | None = None) -> Bool[Tensor, "q stop"]:
        """Rows start..stop over the columns before `stop`: not later, of the same line, less than `window` places back."""
        order = torch.arange(stop)
        sight = (order <= order[start:, None]) & self.line[self.owner[start:stop]][:, self.owner[:stop]]
        return sight if window is None else sight & (self.place[:stop] > self.place[start:stop, None] - window)


def group_sight(
    prompt: int, answers: Sequence[int], window: int | None = None, parents: Sequence[int] = ()
) -> Bool[Tensor, "n n"]:
    """Row i sees column j: j is not later, of the same answer or what it goes on from, and less than `window` places back."""
    return Sight(prompt, answers, parents)(0, prompt + sum(answers), window)


def _causal(queries: int, keys: int, window: int | None) -> Bool[Tensor, "q k"]:
    """The last `queries` of `keys` tokens, each over those up to itself."""
    place = torch.arange(keys)
    at = place[keys - queries :, None]
    sight = place[None, :] <= at
    return sight if window is None else sight & (place[None, :] > at - window)


def attend(
    query: Float[Tensor, "B H q D"],
    key: Float[Tensor, "B K k D"],
    value: Float[Tensor, "B K k D"],
    mask: Float[Tensor, "q k"] | None,
    look: Look,
) -> Float[Tensor, "B H q D"]:
    """Softmax attention, causal where there is no mask; query heads of one kv head share it."""
    repeats = query.shape[1] // key.shape[1]
    if look.cap is not None:
        return _capped(query, _repeat(key, repeats), _repeat(value, repeats), mask, look)
    if mask is None:
        key, value = _repeat(key, repeats), _repeat(value, repeats)
        return nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=look.scaling)
    shape = query.shape
    folded = query.reshape(shape[0], key.shape[1], repeats * shape[2], shape[3])
    tiled = mask.repeat(repeats, 1)[None, None]
    out = nn.functional.scaled_dot_product_attention(folded, key, value, tiled, scale=look.scaling)
    return out.reshape(shape)


def _capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, look: Look) -> Tensor:
    """The scores have to be seen to be capped; as transformers does, softmax in float32 at least."""
    assert look.cap is not None
    scale = query.shape[-1] ** -0.5 if look.scaling is None else look.scaling
    scores = torch.tanh(query @ key.transpose(-1, -2) * (scale / look.cap)) * look.cap
    if mask is None:
        mask = torch.full(scores.shape[-2:], float("-inf"), dtype=scores.dtype, device=scores.device).triu(1)
    exact = torch.promote_types(scores.dtype, torch.float32)
    return (scores + mask).softmax(-1, dtype=exact).to(query.dtype) @ value


def _repeat(x: Tensor, times: int) -> Tensor:
    return x.repeat_interleave(times, dim=1) if times > 1 else x


def _side_by_side(span: Span, query: Tensor, key: Tensor, value: Tensor, look: Look) -> Float[Tensor, "1 n H D"]:
    """The prompt alone, then all answers as one batch over the prompt's keys and their own."""
    sizes, longest, count = span.answers, max(span.answers), len(span.answers)

    def rows(x: Tensor) -> tuple[Tensor, Tensor]:
        """The prompt's part [1, heads, P, D], and the answers' [G, heads, L, D], padded behind."""
        heads, width = x.shape[1], x.shape[3]
        head, *tails = x.split([span.prompt, *sizes], dim=2)
        padded = [part for tail in tails for part in (tail, x.new_zeros(1, heads, longest - tail.shape[2], width))]
        return head, torch.cat(padded, dim=2).view(heads, count, longest, width).transpose(0, 1)

    (q_head, q), (k_head, k), (v_head, v) = (rows(x) for x in (query, key, value))
    k, v = (torch.cat([head.expand(count, -1, -1, -1), own], dim=2) for head, own in ((k_head, k), (v_head, v)))
    alone = Span(0, span.prompt).attend(q_head, k_head, v_head, look)
    beside = attend(q, k, v, span.mask(look.window, query), look).transpose(1, 2).flatten(0, 1)
    parts = beside.split([n for size in sizes for n in (size, longest - size)])[::2]
    return torch.cat([alone, torch.cat(parts)[None]], dim=1)


def attend_spans(
    spans: Sequence[Span],
    query: Float[Tensor, "1 H N D"],
    key: Float[Tensor, "1 K N D"],
    value: Float[Tensor, "1 K N D"],
    look: Look,
) -> Float[Tensor, "1 N H D"]:
    """Attention inside each span, side by side on the line."""
    if query.device.type == "cpu" and query.dtype in (torch.float32, torch.float64) and look.cap is None:
        scale = query.shape[-1] ** -0.5 if look.scaling is None else look.scaling
        blocks = [block for span in spans for block in span.blocks(look.window, query.dtype)]
        return attend_blocks(blocks, query, key, value, scale)
    return attend_squares(spans, query, key, value, look)


def attend_squares(
    spans: Sequence[Span],
    query: Float[Tensor, "1 H N D"],
    key: Float[Tensor, "1 K N D"],
    value: Float[Tensor, "1 K N D"],
    look: Look,
) -> Float[Tensor, "1 N H D"]:
    """The same through PyTorch's own attention, on any device and in any precision."""
    sizes = [span.tokens for span in spans]
    parts = zip(*(x.split(sizes, dim=2) for x in (query, key, value)), strict=True)
    return torch.cat([span.attend(q, k, v, look) for span, (q, k, v) in zip(spans, parts, strict=True)], dim=1)
