"""A user's reward function: by import path in a killable child with a deadline, or a function given in Python."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.records import Answer, Prompt
from tutelage.rewards.base import OnError, Reward, RewardError, Scored, checked, plain, score_each
from tutelage.rewards.sandbox import Child, ChildError

DEADLINE_SECONDS = 60.0


@dataclass(frozen=True)
class ImportedReward:
    """`package.module:function` in a process of its own: the current directory is searched first, prints go to stderr.

    Errors are ValueErrors that name function, prompt and what happened; with `on_error` "0" they score 0 and are counted.
    """

    path: str
    child: Child
    on_error: OnError = "error"

    @staticmethod
    def of(
        path: str,
        settings: Mapping[str, Any] | None = None,
        on_error: OnError = "error",
        deadline: float = DEADLINE_SECONDS,
    ) -> ImportedReward:
        """Raises ValueError at once where the function cannot be imported or does not take `settings` as keywords."""
        child = Child(path, deadline, keywords=settings or {}, here=True)
        try:
            child.start()
        except ChildError as error:
            raise ValueError(
                f"reward {path}: cannot be used: importing it {error}; modules are looked for in {os.getcwd()} and in "
                "what is installed"
            ) from None
        return ImportedReward(path, child, on_error)

    def measure(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Answer]]) -> Scored:
        """One call a prompt."""
        return score_each(self, prompts, groups, self.on_error)

    def __call__(self, prompt: Prompt, answers: list[Answer]) -> list[float]:
        try:
            got = self.child.call(prompt, answers)
        except ChildError as error:
            raise RewardError(f"reward {self.path} {error} on prompt {prompt.key!r}") from None
        return checked(self.path, prompt, answers, got)

    def close(self) -> None:
        """Ends the child."""
        self.child.kill()


@dataclass(frozen=True)
class CalledReward:
    """A function given in Python, called in this process: no deadline, the same checks."""

    function: Reward
    name: str
    on_error: OnError = "error"

    def measure(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Answer]]) -> Scored:
        """One call a prompt."""
        return score_each(self, prompts, groups, self.on_error)

    def __call__(self, prompt: Prompt, answers: list[Answer]) -> list[float]:
        try:
            got = self.function(prompt, answers)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise RewardError(f"reward {self.name} raised {what} on prompt {prompt.key!r}") from error
        return checked(self.name, prompt, answers, plain(got))

    def close(self) -> None:
        """Nothing to end."""
