"""Rules: rewards that read the answer's text and nothing else. The names that recipes use are at the end of the file."""

from __future__ import annotations

import re

from tutelage.records import Answer, Prompt
from tutelage.rewards.base import Reward, known_solution
from tutelage.rewards.maths import final_answer, gsm8k, same_number
from tutelage.rewards.votes import majority

_THINK_ANSWER = re.compile(r"\s*<think>(?P<think>.*?)</think>\s*<answer>(?P<answer>.*?)</answer>\s*", re.DOTALL)
_TAG = re.compile(r"</?(?:think|answer)>")


def brevity(prompt: Prompt, answers: list[Answer], *, half: float = 50.0) -> list[float]:
    """1 / (1 + words / half): a half at `half` words. An empty answer says nothing and scores 0."""
    return [1 / (1 + words(answer) / half) if words(answer) else 0.0 for answer in answers]


def length_penalty(prompt: Prompt, answers: list[Answer], *, target: float = 100.0, span: float = 100.0) -> list[float]:
    """0 up to `target` words, then falling in a line to -1 at `target + span`, and no lower.

    The soft overlong punishment of DAPO (arXiv:2503.14476, eq. 13), in words, so that it means the same for every tokenizer.
    """
    return [0.0 - min(max(words(answer) - target, 0.0) / span, 1.0) for answer in answers]


def finished(prompt: Prompt, answers: list[Answer]) -> list[float]:
    """1 if the answer ended by itself, 0 if the token limit cut it."""
    return [float(answer.finished) for answer in answers]


def five_lines(prompt: Prompt, answers: list[Answer], *, lines: int = 5) -> list[float]:
    """-|n - lines| / lines for n lines with something in them, and no lower than -1: 0 for exactly five, -0.2 for four or six."""
    return [0.0 - min(abs(_lines(answer) - lines) / lines, 1.0) for answer in answers]


def think_answer_format(prompt: Prompt, answers: list[Answer]) -> list[float]:
    """1 for `<think>...</think>` then `<answer>...</answer>`, both with something in them, and nothing else; otherwise 0.

    The format reward of R1-Zero (arXiv:2501.12948, table 1). White space around the two is allowed.
    """
    return [float(_tagged(answer) is not None) for answer in answers]


def answer_tag_match(prompt: Prompt, answers: list[Answer]) -> list[float]:
    """1 if the last `<answer>` says the prompt's solution, as a number or word by word; 0 without such a tag."""
    solution = known_solution("answer_tag_match", prompt)
    return [float(_matches(_in_tag(answer), solution)) for answer in answers]


def sums(prompt: Prompt, answers: list[Answer]) -> list[float]:
    """The same, but an answer without the tag counts by its last number: fair to a model that never saw the format."""
    solution = known_solution("sums", prompt)
    said = (_in_tag(answer) if "<answer>" in answer.text else final_answer(answer.text) for answer in answers)
    return [float(_matches(text, solution)) for text in said]


def words(answer: Answer) -> int:
    """Length as people see it."""
    return len(answer.text.split())


def _lines(answer: Answer) -> int:
    return sum(bool(line.strip()) for line in answer.text.splitlines())


def _tagged(answer: Answer) -> re.Match[str] | None:
    """The match of the whole answer with the two tags, each once and not empty."""
    found = _THINK_ANSWER.fullmatch(answer.text)
    if found is None or len(_TAG.findall(answer.text)) != 4:
        return None
    return found if found["think"].strip() and found["answer"].strip() else None


def _in_tag(answer: Answer) -> str | None:
    """What the last `<answer>` holds; None where it is not closed."""
    inside, closed, _ = answer.text.rpartition("<answer>")[2].partition("</answer>")
    return inside if closed and "<answer>" in answer.text else None


def _matches(said: str | None, solution: str) -> bool:
    if said is None:
        return False
    agree = same_number(said, solution)
    return said.split() == solution.split() if agree is None else agree


REWARDS: dict[str, Reward] = {
    "brevity": brevity,
    "length_penalty": length_penalty,
    "finished": finished,
    "five_lines": five_lines,
    "think_answer_format": think_answer_format,
    "answer_tag_match": answer_tag_match,
    "sums": sums,
    "gsm8k": gsm8k,
    "majority": majority,
}
NEED_SOLUTION = frozenset({"answer_tag_match", "sums", "gsm8k"})
