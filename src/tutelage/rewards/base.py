"""What a reward is: a plain function of one prompt, or something that scores a whole step at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal, Protocol

from tutelage.records import Answer, Prompt

Reward = Callable[[Prompt, list[Answer]], list[float]]
"""One prompt and its answers -> one finite number an answer, in the answers' order."""
Grid = list[list[float]]
"""[P][G]: a line a prompt, a cell an answer."""
OnError = Literal["error", "0"]


class RewardError(ValueError):
    """A user's reward raised, hung, died or returned something that is no score; the message says which and on what."""


@dataclass(frozen=True)
class Scored:
    """Scores [P][G], and what happened on the way as 0 or 1 an answer (their means are logged as shares)."""

    values: Grid
    flags: Mapping[str, Grid] = field(default_factory=dict)


class BatchReward(Protocol):
    """All groups of a step at once: a reward model packs them, a child process is kept between calls."""

    def measure(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Answer]]) -> Scored:
        """Scores of `groups[p]`, the answers to `prompts[p]`."""
        ...

    def close(self) -> None:
        """Ends child processes; scoring again starts new ones."""
        ...


def score_each(
    reward: Reward, prompts: Sequence[Prompt], groups: Sequence[Sequence[Answer]], on_error: OnError = "error"
) -> Scored:
    """A plain function over all prompts. With `on_error` "0" a RewardError scores its prompt's answers 0 and is flagged."""
    values: Grid = []
    errors: Grid = []
    for prompt, answers in zip(prompts, groups, strict=True):
        try:
            row, failed = reward(prompt, list(answers)), 0.0
        except RewardError:
            if on_error == "error":
                raise
            row, failed = [0.0] * len(answers), 1.0
        values.append(row)
        errors.append([failed] * len(answers))
    return Scored(values, {"errors": errors} if on_error == "0" else {})


def plain(value: Any) -> Any:
    """A returned value as JSON can carry it: numbers as floats, lists as lists, anything else as its description."""
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return {"type": type(value).__name__, "repr": repr(value)[:80]}


def checked(name: str, prompt: Prompt, answers: Sequence[Answer], got: Any) -> list[float]:
    """`got` (see `plain`) as scores; RewardError where it is not one finite number an answer."""
    where = f"on prompt {prompt.key!r}"
    if not isinstance(got, list):
        what = f"{got['type']} {got['repr']}" if isinstance(got, dict) else f"float {got}"
        raise RewardError(f"reward {name} must return a list of floats, one an answer; got {what} {where}")
    if len(got) != len(answers):
        raise RewardError(
            f"reward {name} must return {len(answers)} numbers for {len(answers)} answers; got {len(got)} {where}"
        )
    for at, score in enumerate(got):
        if not isinstance(score, float) or not math.isfinite(score):
            shown = score["repr"] if isinstance(score, dict) else score
            raise RewardError(f"reward {name} must return finite numbers; got {shown} for answer {at} {where}")
    return got


def known_solution(name: str, prompt: Prompt) -> str:
    """The prompt's solution; ValueError where the data gave none."""
    if prompt.solution is None:
        raise ValueError(
            f"reward {name} compares with a known solution and prompt {prompt.key!r} has none; "
            "give the data a `solution` (or GSM8K's question/answer), or choose another reward"
        )
    return prompt.solution
