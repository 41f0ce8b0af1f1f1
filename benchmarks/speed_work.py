"""What both sides of a measurement are given: a model and token ids, in one JSON file. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

Tokens = list[int]
LISTENED = 16
"""Of every answer, so many tokens' log-probs at most are compared between two decoders."""

RATE = 0.0
"""Learning rate of both sides: the step is computed in full, and every repetition does the same work. At 1e-30 weights that
were exactly 0 moved, sums that lay half-way between two float32 numbers were rounded the other way, and of 8,192 tokens ten
were sampled differently."""


@dataclass(frozen=True)
class Demonstration:
    """A row of supervised fine-tuning; only `answer` is trained on."""

    prompt: Tokens
    answer: Tokens


@dataclass(frozen=True)
class Pair:
    """A comparison; both answers are to the same prompt."""

    prompt: Tokens
    chosen: Tokens
    rejected: Tokens


@dataclass(frozen=True)
class Work:
    """One unit of work. Of the lists, those are filled that the row needs.

    `answers` [P][G] are the token ids that both sides sample, `listened` [P][G] how many of each have their log-probs
    compared, `rewards` [P][G] what they earn. `forced`: every answer has `max_tokens` tokens, and nothing stops it earlier.
    `settings` are those of one side.
    """

    model: str
    prompts: list[Tokens] = field(default_factory=list)
    messages: list[list[dict[str, str]]] = field(default_factory=list)
    answers: list[list[Tokens]] = field(default_factory=list)
    listened: list[list[int]] = field(default_factory=list)
    rewards: list[list[float]] = field(default_factory=list)
    demonstrations: list[Demonstration] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    stop_tokens: list[int] = field(default_factory=list)
    group: int = 8
    max_tokens: int = 128
    forced: bool = False
    seed: int = 0
    threads: int = 1
    chosen: dict[str, str] = field(default_factory=dict)
    """Which products and kernels sampled the answers: measured anew, another choice would round differently."""
    settings: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def read(path: Path) -> Work:
        """What `write` wrote."""
        found = json.loads(path.read_text(encoding="utf-8"))
        found["demonstrations"] = [Demonstration(**row) for row in found["demonstrations"]]
        found["pairs"] = [Pair(**row) for row in found["pairs"]]
        return Work(**found)

    def write(self, path: Path) -> Path:
        """Into a JSON file, whose path comes back."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path

    def with_settings(self, settings: Mapping[str, Any]) -> Work:
        """The same work for a side with `settings`."""
        return replace(self, settings=dict(settings))

    def trial(self, part: int, tokens: int) -> Work:
        """Every `part`-th prompt, demonstration and pair, and the first `tokens` of answers: enough to compare settings."""
        lists = ("prompts", "messages", "answers", "listened", "rewards", "demonstrations", "pairs")
        kept = {name: getattr(self, name)[::part] for name in lists}
        kept["answers"] = [[answer[:tokens] for answer in group] for group in kept["answers"]]
        kept["listened"] = [[min(count, tokens) for count in group] for group in kept["listened"]]
        return replace(self, **kept, max_tokens=min(self.max_tokens, tokens))

    @property
    def counts(self) -> dict[str, int]:
        """How much there is to do: prompts, rows, and tokens with each prompt counted once."""
        if self.prompts:
            said = [len(answer) for group in self.answers for answer in group]
            said = said or [self.max_tokens] * self.group * len(self.prompts)
            heads = [len(prompt) for prompt in self.prompts]
        elif self.pairs:
            said = [len(answer) for pair in self.pairs for answer in (pair.chosen, pair.rejected)]
            heads = [len(pair.prompt) for pair in self.pairs]
        else:
            said = [len(row.answer) for row in self.demonstrations]
            heads = [len(row.prompt) for row in self.demonstrations]
        rows_a_prompt = len(said) // max(1, len(heads))
        return {
            "prompts": len(heads),
            "rows": len(said),
            "prompt_tokens": sum(heads),
            "answer_tokens": sum(said),
            "tokens": sum(heads) + sum(said),
            "tokens_prompts_repeated": rows_a_prompt * sum(heads) + sum(said),
        }
