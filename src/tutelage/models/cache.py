"""Keys and values of the rows being decoded: a prompt's once for all its answers, and each answer's own, preallocated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PretrainedConfig

from tutelage.models import fused
from tutelage.models.asking import Asking, whole
from tutelage.models.attention import Look, Span, attend_spans
from tutelage.models.gemm import multiplying
from tutelage.models.row_groups import Groups

Buffer = Float[Tensor, "n K T D"]
BUFFERS = ("keys", "values", "prompt_keys", "prompt_values")
"""The fields of `KeyValues` that hold one buffer a layer."""


@dataclass(frozen=True)
class Room:
    """What is decoded at once: rows of at most `tokens` tokens each, which answer at most `prompts` prompts."""

    rows: int
    tokens: int
    prompts: int
    prompt_tokens: int


@dataclass
class KeyValues:
    """Active rows are always the first ones, and so are the prompts that they answer: a last one moves into a gap."""

    keys: list[Buffer]
    """A layer's keys of the rows' own tokens."""
    values: list[Buffer]
    prompt_keys: list[Buffer]
    prompt_values: list[Buffer]
    lengths: Int[Tensor, "R"]
    """How many tokens each row has said."""
    prompt_lengths: Int[Tensor, "P"]
    held: list[int] = field(default_factory=list)
    """Of each active row, where its prompt is."""
    asked: list[int] = field(default_factory=list)
    """The prompts that are kept, by the caller's numbers."""
    _groups: Groups | None = field(default=None, repr=False)

    @classmethod
    def allocate(cls, config: PretrainedConfig, room: Room, like: Tensor) -> KeyValues:
        """Empty, in the dtype and on the device of `like`."""
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

        def buffers(count: int, tokens: int) -> list[Buffer]:
            # zeros, not empty: a hidden cell has weight 0, and 0 times whatever NaN lay in memory is NaN
            return [like.new_zeros(count, heads, tokens, width) for _ in range(config.num_hidden_layers)]

        own, asked = (room.rows, whole(room.tokens)), (room.prompts, whole(room.prompt_tokens))
        said, read = (torch.zeros(count, dtype=torch.long, device=like.device) for count in (room.rows, room.prompts))
        return cls(buffers(*own), buffers(*own), buffers(*asked), buffers(*asked), said, read)

    def beside(self, other: KeyValues) -> KeyValues:
        """This one's layers and then `other`'s, over the same rows."""
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in BUFFERS})

    def layers(self, which: slice) -> KeyValues:
        """Some of the layers, to read and write; rows come and go in the whole."""
        return replace(self, **{name: getattr(self, name)[which] for name in BUFFERS})

    def groups(self) -> Groups:
        """Who answers what, of the active rows."""
        if self._groups is None:
            self._groups = Groups.of(self.held, self.lengths.device)
        return self._groups

    def admit(self, prompt: int, tokens: int, answers: int) -> int:
        """Room for so many rows that answer a prompt of so many tokens; where the prompt goes, or already is."""
        if prompt not in self.asked:
            self.asked.append(prompt)
        slot, count = self.asked.index(prompt), len(self.held)
        self.held.extend([slot] * answers)
        self.lengths[count : len(self.held)] = 0
        self.prompt_lengths[slot] = tokens
        self._groups = None
        return slot

    def leave(self, row: int) -> None:
        """A row has ended: the last one takes its place, and where nobody answers its prompt any more the last prompt does."""
        slot, last = self.held[row], len(self.held) - 1
        if row < last:
            said = int(self.lengths[last])
            _move((*self.keys, *self.values), last, row, said)
            self.lengths[row] = self.lengths[last]
            self.held[row] = self.held[last]
        del self.held[last]
        if slot not in self.held:
            newest = len(self.asked) - 1
            if slot < newest:
                _move((*self.prompt_keys, *self.prompt_values), newest, slot, int(self.prompt_lengths[newest]))
                self.prompt_lengths[slot] = self.prompt_lengths[newest]
                self.held[:] = [slot if each == newest else each for each in self.held]
                self.asked[slot] = self.asked[newest]
            del self.asked[newest]
        self._groups = None


def _move(buffers: Sequence[Buffer], source: int, target: int, tokens: int) -> None:
    for buffer in buffers:
        buffer[target, :, :tokens] = buffer[source, :, :tokens]


@dataclass(frozen=True)
class Prefill:
    """A line of prompts, each computed once; its keys and values are kept once, for every row that answers it."""

    spans: Sequence[Span]
    slots: Sequence[int]
    """Where each prompt goes in the cache."""
    cache: KeyValues

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, look: Look) -> Tensor:
        """Attention within each prompt, whose keys and values are kept."""
        for span, slot in zip(self.spans, self.slots, strict=True):
            self.cache.prompt_keys[layer][slot, :, : span.tokens] = key[0, :, span.start : span.stop]
            self.cache.prompt_values[layer][slot, :, : span.tokens] = value[0, :, span.start : span.stop]
        return attend_spans(self.spans, query, key, value, look)


@dataclass(frozen=True)
class Step:
    """One new token for each active row: it is written at the row's end and sees the row's prompt and all of the row."""

    cache: KeyValues
    at: Int[Tensor, "R"]
    """The position of each row's new token, its prompt counted."""
    said: Int[Tensor, "R"]
    """How many tokens each row has said before."""
    groups: Groups
    prompt_width: int
    """Cells of a prompt that any row sees; of its own, `width`."""
    width: int
    cells: Int[Tensor, "R*K"] | int = field(repr=False)
    """Where the new keys go in the cache, seen as one list of cells; one number where every row has said as much."""
    asking: Asking | None = None
    """The same for the compiled kernel, where it runs."""
    _masks: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, cache: KeyValues) -> Step:
        """The next step of the active rows."""
        groups, rows = cache.groups(), len(cache.held)
        said = cache.lengths[:rows].clone()
        asked = cache.prompt_lengths[: groups.prompts]
        _, kv, room, _ = cache.keys[0].shape
        shortest, longest = (int(length) for length in said.aminmax())
        apart = torch.arange(rows * kv, device=said.device) * room + said.repeat_interleave(kv)
        cells = shortest if shortest == longest else apart
        most, at = int(asked.max()), asked[groups.slots] + said
        asking = None
        if fused.fits(cache.keys[0]):
            asking = Asking.of(cache.held, groups.slots, said, asked, most + longest + 1)
        return cls(cache, at, said, groups, most, longest + 1, cells, asking)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, look: Look) -> Tensor:
        """Attention of one token a row over its prompt and itself; query heads of one kv head share its read.

        The rows of a prompt ask its keys together: they are read once, whatever the number of answers.
        """
        rows, heads, width = len(self.at), query.shape[1], query.shape[3]
        scale = look.scaling or width**-0.5
        if self.asking is not None and look.cap is None and query.dtype == torch.float32:
            buffers = [getattr(self.cache, name)[layer] for name in BUFFERS]
            return self.asking.attend((query[0], key[0], value[0]), buffers, scale, look.window)[None]
        kv, asked, groups = key.shape[1], self.prompt_width, self.groups
        keys, values = self._grown(self.cache.keys[layer], key), self._grown(self.cache.values[layer], value)
        prompts = (x[layer].view(-1, *x[layer].shape[2:]) for x in (self.cache.prompt_keys, self.cache.prompt_values))
        prompt_keys, prompt_values = (x[: groups.prompts * kv, :asked] for x in prompts)
        folded = query.new_empty(rows, kv, heads // kv, width)
        torch.mul(query[0].transpose(0, 1), scale, out=folded.view(rows, heads, width))
        mask = self.mask(look.window, folded)
        seen = folded.new_empty(rows, kv, heads // kv, asked + self.width)
        # keys times query is up to 1.7 times as fast as query times keys here: few queries share the many keys of a row
        with multiplying("default"):  # oneDNN is as fast at 64 keys, at 128 it takes 1.3 times as long
            own = torch.bmm(keys, folded.view(rows * kv, -1, width).transpose(1, 2)).transpose(1, 2)
        together = torch.bmm(prompt_keys, groups.gather(folded).transpose(1, 2)).transpose(1, 2)
        for scores, cells in ((groups.scatter(together, kv), slice(asked)), (own, slice(asked, None))):
            into = seen[..., cells]
            if look.cap is not None:
                scores = scores.div(look.cap).tanh_().mul_(look.cap)
            torch.add(scores.view(into.shape), mask[..., cells], out=into)
        weights = seen.softmax(-1)
        with multiplying("default"):  # oneDNN would copy the values
            out = torch.bmm(weights.view(rows * kv, -1, asked + self.width)[..., asked:], values).view(folded.shape)
        out += groups.scatter(torch.bmm(groups.gather(weights[..., :asked]), prompt_values), kv)
        return out.view(1, rows, heads, width)

    def mask(self, window: int | None, like: Tensor) -> Float[Tensor, "R 1 1 t"]:
        """Additive, over the prompt's cells and then the row's own: what is not written yet, and what has left the window."""
        place = (window, like.dtype)
        if place not in self._masks:
            begin = (self.at - self.said)[:, None]
            in_prompt = torch.arange(self.prompt_width, device=self.at.device)[None, :].expand(len(self.at), -1)
            own = torch.arange(self.width, device=self.at.device)[None, :]
            seen = torch.cat([in_prompt < begin, own <= self.said[:, None]], dim=1)
            if window is not None:
                seen &= torch.cat([in_prompt, begin + own], dim=1) > self.at[:, None] - window
            mask = torch.zeros(seen.shape, dtype=like.dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
            self._masks[place] = mask[:, None, None]
        return self._masks[place]

    def _grown(self, buffer: Buffer, fresh: Float[Tensor, "1 K R D"]) -> Float[Tensor, "R*K t D"]:
        """The rows with their new cell written, cut to the cells that are seen."""
        rows, kv, width = len(self.at), buffer.shape[1], buffer.shape[3]
        if isinstance(self.cells, int):
            buffer[:rows, :, self.cells] = fresh[0].transpose(0, 1)
        else:
            buffer.view(-1, width).index_copy_(0, self.cells, fresh[0].transpose(0, 1).reshape(-1, width))
        return buffer.flatten(0, 1)[: rows * kv, : self.width]
