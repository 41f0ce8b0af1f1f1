"""Watching a policy learn to reason: metrics of each step's own answers, and an exam on held-out prompts now and then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tutelage.config import config
from tutelage.evaluation.reasoning import reasoning_metrics
from tutelage.models.sampling import Decoding
from tutelage.records import Answer, Prompt
from tutelage.rewards.combine import Combined
from tutelage.rewards.rules import NEED_SOLUTION
from tutelage.stages.common import Actor, Count
from tutelage.stages.training import load, records_of
from tutelage.training.loop import Hook
from tutelage.training.rollouts import Drawn


@config
class Exam:
    """Accuracy, maj@K, pass@K, length and reflection words on held-out prompts over training; off without `data`."""

    data: tuple[str, ...] = ()
    """Held-out prompts with solutions."""
    every: Count = 10
    """Steps between two exams."""
    prompts: Count = 32
    """How many of the prompts an exam takes, the first ones."""
    answers: Count = 8
    """K: answers to each prompt."""


def verifier_of(rewards: Combined) -> str | None:
    """The first of the rewards that compares with a known solution: it decides what is right."""
    return next((part.name for part in rewards.terms if part.needs_solution), None)


def measured(drawn: Drawn, verifier: str) -> dict[str, float]:
    """The metrics of a step's own answers, under `reasoning/`."""
    return _named("reasoning", drawn.groups, drawn.parts[verifier])


def exam_hooks(exam: Exam, actor: Actor, rewards: Combined, decoding: Decoding, seed: int) -> tuple[Hook, ...]:
    """The loop's hook, or none. Raises ValueError where no reward knows what is right, or a prompt has no solution."""
    if not exam.data:
        return ()
    verifier = verifier_of(rewards)
    if verifier is None:
        raise ValueError(
            f"exam.data: an exam needs a reward that compares with a solution; allowed: {', '.join(sorted(NEED_SOLUTION))}"
        )
    prompts: list[Prompt] = records_of(load(exam.data, "prompt", "error", ""))[: exam.prompts]
    rewards.check(prompts)
    tokens = [actor.chat.prompt_tokens(prompt) for prompt in prompts]

    def look(step: int) -> Mapping[str, float]:
        groups = actor.decoder.sample(tokens, exam.answers, decoding, f"{seed}/exam {step}")
        return _named("exam", groups, rewards.score(prompts, groups)[1][verifier])

    return (Hook(exam.every, look),)


def _named(group: str, groups: Sequence[Sequence[Answer]], scores: Sequence[Sequence[float]]) -> dict[str, float]:
    found = reasoning_metrics(groups, [[score == 1 for score in row] for row in scores])
    return {f"{group}/{name}": value for name, value in found.items()}
