"""Names become rewards, once; several become one weighted sum, with every part kept for the log."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tutelage.config import build
from tutelage.records import Answer, Prompt
from tutelage.rewards.base import BatchReward, Grid, OnError, Reward, Scored, known_solution, score_each
from tutelage.rewards.functions import CalledReward, ImportedReward
from tutelage.rewards.maths import FinalAnswer
from tutelage.rewards.rules import NEED_SOLUTION, REWARDS
from tutelage.rewards.terms import RewardTerm, parse_term

_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*:[A-Za-z_]\w*(?:\.\w+)*")
_TAKEN = ("mean", "std", "equal_groups")
"""Metrics under `reward/` that the loop writes itself."""


@dataclass(frozen=True)
class Rule:
    """One of our own rules over a whole step; what it raises is raised."""

    function: Reward

    def measure(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Answer]]) -> Scored:
        """One call a prompt."""
        return score_each(self.function, prompts, groups)

    def close(self) -> None:
        """Nothing to end."""


@dataclass(frozen=True)
class Above:
    """1 where a reward is above a threshold, else 0: a yes or no out of a score."""

    reward: BatchReward
    threshold: float

    def measure(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Answer]]) -> Scored:
        """The reward's flags stay."""
        scored = self.reward.measure(prompts, groups)
        return replace(scored, values=[[float(score > self.threshold) for score in row] for row in scored.values])

    def close(self) -> None:
        """Ends what the reward started."""
        self.reward.close()


@dataclass(frozen=True)
class Part:
    """A reward under its name in the log, and what it counts for."""

    name: str
    weight: float
    reward: BatchReward
    needs_solution: bool = False


@dataclass(frozen=True)
class Combined:
    """The weighted sum of rewards. Use it as a context manager, or `close` it, where child processes should end early."""

    terms: tuple[Part, ...]

    def score(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Answer]]) -> tuple[Grid, Mapping[str, Grid]]:
        """Rewards [P][G]; and by name the parts before weighting, with shares such as `NAME_errors` as 0 or 1 an answer."""
        total = [[0.0] * len(group) for group in groups]
        parts: dict[str, Grid] = {}
        for term in self.terms:
            scored = term.reward.measure(prompts, groups)
            parts[term.name] = scored.values
            parts |= {f"{term.name}_{flag}": values for flag, values in scored.flags.items()}
            for row, scores in zip(total, scored.values, strict=True):
                row[:] = [so_far + term.weight * score for so_far, score in zip(row, scores, strict=True)]
        return total, parts

    def __call__(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Answer]]) -> Grid:
        """The rewards alone: what a judge is (higher is preferred)."""
        return self.score(prompts, groups)[0]

    def check(self, prompts: Iterable[Prompt]) -> None:
        """Raises ValueError for the first prompt without the solution that a term compares with."""
        for term in self.terms:
            for prompt in prompts if term.needs_solution else ():
                known_solution(term.name, prompt)

    def close(self) -> None:
        """Ends child processes."""
        for term in self.terms:
            term.reward.close()

    def __enter__(self) -> Combined:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def combine(
    terms: Sequence[str | Reward | RewardTerm | Mapping[str, Any]], on_error: OnError = "error", device: str = "auto"
) -> Combined:
    """Names (`brevity=0.1`), terms or Python functions as one weighted sum; `on_error` holds where a term says nothing.

    Everything is looked up and loaded here: a ValueError comes before anything is sampled.
    """
    if not terms:
        raise ValueError(f"no reward given; {_known()}")
    names: list[str] = list(_TAKEN)
    parts = []
    for given in terms:
        part = _part(given, on_error, device)
        names.append(part.name)
        count = names.count(part.name)
        parts.append(replace(part, name=f"{part.name}_{count}") if count > 1 else part)
    return Combined(tuple(parts))


def resolve(name: str, on_error: OnError = "error", device: str = "auto") -> BatchReward:
    """One reward by its short form (see `terms.parse_term`), without its weight."""
    return _part(name, on_error, device).reward


def resolve_judge(name: str, device: str = "auto") -> Combined:
    """One reward, weight included, as a judge: prompts and groups of answers -> scores [P][G]. Errors are errors."""
    return combine([name], "error", device)


def _part(given: str | Reward | RewardTerm | Mapping[str, Any], on_error: OnError, device: str) -> Part:
    if callable(given):
        name = getattr(given, "__name__", type(given).__name__)
        return Part(name, 1.0, CalledReward(given, name, on_error))
    if isinstance(given, Mapping):
        given = build(RewardTerm, given, "reward")
    term = parse_term(given) if isinstance(given, str) else given
    part = _term_part(term, on_error, device)
    return part if term.above is None else replace(part, reward=Above(part.reward, term.above))


def _term_part(term: RewardTerm, on_error: OnError, device: str) -> Part:
    name = term.reward
    if name in REWARDS and not Path(name).is_dir():
        return Part(name, term.weight, _rule(term), name in NEED_SOLUTION)
    if _IMPORT_PATH.fullmatch(name) and not name.startswith("builtin:") and not Path(name).exists():
        _refuse(term, "label", "of", "output")
        imported = ImportedReward.of(name, term.settings, term.on_error or on_error, term.deadline)
        return Part(name, term.weight, imported)
    return Part(_folder_name(name), term.weight, _model(term, device))


def _rule(term: RewardTerm) -> BatchReward:
    _refuse(term, "label", "of", "output", "on_error")
    if term.reward == "gsm8k":
        _refuse(term, "settings")
        return FinalAnswer()  # keeps its child between steps, where the plain function starts one a call
    function = REWARDS[term.reward]
    allowed = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for key, value in term.settings.items():
        if key not in allowed or isinstance(value, str | bool) or value <= 0:
            takes = ", ".join(allowed) or "none"
            raise ValueError(f"reward {term.reward}: cannot take {key}={value!r}; settings (numbers above 0): {takes}")
    return Rule(partial(function, **term.settings))


def _model(term: RewardTerm, device: str) -> BatchReward:
    _refuse(term, "on_error", "settings")
    if "/" not in term.reward and not Path(term.reward).is_dir() and not term.reward.startswith("builtin:"):
        raise ValueError(f"reward: unknown name {term.reward!r}; {_known()}")
    from tutelage.rewards.model import RewardModelReward

    return RewardModelReward.load(term.reward, label=term.label, of=term.of, output=term.output, device=device)


def _refuse(term: RewardTerm, *keys: str) -> None:
    """A key that means nothing for this kind of reward is a mistake, not a wish to be ignored."""
    for key in keys:
        if getattr(term, key) not in (None, {}):
            raise ValueError(f"reward {term.reward}: `{key}` has no meaning for it; got {getattr(term, key)!r}")


def _known() -> str:
    return (
        f"known: {', '.join(REWARDS)}; or package.module:function, a reward model's or classifier's folder, "
        "a hub id OWNER/NAME; each with a weight: NAME=0.5"
    )


def _folder_name(name: str) -> str:
    """A short name for the log: of runs/x/reward_model, `x`."""
    steps = [part for part in Path(name).parts if part not in ("reward_model", "/", ".", "..")]
    return steps[-1] if steps else "reward_model"
