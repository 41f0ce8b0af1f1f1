"""Tasks made on demand: `task:sums/SPLIT` is a data source of one- and two-digit sums whose answers can be checked.

    task:sums/sft    task:sums/train(size=200)    task:sums/eval(digits=1, seed=3)

Problems come from reasoning-gym's `chain_sum` generator (two terms; its subtractions are left out) in its own wording. An
unordered pair of operands belongs to one split for good, whatever the seed, the size and the digits, and comes once in it:
what is evaluated was never seen in training, not even the other way round.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement, count
from typing import Literal, cast, get_args

from tutelage.records import Demonstration, Message, Prompt, user

Split = Literal["sft", "train", "eval"]
PREFIX = "task:"
SHARES: dict[Split, int] = {"sft": 20, "train": 50, "eval": 30}
"""Of 100 pairs of operands, how many belong to a split."""
SIZES: dict[Split, int] = {"sft": 400, "train": 1000, "eval": 300}
"""Problems, unless `size` says otherwise (or there are fewer)."""
SEED_STRIDE = 1_000_003
"""chain_sum draws problem i of seed s from s + i: seeds far apart give other problems."""
FORMAT = "Think between <think> and </think>, then give the number between <answer> and </answer>."

_SOURCE = re.compile(r"task:sums/(?P<split>\w+)(?:\((?P<settings>[^()]*)\))?")
_SUM = re.compile(r"(\d+) \+ (\d+)")
_LIMITS = {"size": (1, 10**9), "digits": (1, 2), "seed": (0, 10**6)}
_SYNTAX = "task:sums/SPLIT or task:sums/SPLIT(size=200, digits=1, seed=3); SPLIT: sft, train, eval"


@dataclass(frozen=True)
class Sums:
    """Which problems: a split, how many, operands of one digit or of up to two, and the order's seed."""

    split: Split
    size: int | None = None
    digits: int = 2
    seed: int = 0

    @property
    def problems(self) -> int:
        """How many problems there are. Raises ValueError where `size` asks for more than the split has pairs."""
        pairs = sum(split_of(a, b) == self.split for a, b in all_pairs(self.digits))
        if self.size is not None and self.size > pairs:
            raise ValueError(f"task:sums/{self.split}: size={self.size}; allowed: 1 to {pairs}, its pairs of operands")
        return min(self.size or SIZES[self.split], pairs)


def load_task(source: str, kind: str | None) -> tuple[Prompt | Demonstration, ...]:
    """The records of a `task:` source: prompts with their solution, or demonstrations that work the sum out.

    Raises ValueError for an unknown task, split or setting, another kind, and where reasoning-gym is not installed.
    """
    task = parse_task(source)
    if kind not in (None, "prompt", "demonstration"):
        raise ValueError(f"{source}: a task gives no {kind}; allowed: prompt, demonstration")
    make = demonstration if kind == "demonstration" else prompt
    return tuple(make(a, b, question) for a, b, question in _drawn(task))


def parse_task(source: str) -> Sums:
    """The text after `--data` as settings. Raises ValueError that says what is allowed."""
    found = _SOURCE.fullmatch(source)
    if found is None or found["split"] not in SHARES:
        raise ValueError(f"{source}: no such task; allowed: {_SYNTAX}")
    given: dict[str, int] = {}
    for part in filter(str.strip, (found["settings"] or "").split(",")):
        key, _, value = (piece.strip() for piece in part.partition("="))
        low, high = _LIMITS.get(key, (1, 0))
        if key in given or not value.isdecimal() or not low <= int(value) <= high:
            allowed = ", ".join(f"{k}={a}..{b}" for k, (a, b) in _LIMITS.items())
            raise ValueError(f"{source}: {part.strip()!r} is no setting of it; allowed, each once: {allowed}")
        given[key] = int(value)
    return Sums(cast(Split, found["split"]), **given)


def split_of(a: int, b: int) -> Split:
    """The split that the unordered pair {a, b} belongs to: a hash decides, so no list has to be kept."""
    low, high = sorted((a, b))
    place = int(hashlib.sha256(f"sums/{low}+{high}".encode()).hexdigest()[:8], 16) % 100
    for split in get_args(Split):
        place -= SHARES[split]
        if place < 0:
            return split
    raise AssertionError("the shares sum to 100")


def all_pairs(digits: int) -> list[tuple[int, int]]:
    """Every unordered pair that can come: both operands 0 to 9, or both 10 to 99 (with `digits` 2)."""
    ranges = (range(10), range(10, 100))[:digits]
    return [pair for numbers in ranges for pair in combinations_with_replacement(numbers, 2)]


def prompt(a: int, b: int, question: str) -> Prompt:
    """What the policy is asked; the sum is the solution that rewards compare with."""
    return user(f"{question}\n{FORMAT}", id=f"sums/{a}+{b}", category="sums", solution=str(a + b))


def demonstration(a: int, b: int, question: str) -> Demonstration:
    """The same question with the sum worked out digit by digit, in the format asked for."""
    said = f"<think>{worked(a, b)}</think>\n<answer>{a + b}</answer>"
    return Demonstration((*prompt(a, b, question).messages, Message("assistant", said)), f"sums/{a}+{b}", "sums")


def worked(a: int, b: int) -> str:
    """The column method: `45 + 67` is worked as `5 + 7 = 12, 1 + 4 + 6 = 11`."""
    steps, carry = [], 0
    for x, y in zip(reversed(str(a)), reversed(str(b)), strict=True):
        terms = [*([carry] if carry else []), int(x), int(y)]
        steps.append(f"{' + '.join(map(str, terms))} = {sum(terms)}")
        carry = sum(terms) // 10
    return ", ".join(steps)


def _drawn(task: Sums) -> Iterator[tuple[int, int, str]]:
    """Operands and question of `task.problems` problems, in the generator's order."""
    try:
        from reasoning_gym.arithmetic import ChainSumConfig, ChainSumDataset
    except ImportError:
        raise ValueError(f"task:sums/{task.split} needs reasoning-gym: pip install 'tutelage[tasks]'") from None
    settings = ChainSumConfig(
        min_terms=2, max_terms=2, min_digits=1, max_digits=task.digits, seed=task.seed * SEED_STRIDE
    )
    generated = ChainSumDataset(settings)
    wanted, seen = task.problems, set[tuple[int, int]]()
    for index in count():
        if len(seen) == wanted:
            return
        problem = generated[index]
        found = _SUM.fullmatch(problem["metadata"]["expression"])
        if found is None:  # a subtraction
            continue
        a, b = int(found[1]), int(found[2])
        pair = (min(a, b), max(a, b))
        if split_of(a, b) == task.split and pair not in seen:
            seen.add(pair)
            yield a, b, problem["question"]
