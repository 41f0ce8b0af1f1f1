"""The in-process decoder: prompts in, answers with log-probs and stop reasons out, on the trainer's own weights.

One prefill a prompt, preallocated keys and values, finished rows leave and waiting ones enter (continuous batching). Each
answer has its own random stream from (seed, prompt index, answer index), so it does not depend on who shares its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tutelage.models.cache import KeyValues, Prefill, Step
from tutelage.models.logprobs import head_of
from tutelage.models.packing import Span, backbone_of, packed_attention, unsupported
from tutelage.records import Answer

BLOCK = 256
"""Tokens a block of the two-stage inverse CDF."""


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn. Top-p and min-p truncate the distribution: for evaluation and chat, refused in training."""

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def truncates(self) -> bool:
        """Whether sampled log-probs are of a renormalised distribution (then no policy gradient may use them)."""
        return self.top_p < 1 or self.min_p > 0


class Sampler(Protocol):
    """Prompts as token ids and a number of answers each -> [P][G] answers with tokens, log-probs and stop reasons."""

    def sample(
        self, prompts: Sequence[Sequence[int]], answers: int, decoding: Decoding, seed: str
    ) -> list[list[Answer]]:
        """`seed` names the draw (such as "0/step 7"); equal seeds give equal answers."""
        ...


def inverse_cdf(probabilities: Float[Tensor, "R V"], uniforms: Float[Tensor, R]) -> Int[Tensor, R]:
    """One draw a row by inverting the CDF at `uniforms` in [0, 1), exactly enough that no token becomes unreachable.

    An fp32 CDF over 49k tokens loses thousands of them to rounding; sums here are float64, first over blocks of 256 tokens,
    then inside the chosen block, and the result is clamped to a token with probability above zero.
    """
    rows, vocabulary = probabilities.shape
    padded = nn.functional.pad(probabilities, (0, -vocabulary % BLOCK)).view(rows, -1, BLOCK)
    sums = padded.sum(-1, dtype=torch.float64).cumsum(-1)
    target = uniforms.to(torch.float64) * sums[:, -1]
    block = torch.searchsorted(sums, target[:, None], right=True)[:, 0]
    block = torch.minimum(block, _last_positive(padded.sum(-1)))
    inside = padded.gather(1, block[:, None, None].expand(-1, 1, BLOCK))[:, 0]
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    cdf = inside.to(torch.float64).cumsum(-1)
    at = torch.searchsorted(cdf, (target - before).clamp(min=0)[:, None], right=True)[:, 0]
    return block * BLOCK + torch.minimum(at, _last_positive(inside))


def _last_positive(x: Float[Tensor, "R N"]) -> Int[Tensor, R]:
    """Index of the last cell above zero."""
    return x.shape[-1] - 1 - (x > 0).flip(-1).to(torch.uint8).argmax(-1)


def truncate(probabilities: Float[Tensor, "R V"], decoding: Decoding) -> Float[Tensor, "R V"]:
    """Nucleus (top-p) and min-p: what falls outside gets probability 0 (the draw renormalises)."""
    if decoding.min_p > 0:
        floor = decoding.min_p * probabilities.amax(-1, keepdim=True)
        probabilities = torch.where(probabilities >= floor, probabilities, 0.0)
    if decoding.top_p < 1:
        ranked, order = probabilities.sort(-1, descending=True)
        outside = ranked.cumsum(-1) - ranked >= decoding.top_p * ranked.sum(-1, keepdim=True)
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ranked.masked_fill(outside, 0.0))
    return probabilities


@dataclass
class _Row:
    """An answer in the making."""

    prompt: int
    answer: int
    uniforms: Float[np.ndarray, T]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Decoder:
    """A `Sampler` over a Hugging Face causal model. `context` enters around it (e.g. the adapter off: the reference)."""

    module: nn.Module
    stop_tokens: tuple[int, ...]
    decode: Callable[[Sequence[int]], str]
    rows: int = 64
    context: Callable[[nn.Module], Any] | None = None

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        answers: int,
        decoding: Decoding,
        seed: str,
        on_answer: Callable[[Answer], None] | None = None,
    ) -> list[list[Answer]]:
        """See `Sampler`; `on_answer` is called as each answer ends (progress)."""
        out: list[list[Answer | None]] = [[None] * answers for _ in prompts]
        for row in self._finished(prompts, answers, decoding, seed):
            answer = self._answer(row)
            out[row.prompt][row.answer] = answer
            if on_answer is not None:
                on_answer(answer)
        return [[answer for answer in group if answer is not None] for group in out]

    def stream(self, prompt: Sequence[int], decoding: Decoding, seed: str) -> Iterator[str]:
        """One answer's text so far, after each token (chat)."""
        tokens: list[int] = []
        for row in self._steps([prompt], 1, decoding, seed):
            tokens = row[0].tokens
            yield self.decode(self._spoken(tokens))

    def _spoken(self, tokens: Sequence[int]) -> list[int]:
        return [t for t in tokens if t not in self.stop_tokens]

    def _answer(self, row: _Row) -> Answer:
        stopped = bool(row.tokens) and row.tokens[-1] in self.stop_tokens
        text = self.decode(self._spoken(row.tokens))
        return Answer(text, tuple(row.tokens), tuple(row.logprobs), "stop" if stopped else "length")

    def _finished(
        self, prompts: Sequence[Sequence[int]], answers: int, decoding: Decoding, seed: str
    ) -> Iterator[_Row]:
        for active in self._steps(prompts, answers, decoding, seed):
            yield from (row for row in active if self._ended(row, decoding))

    def _ended(self, row: _Row, decoding: Decoding) -> bool:
        return len(row.tokens) >= decoding.max_tokens or row.tokens[-1] in self.stop_tokens

    def _steps(
        self, prompts: Sequence[Sequence[int]], answers: int, decoding: Decoding, seed: str
    ) -> Iterator[list[_Row]]:
        """Decode; after each token yields the rows that got one. Longest prompts first, so that the cache is right at once."""
        reason = unsupported(backbone_of(self.module).config, backbone_of(self.module))
        if reason:
            raise ValueError(f"this decoder cannot run the model: {reason}")
        waiting = [
            _Row(p, g, _uniforms(seed, p, g, decoding.max_tokens))
            for p in sorted(range(len(prompts)), key=lambda p: -len(prompts[p]))
            for g in range(answers)
        ]
        weight = next(backbone_of(self.module).parameters())
        longest = max(len(p) for p in prompts) + decoding.max_tokens
        slots = min(self.rows, len(waiting))
        cache = KeyValues.allocate(backbone_of(self.module).config, slots, longest, weight)
        active: list[_Row] = []
        with torch.inference_mode(), self.context(self.module) if self.context else nullcontext():
            while waiting or active:
                if waiting and (len(active) <= slots * 3 // 4 or not active):
                    entering, waiting = waiting[: slots - len(active)], waiting[slots - len(active) :]
                    logits = self._prefill(prompts, entering, len(active), cache)
                    _draw(entering, logits, decoding)
                    yield entering
                    active = _keep(active + entering, cache, lambda row: not self._ended(row, decoding))
                    continue
                _draw(active, self._advance(active, cache), decoding)
                yield active
                active = _keep(active, cache, lambda row: not self._ended(row, decoding))

    def _prefill(
        self, prompts: Sequence[Sequence[int]], entering: list[_Row], first: int, cache: KeyValues
    ) -> Float[Tensor, "R V"]:
        """Compute each entering prompt once, fill the cache of its rows, and return each row's first logits."""
        rows_of: dict[int, list[int]] = {}
        for offset, row in enumerate(entering):
            rows_of.setdefault(row.prompt, []).append(first + offset)
        ids, positions, spans = [], [], []
        for p, rows in rows_of.items():
            spans.append(Span(len(ids), len(ids) + len(prompts[p]), None))
            ids.extend(prompts[p])
            positions.extend(range(len(prompts[p])))
            cache.lengths[rows] = len(prompts[p])
        hidden = self._forward(ids, positions, Prefill(spans, list(rows_of.values()), cache))
        last = hidden[[span.stop - 1 for span in spans]]
        which = {p: i for i, p in enumerate(rows_of)}
        logits = head_of(self.module)(last).float()
        return logits[[which[row.prompt] for row in entering]]

    def _advance(self, active: list[_Row], cache: KeyValues) -> Float[Tensor, "R V"]:
        """Feed each active row its newest token; logits of the next."""
        count = len(active)
        step = Step.of(cache, count, cache.keys[0].dtype)
        hidden = self._forward([row.tokens[-1] for row in active], step.at.tolist(), step)
        cache.lengths[:count] += 1
        return head_of(self.module)(hidden).float()

    def _forward(self, ids: list[int], positions: list[int], layout: Prefill | Step) -> Float[Tensor, "N D"]:
        backbone = backbone_of(self.module)
        line = torch.tensor([ids, positions], device=layout.cache.lengths.device)
        with packed_attention(backbone):
            out = backbone(input_ids=line[:1], position_ids=line[1:], use_cache=False, layout=layout)
        return out.last_hidden_state[0]

    def with_context(self, context: Callable[[nn.Module], Any] | None) -> Decoder:
        """The same decoder under another context."""
        return replace(self, context=context)


def _uniforms(seed: str, prompt: int, answer: int, count: int) -> np.ndarray:
    """The random stream of one answer; it does not depend on the batch it runs in."""
    import hashlib

    digest = hashlib.sha256(f"{seed}/{prompt}/{answer}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big"))).random(count)


def _draw(rows: list[_Row], logits: Float[Tensor, "R V"], decoding: Decoding) -> None:
    """Append one token and its log-prob (under temperature and truncation) to each row; temperature 0 is greedy."""
    if decoding.temperature == 0:
        tokens = logits.argmax(-1)
        logp = logits.log_softmax(-1)
    else:
        logp = (logits / decoding.temperature).log_softmax(-1)
        probabilities = logp.exp()
        if decoding.truncates:
            probabilities = truncate(probabilities, decoding)
            logp = (probabilities / probabilities.sum(-1, keepdim=True)).log()
        uniforms = torch.tensor(
            [row.uniforms[len(row.tokens)] for row in rows], dtype=torch.float64, device=logits.device
        )
        tokens = inverse_cdf(probabilities, uniforms)
    chosen = logp.gather(-1, tokens[:, None])[:, 0]
    for row, token, value in zip(rows, tokens.tolist(), chosen.tolist(), strict=True):
        row.tokens.append(token)
        row.logprobs.append(value)


def _keep(rows: list[_Row], cache: KeyValues, stays: Callable[[_Row], bool]) -> list[_Row]:
    """Drop ended rows; the last active ones move into their places in the cache."""
    rows = list(rows)
    at = 0
    while at < len(rows):
        if stays(rows[at]):
            at += 1
            continue
        if at < len(rows) - 1:
            cache.move(len(rows) - 1, at)
            rows[at] = rows[-1]
        rows.pop()
    return rows
