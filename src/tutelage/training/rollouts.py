"""Prompts -> answers -> rewards -> a batch of rollouts: what every reinforcement-learning step draws."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tutelage.data.batch import Rollouts, sequences
from tutelage.models.sampling import Decoding, Sampler
from tutelage.records import Answer, Prompt

Score = Callable[[list[Prompt], list[list[Answer]]], tuple[list[list[float]], Mapping[str, list[list[float]]]]]
"""Prompts and their groups of answers -> rewards [P][G] and their parts by name."""


@dataclass(frozen=True)
class RolloutSource:
    """Draws rollouts for a step. `draw_prompts` and `encode` give the step's prompts and their token ids."""

    draw_prompts: Callable[[int], list[Prompt]]
    encode: Callable[[Prompt], Sequence[int]]
    sampler: Sampler
    score: Score
    decoding: Decoding
    group_size: int
    seed: int
    keep_samples: Callable[[int, list[dict[str, Any]]], None]

    def __post_init__(self) -> None:
        if self.decoding.truncates:
            raise ValueError(
                "top-p and min-p truncate the distribution that answers are drawn from, so their log-probs are not the "
                "policy's and the gradient is wrong; use them for evaluation and chat, and the temperature for training"
            )
        if self.decoding.temperature == 0:
            raise ValueError(
                "temperature 0 always gives the same answer: nothing to compare; use e.g. 1.0 for training"
            )

    def __call__(self, step: int) -> tuple[Rollouts, Mapping[str, float]]:
        """The rollouts of a step: a function of (seed, step) and the current weights."""
        clock = time.perf_counter()
        prompts = self.draw_prompts(step)
        tokens = [list(self.encode(prompt)) for prompt in prompts]
        groups = self.sampler.sample(tokens, self.group_size, self.decoding, f"{self.seed}/{step}")
        sampled = time.perf_counter()
        rewards, parts = self.score(prompts, groups)
        scored = time.perf_counter()
        self.keep_samples(step, sample_rows(prompts, groups, rewards, parts))
        metrics = {"time/sample": sampled - clock, "time/reward": scored - sampled}
        for name, values in parts.items():
            flat = [v for row in values for v in row]
            metrics[f"reward/{name}"] = sum(flat) / len(flat)
        spoken = sum(len(answer.tokens) for group in groups for answer in group)
        metrics["answer/tokens_per_second"] = spoken / (sampled - clock)
        return rollouts(tokens, groups, rewards), metrics


def rollouts(prompts: Sequence[Sequence[int]], groups: list[list[Answer]], rewards: list[list[float]]) -> Rollouts:
    """Token lists, answers [P][G] and rewards [P][G] as a batch, rows in prompt order."""
    answers = [answer for group in groups for answer in group]
    prompt_of = [p for p, group in enumerate(groups) for _ in group]
    batch = sequences(prompts, prompt_of, [answer.tokens for answer in answers])
    logprobs = torch.zeros(batch.tokens.shape)
    for row, answer in enumerate(answers):
        logprobs[row, : len(answer.logprobs)] = torch.tensor(answer.logprobs)
    flat = torch.tensor([r for group in rewards for r in group], dtype=torch.float32)
    return Rollouts(batch, flat, logprobs, torch.tensor([answer.finished for answer in answers]))


def sample_rows(
    prompts: list[Prompt],
    groups: list[list[Answer]],
    rewards: list[list[float]],
    parts: Mapping[str, list[list[float]]],
) -> list[dict[str, Any]]:
    """Whole conversations with reward parts, as `samples.jsonl` keeps them."""
    return [
        {
            "prompt": [{"role": m.role, "content": m.content} for m in prompt.messages],
            "answers": [
                {
                    "text": answer.text,
                    "stop_reason": answer.stop_reason,
                    "reward": rewards[p][g],
                    "parts": {name: values[p][g] for name, values in parts.items()},
                }
                for g, answer in enumerate(group)
            ],
        }
        for p, (prompt, group) in enumerate(zip(prompts, groups, strict=True))
    ]
