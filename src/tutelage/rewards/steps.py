"""Process rewards: an answer cut into steps, each scored as the answer that it would be if it ended there."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace

from tutelage.records import Answer, Prompt
from tutelage.rewards.base import Grid

Decode = Callable[[Sequence[int]], str]
Judge = Callable[[Sequence[Prompt], Sequence[Sequence[Answer]]], Grid]


def step_prefixes(answer: Answer, decode: Decode) -> list[Answer]:
    """The answer up to the end of each line with something in it; the last one is the whole answer, its stop token too.

    A prefix ends with the token in which its line ends (found by decoding: ids are kept, text is a view of them), and has
    the stop reason "length", since its author went on. Lines that end in the same token are one step.
    """
    tokens = answer.tokens
    if not tokens:
        return []
    ends, at = [], 0
    for line in answer.text.split("\n"):
        at += len(line) + 1
        if line.strip():
            ends.append(at - 1)

    def whole(count: int) -> int:
        """Characters that the first tokens say, without a last one of which some bytes are still to come."""
        return len(decode(tokens[:count]).rstrip("\ufffd"))

    counts = {bisect_left(range(len(tokens)), end, key=whole) for end in ends[:-1]}
    inner = sorted(n for n in counts if 0 < n < len(tokens))
    prefixes = [
        replace(answer, text=decode(tokens[:n]), tokens=tokens[:n], logprobs=answer.logprobs[:n], stop_reason="length")
        for n in inner
    ]
    return [*prefixes, answer]


def score_steps(
    judge: Judge, decode: Decode, prompts: Sequence[Prompt], groups: Sequence[Sequence[Answer]]
) -> list[list[list[tuple[int, float]]]]:
    """For each answer its steps as (tokens when the step ends, reward): any reward, asked about every prefix.

    The whole answer is the last prefix, so a reward for being right comes in as the last step's.
    """
    cut = [[step_prefixes(answer, decode) for answer in group] for group in groups]
    scores = judge(prompts, [[prefix for steps in group for prefix in steps] for group in cut])
    found = []
    for group, row in zip(cut, scores, strict=True):
        left = iter(row)
        found.append([[(len(prefix.tokens), next(left)) for prefix in steps] for steps in group])
    return found
