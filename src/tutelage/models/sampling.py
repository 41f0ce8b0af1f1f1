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
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PretrainedConfig

from tutelage.models.attention import Span
from tutelage.models.cache import KeyValues, Prefill, Step
from tutelage.models.drawing import Decoding, inverse_cdf, truncate, uniforms_of
from tutelage.models.logprobs import exact, head_of
from tutelage.models.packing import backbone_of, packed_attention, unsupported
from tutelage.records import Answer


class Sampler(Protocol):
    """Prompts as token ids and a number of answers each -> [P][G] answers with tokens, log-probs and stop reasons."""

    def sample(
        self, prompts: Sequence[Sequence[int]], answers: int, decoding: Decoding, seed: str
    ) -> list[list[Answer]]:
        """`seed` names the draw (such as "0/step 7"); equal seeds give equal answers."""
        ...


@dataclass
class _Row:
    """An answer in the making."""

    prompt: int
    answer: int
    uniforms: Float[np.ndarray, "T"]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Decoder:
    """A `Sampler` over a Hugging Face causal model. `context` enters around it (e.g. the adapter off: the reference)."""

    module: nn.Module
    stop_tokens: tuple[int, ...]
    decode: Callable[[Sequence[int]], str]
    rows: int = 96
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
        """Decode; after each token yields the rows that got one. Longest prompts first, so that the cache is right at once.

        Nothing that is switched (inference mode, `context`) stays so while the caller has the floor.
        """
        reason = unsupported(backbone_of(self.module).config, backbone_of(self.module))
        if reason:
            raise ValueError(f"this decoder cannot run the model: {reason}")
        waiting = [
            _Row(p, g, uniforms_of(seed, p, g, decoding.max_tokens))
            for p in sorted(range(len(prompts)), key=lambda p: -len(prompts[p]))
            for g in range(answers)
        ]
        weight = next(backbone_of(self.module).parameters())
        longest = max((len(p) for p in prompts), default=0) + decoding.max_tokens
        slots = min(self.rows, len(waiting))
        cache = self._allocate(backbone_of(self.module).config, slots, longest, weight)
        active: list[_Row] = []
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

    def _allocate(self, config: PretrainedConfig, rows: int, tokens: int, like: Tensor) -> KeyValues:
        """The cache of all rows that are decoded at once."""
        return KeyValues.allocate(config, rows, tokens, like)

    def _prefill(
        self, prompts: Sequence[Sequence[int]], entering: list[_Row], first: int, cache: KeyValues
    ) -> Float[Tensor, "R V"]:
        """Compute each entering prompt once, fill the cache of its rows, and return each row's first logits."""
        rows_of: dict[int, list[int]] = {}
        for offset, row in enumerate(entering):
            rows_of.setdefault(row.prompt, []).append(first + offset)
        ids, positions, spans = [], [], []
        for p, rows in rows_of.items():
            spans.append(Span(len(ids), len(ids) + len(prompts[p])))
            ids.extend(prompts[p])
            positions.extend(range(len(prompts[p])))
            cache.lengths[rows] = len(prompts[p])
        layout = Prefill(spans, list(rows_of.values()), cache)
        logits = self._logits(ids, positions, layout, [span.stop - 1 for span in spans])
        which = {p: i for i, p in enumerate(rows_of)}
        return logits[[which[row.prompt] for row in entering]]

    def _advance(self, active: list[_Row], cache: KeyValues) -> Float[Tensor, "R V"]:
        """Feed each active row its newest token; logits of the next."""
        count = len(active)
        step = Step.of(cache, count)
        logits = self._logits([row.tokens[-1] for row in active], step.at.tolist(), step, list(range(count)))
        cache.lengths[:count] += 1
        return logits

    @torch.inference_mode()
    def _logits(
        self, ids: list[int], positions: list[int], layout: Prefill | Step, read: list[int]
    ) -> Float[Tensor, "R V"]:
        """One forward over a line of tokens; the logits at the places to `read`."""
        backbone = backbone_of(self.module)
        line = torch.tensor([ids, positions], device=layout.cache.lengths.device)
        with self.context(self.module) if self.context else nullcontext():
            with packed_attention(backbone):
                out = backbone(input_ids=line[:1], position_ids=line[1:], use_cache=False, layout=layout)
            return exact(head_of(self.module)(out.last_hidden_state[0, read]))

    def with_context(self, context: Callable[[nn.Module], Any] | None) -> Decoder:
        """The same decoder under another context."""
        return replace(self, context=context)


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
