"""The in-process decoder: prompts in, answers with log-probs and stop reasons out, on the trainer's own weights.

One prefill a prompt, preallocated keys and values, finished rows leave and waiting ones enter (continuous batching). Each
answer has its own random stream from (seed, prompt index, answer index), so it does not depend on who shares its batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PretrainedConfig

from tutelage.models.attention import Span
from tutelage.models.brief import hidden_states, readout
from tutelage.models.cache import KeyValues, Prefill, Room, Step
from tutelage.models.drawing import Decoding, draw, uniforms_of
from tutelage.models.packing import backbone_of, unsupported
from tutelage.models.rough import Precision
from tutelage.records import Answer

Read = Callable[[Tensor, Prefill | Step, "slice | list[int]"], Float[Tensor, "R V"]]
"""Token ids and positions [2, N], who sees whom, and the places to read -> their logits."""


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
    ended: Literal["stop", "length"] | None = None


@dataclass(frozen=True)
class Decoder:
    """A `Sampler` over a Hugging Face causal model. `context` enters around it (e.g. the adapter off: the reference)."""

    module: nn.Module
    stop_tokens: tuple[int, ...]
    decode: Callable[[Sequence[int]], str]
    rows: int = 96
    context: Callable[[nn.Module], Any] | None = None
    precision: Precision = "exact"
    """Fewer bits are faster, and what is sampled is then not quite the policy's: see `algorithms.corrected`."""

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
            assert row.ended is not None
            answer = Answer(self._text(row, decoding), tuple(row.tokens), tuple(row.logprobs), row.ended)
            out[row.prompt][row.answer] = answer
            if on_answer is not None:
                on_answer(answer)
        return [[answer for answer in group if answer is not None] for group in out]

    def stream(self, prompt: Sequence[int], decoding: Decoding, seed: str) -> Iterator[str]:
        """One answer's text so far, after each token (chat)."""
        for row in self._steps([prompt], 1, decoding, seed):
            yield self._text(row[0], decoding)

    def _text(self, row: _Row, decoding: Decoding) -> str:
        """What was said, without stop tokens, up to the first stop string."""
        text = self.decode([t for t in row.tokens if t not in self.stop_tokens])
        found = [at for stop in decoding.stop if (at := text.find(stop)) >= 0]
        return text[: min(found)] if found else text

    def _finished(
        self, prompts: Sequence[Sequence[int]], answers: int, decoding: Decoding, seed: str
    ) -> Iterator[_Row]:
        for active in self._steps(prompts, answers, decoding, seed):
            yield from (row for row in active if row.ended)

    def _end(self, rows: list[_Row], decoding: Decoding) -> None:
        """Mark the rows whose newest token ended them. A stop string is looked for among the tokens that can spell it."""
        reach = max((len(stop.encode()) for stop in decoding.stop), default=0) + 4  # and a character begun before it
        for row in rows:
            if row.tokens[-1] in self.stop_tokens or (
                decoding.stop and any(stop in self.decode(row.tokens[-reach:]) for stop in decoding.stop)
            ):
                row.ended = "stop"
            elif len(row.tokens) >= decoding.max_tokens:
                row.ended = "length"

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
        slots = min(self.rows, len(waiting))
        longest = max((len(p) for p in prompts), default=0)
        room = Room(slots, decoding.max_tokens, min(slots, len(prompts)), longest)
        cache = self._allocate(backbone_of(self.module).config, room, weight)
        read = self.reader(decoding.max_tokens) if waiting else None
        active: list[_Row] = []
        while waiting or active:
            assert read is not None
            if waiting and (len(active) <= slots * 3 // 4 or not active):
                entering, waiting = waiting[: slots - len(active)], waiting[slots - len(active) :]
                logits = _prefill(prompts, entering, cache, read)
                _draw(entering, logits, decoding)
                fresh, active = entering, active + entering
            else:
                _draw(active, _advance(active, cache, read), decoding)
                fresh = active
            self._end(fresh, decoding)
            yield fresh
            active = _keep(active, cache)

    def _allocate(self, config: PretrainedConfig, room: Room, like: Tensor) -> KeyValues:
        """The cache of all rows that are decoded at once."""
        return KeyValues.allocate(config, room, like)

    def reader(self, tokens: int) -> Read:
        """The forward over the weights as they are now, for about `tokens` steps; it must not outlive a change of them."""
        with torch.inference_mode(), self._context():
            hidden, logits = hidden_states(self.module, tokens, self.precision), readout(self.module)

        def read(line: Tensor, layout: Prefill | Step, places: slice | list[int]) -> Tensor:
            with torch.inference_mode(), self._context():
                return logits(hidden(line, layout)[places])

        return read

    def _context(self) -> AbstractContextManager[Any]:
        return self.context(self.module) if self.context else nullcontext()

    def with_context(self, context: Callable[[nn.Module], Any] | None) -> Decoder:
        """The same decoder under another context."""
        return replace(self, context=context)


def _prefill(
    prompts: Sequence[Sequence[int]], entering: list[_Row], cache: KeyValues, read: Read
) -> Float[Tensor, "R V"]:
    """Compute each entering prompt once, keep its keys and values for its rows, and return each row's first logits."""
    answers = Counter(row.prompt for row in entering)  # in the order of the rows, which come prompt by prompt
    slots = [cache.admit(p, len(prompts[p]), count) for p, count in answers.items()]
    ids, positions, spans = [], [], []
    for p in answers:
        spans.append(Span(len(ids), len(ids) + len(prompts[p])))
        ids.extend(prompts[p])
        positions.extend(range(len(prompts[p])))
    line = torch.tensor([ids, positions], device=cache.lengths.device)
    logits = read(line, Prefill(spans, slots, cache), [span.stop - 1 for span in spans])
    return logits.repeat_interleave(torch.tensor(list(answers.values()), device=logits.device), dim=0)


def _advance(active: list[_Row], cache: KeyValues, read: Read) -> Float[Tensor, "R V"]:
    """Feed each active row its newest token; logits of the next."""
    step = Step.of(cache)
    newest = torch.tensor([row.tokens[-1] for row in active], device=step.at.device)
    logits = read(torch.stack([newest, step.at]), step, slice(None))
    cache.lengths[: len(active)] += 1
    return logits


def _draw(rows: list[_Row], logits: Float[Tensor, "R V"], decoding: Decoding) -> None:
    """Append one token and its log-prob (under temperature and truncation) to each row."""
    drawn = [row.uniforms[len(row.tokens)] for row in rows]
    with torch.inference_mode():
        uniforms = torch.tensor(drawn, dtype=torch.float64, device=logits.device)
        tokens, logprobs = draw(logits, decoding, uniforms)
    for row, token, value in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
        row.tokens.append(token)
        row.logprobs.append(value)


def _keep(rows: list[_Row], cache: KeyValues) -> list[_Row]:
    """Drop ended rows; the last active ones move into their places, as they do in the cache."""
    rows = list(rows)
    for at in reversed(range(len(rows))):
        if rows[at].ended:  # all behind it go on, so that few have to move
            cache.leave(at)
            rows[at] = rows[-1]
            rows.pop()
    return rows
