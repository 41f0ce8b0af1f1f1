"""Demonstrations of which a share is answered by the student instead: what on-policy distillation trains on."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from tutelage.data.batch import Prompts, Sequences, concat, sequences
from tutelage.models.sampling import Decoding, Sampler
from tutelage.records import Answer, Demonstration, Prompt
from tutelage.training.rollouts import Said
from tutelage.training.run import Run


@dataclass(frozen=True)
class MixedSource:
    """Draws a step's rows: each demonstration's prompt is answered by the student with probability `share`.

    GKD's lambda (arXiv:2306.13649, algorithm 1), decided row by row from (seed, step), so that a resumed run draws the same.
    A demonstration's own earlier turns stay; what is answered anew is its last assistant turn.
    """

    draw_records: Callable[[int], Sequence[Demonstration]]
    collate: Callable[[Sequence[Demonstration]], Sequences]
    encode: Callable[[Prompt], Sequence[int]]
    sampler: Sampler
    decoding: Decoding
    share: float
    seed: int
    keep_samples: Callable[[int, list[dict[str, Any]]], None]
    said: Said = lambda prompts, groups: None

    def __post_init__(self) -> None:
        assert 0 <= self.share <= 1, self.share
        if self.decoding.truncates or self.decoding.temperature == 0:
            raise ValueError(
                "the student answers from its own distribution: no top-p, no min-p, and a temperature above 0"
            )

    def __call__(self, step: int) -> tuple[Sequences, Mapping[str, float]]:
        """The rows of a step: a function of (seed, step) and the current weights."""
        records = list(self.draw_records(step))
        chance = random.Random(f"{self.seed}/{step}/on policy")
        own = [chance.random() < self.share for _ in records]
        given = [record for record, anew in zip(records, own, strict=True) if not anew]
        asked = [last_prompt(record) for record, anew in zip(records, own, strict=True) if anew]
        metrics = {"sample/on_policy": len(asked) / len(records)}
        if not asked:
            return self.collate(given), metrics
        clock = time.perf_counter()
        tokens = [list(self.encode(prompt)) for prompt in asked]
        answers = [group[0] for group in self.sampler.sample(tokens, 1, self.decoding, f"{self.seed}/{step}")]
        metrics |= {
            "time/sample": time.perf_counter() - clock,
            "answer/finished": sum(answer.finished for answer in answers) / len(answers),
        }
        self.said(tokens, [[answer] for answer in answers])
        self.keep_samples(step, [_sample(prompt, answer) for prompt, answer in zip(asked, answers, strict=True)])
        said = sequences(tokens, range(len(tokens)), [answer.tokens for answer in answers])
        return (joined(self.collate(given), said) if given else said), metrics

    def within(self, run: Run) -> Self:
        """The source of an opened run: the samples go into its folder."""
        return replace(self, keep_samples=run.sample)


@dataclass(frozen=True)
class Rehearsed:
    """The demonstrations as they are: what a preflight looks at without sampling. `within` a run the share is sampled."""

    source: MixedSource

    def __call__(self, step: int) -> tuple[Sequences, Mapping[str, float]]:
        """The step's demonstrations."""
        return self.source.collate(self.source.draw_records(step)), {}

    def within(self, run: Run) -> MixedSource:
        """The source itself."""
        return self.source.within(run)


def last_prompt(record: Demonstration) -> Prompt:
    """The conversation before the last assistant turn."""
    last = max(i for i, message in enumerate(record.messages) if message.role == "assistant")
    return Prompt(record.messages[:last], record.id, record.category)


def joined(first: Sequences, second: Sequences) -> Sequences:
    """Rows of `first`, then of `second`, each with its own prompts."""
    both = Prompts((*first.prompts.tokens, *second.prompts.tokens))
    shifted = replace(second, prompts=both, prompt_of=second.prompt_of + len(first.prompts))
    return concat(replace(first, prompts=both), shifted)


def _sample(prompt: Prompt, answer: Answer) -> dict[str, Any]:
    turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
    return {"prompt": turns, "answers": [{"text": answer.text, "stop_reason": answer.stop_reason}]}
