"""What the learning table calls right, and the same verdicts dealt to the answers anew."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from learning_world import LARGEST
from tutelage.records import Answer, Comparison, Prompt, Rating
from tutelage.rewards.pairwise import ScoredPreference
from tutelage.training.rollouts import Grid

Groups = Sequence[Sequence[Answer]]


def right(prompt: Prompt, answers: list[Answer]) -> list[float]:
    """1 for the right sum and nothing else."""
    return [float(answer.text == prompt.solution) for answer in answers]


def permute(rewards: Grid, groups: Groups, seed: int) -> Grid:
    """The same rewards, dealt to the step's answers anew: an order that (seed, what was said) decides."""
    flat = [value for row in rewards for value in row]
    random.Random(f"{seed}/{[answer.text for group in groups for answer in group]}").shuffle(flat)
    dealt = iter(flat)
    return [[next(dealt) for _ in row] for row in rewards]


@dataclass(frozen=True)
class Chance:
    """A preference whose verdicts are dealt to the step's duels anew."""

    preference: ScoredPreference
    seed: int

    def probability(self, prompts: Sequence[Prompt], first: Groups, second: Groups) -> Grid:
        """See `Preference`."""
        return permute(self.preference.probability(prompts, first, second), first, self.seed)


def all_pairs(prompt: Prompt) -> list[Comparison]:
    """The right sum against every other number."""
    good = Answer(str(prompt.solution))
    return [Comparison(prompt, good, Answer(str(n))) for n in range(LARGEST + 1) if str(n) != prompt.solution]


def rated(method: str, prompts: Sequence[Prompt], seed: int | None) -> list[Rating]:
    """Every number as an answer: how far it is off, as a rating, or a yes for the right one. Yes and no weigh the same.

    With a `seed` the labels are dealt to the answers anew.
    """
    said_of = [(prompt, n) for prompt in prompts for n in range(LARGEST + 1)]
    off = [abs(n - int(str(prompt.solution))) for prompt, n in said_of]
    if seed is not None:
        random.Random(f"{seed}/labels").shuffle(off)
    if method == "regression":
        return [Rating(p, Answer(str(n)), -d / LARGEST) for (p, n), d in zip(said_of, off, strict=True)]
    return [
        Rating(p, Answer(str(n)), float(d == 0), weight=1.0 if d == 0 else 1 / LARGEST)
        for (p, n), d in zip(said_of, off, strict=True)
    ]
