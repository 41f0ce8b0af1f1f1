"""Final answers as votes: answers that end alike vote alike, and the majority is a label where no solution is known."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from tutelage.records import Answer, Prompt
from tutelage.rewards.maths import final_answer, number

_TAG = re.compile(r".*<answer>(.*?)</answer>", re.DOTALL)


def majority(prompt: Prompt, answers: list[Answer], *, quorum: float = 0.0) -> list[float]:
    """1 for the answers of the group that end with its commonest final answer, else 0. The prompt's solution is not read.

    Self-training on self-consistency (arXiv:2210.11610; as a reward of reinforcement learning: arXiv:2504.16084). All 0
    where two final answers are equally common, where the commonest has one vote, or less than `quorum` of all answers.
    """
    finals = final_answers(answers)
    winner = majority_answer(finals, quorum)
    return [float(winner is not None and final == winner) for final in finals]


def majority_answer(finals: Sequence[str | None], quorum: float = 0.0) -> str | None:
    """The one with the most votes, at least two and at least `quorum` of all; None where there is none such, or a tie."""
    first = Counter(final for final in finals if final is not None).most_common(2)
    if not first or (len(first) == 2 and first[0][1] == first[1][1]):
        return None
    return first[0][0] if first[0][1] >= max(2.0, quorum * len(finals)) else None


def final_answers(answers: Sequence[Answer]) -> list[str | None]:
    """What each answer ends with: inside its last `<answer>` tag, else by the rules of `final_answer`; numbers by value."""
    return [_canonical(_said(answer.text)) for answer in answers]


def _said(text: str) -> str | None:
    tagged = _TAG.match(text)
    return tagged[1] if tagged else final_answer(text)


def _canonical(said: str | None) -> str | None:
    if said is None or not said.strip():
        return None
    found = number(said)
    return " ".join(said.split()) if found is None else f"{found.value}{'%' if found.percent else ''}"
