"""Prompts that lately taught nothing are skipped before they are answered: GRESO's filter by the history of their rewards.

A prompt whose last z groups of answers each earned all alike is skipped with probability 1 - p_e^z (arXiv:2506.02177). Its
history lies in the run folder as one line a step, so a resumed run skips what the undisturbed one would.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from tutelage.config import config
from tutelage.functional.selection import adjusted_exploration, skip_chance
from tutelage.records import Prompt
from tutelage.training.files import clear_disk_errors, write_whole

Share = Annotated[float, Field(ge=0, le=1)]
Kind = Literal["differ", "easy", "hard"]
HISTORY = "prompt_history.jsonl"
ROUNDS = 8
"""Times that prompts are looked for in place of skipped ones; then the skipped ones are taken after all."""
AWAY = 1_000_000_000
"""Round r of step s looks at the prompts of step s + r * AWAY: another place of the same endless stream."""


@config
class Greso:
    """Skip prompts whose answers lately earned all alike (GRESO)."""

    on: bool = False
    """Whether any are skipped."""
    exploration: Annotated[float, Field(ge=0.05, le=0.95)] = 0.5
    """p_e at the start, for too easy and for too hard prompts: a prompt is skipped with probability 1 - p_e^z."""
    target: Share = 0.25
    """Share of prompts that may teach nothing, a third of it too easy and two thirds too hard; p_e moves by 0.01 a step towards it."""
    solved: float = 1.0
    """The reward from which a group that earned all alike was too easy; below it, too hard."""


@dataclass
class PromptFilter:
    """What each prompt's last groups earned, and the two p_e; `choose` and `record` are called once a step, in order."""

    settings: Greso
    seed: int
    folder: Path | None = None
    streak: dict[str, tuple[int, Kind]] = field(default_factory=dict)
    """Prompt -> how often in a row it taught nothing, and what it last was."""
    exploration: dict[Kind, float] = field(default_factory=dict)
    asked: int = 0
    """Prompts of the present step that had been answered before."""

    def __post_init__(self) -> None:
        self.exploration = self.exploration or {"easy": self.settings.exploration, "hard": self.settings.exploration}

    def within(self, folder: Path, step: int) -> PromptFilter:
        """The filter of a run that goes on from `step`: what was recorded before it is read back, the rest is cut off."""
        path, fresh = folder / HISTORY, PromptFilter(self.settings, self.seed, folder)
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        kept = [
            line for line in text.split("\n")[:-1] if json.loads(line)["step"] < step
        ]  # the last may be half a line
        if text != (whole := "".join(line + "\n" for line in kept)):
            write_whole(path, whole)
        for row in map(json.loads, kept):
            fresh._learn(row)
        return fresh

    def choose(self, step: int, draw: Callable[[int], list[Prompt]]) -> tuple[list[Prompt], dict[str, float]]:
        """As many prompts as the step's own, those that are skipped replaced by others of the stream; and metrics."""
        lot = random.Random(f"{self.seed}/{step}/greso")
        own = draw(step)
        chosen: list[Prompt] = []
        skipped: list[Prompt] = []
        self.asked = 0
        for turn in range(ROUNDS):
            here = {prompt.key for prompt in chosen + skipped}
            fresh = own if turn == 0 else [p for p in draw(step + turn * AWAY) if p.key not in here]
            for prompt in fresh[: len(own) - len(chosen)]:
                self.asked += prompt.key in self.streak
                (skipped if lot.random() < self.chance(prompt) else chosen).append(prompt)
            if len(chosen) == len(own):
                break
        looked_at = len(chosen) + len(skipped)
        metrics = {"sample/skipped": len(skipped) / looked_at}
        metrics |= {f"sample/explore_{kind}": value for kind, value in self.exploration.items()}
        return chosen + skipped[: len(own) - len(chosen)], metrics

    def chance(self, prompt: Prompt) -> float:
        """How likely it is skipped."""
        streak, kind = self.streak.get(prompt.key, (0, "differ"))
        return skip_chance(streak, self.exploration[kind]) if streak else 0.0

    def record(self, step: int, prompts: Sequence[Prompt], rewards: Sequence[Sequence[float]]) -> None:
        """What the step's groups earned, all of them (also those that were replaced afterwards)."""
        kinds = [[prompt.key, self._kind(row)] for prompt, row in zip(prompts, rewards, strict=True)]
        row = {"step": step, "asked_again": self.asked > 0, "prompts": kinds}
        self._learn(row)
        if self.folder is not None:
            path = self.folder / HISTORY
            with clear_disk_errors(path), path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def _kind(self, rewards: Sequence[float]) -> Kind:
        if len(set(rewards)) > 1:
            return "differ"
        return "easy" if rewards[0] >= self.settings.solved else "hard"

    def _learn(self, row: Mapping[str, Any]) -> None:
        for key, kind in row["prompts"]:
            self.streak[key] = (0 if kind == "differ" else self.streak.get(key, (0, kind))[0] + 1, kind)
        if row[
            "asked_again"
        ]:  # in the first pass over the prompts nothing can be skipped, so nothing is to be adjusted
            parts: tuple[tuple[Kind, float], ...] = (("easy", 1 / 3), ("hard", 2 / 3))
            for kind, part in parts:
                share = sum(one == kind for _, one in row["prompts"]) / len(row["prompts"])
                self.exploration[kind] = adjusted_exploration(
                    self.exploration[kind], share, part * self.settings.target
                )
