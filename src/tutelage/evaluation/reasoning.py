"""What one watches while a policy learns to reason: accuracy, maj@K, pass@K, length and the rate of reflection words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from tutelage.records import Answer
from tutelage.rewards.votes import final_answers
from tutelage.statistics.best_of_n import pass_at_k

REFLECTION = ("wait", "mistake", "however", "but", "retry", "error", "verify", "wrong", "evaluate", "check")
"""The words that DeepSeek-R1 counts (arXiv:2501.12948, "Self-evolution of DeepSeek-R1-Zero")."""
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")


def reasoning_metrics(groups: Sequence[Sequence[Answer]], correct: Sequence[Sequence[bool]]) -> dict[str, float]:
    """Means over prompts, K being the answers to a prompt; `correct[p][k]` says whether answer k was right.

    `accuracy`: share of right answers; `maj_at_k`: chance that the majority's final answer is right (ties drawn by lot);
    `pass_at_k`: share of prompts with a right answer among K; `length` in tokens; `reflection`: reflection words per
    thousand words.
    """
    majority = [majority_accuracy(final_answers(g), c) for g, c in zip(groups, correct, strict=True)]
    passed = [pass_at_k(len(c), sum(c), len(c)) for c in correct]
    flat = [right for row in correct for right in row]
    answers = [answer for group in groups for answer in group]
    return {
        "accuracy": sum(flat) / len(flat),
        "maj_at_k": sum(majority) / len(majority),
        "pass_at_k": sum(passed) / len(passed),
        "length": sum(len(answer.tokens) for answer in answers) / len(answers),
        "reflection": reflection_rate([answer.text for answer in answers]),
    }


def majority_accuracy(finals: Sequence[str | None], correct: Sequence[bool]) -> float:
    """Chance that a majority vote over final answers is right; an answer without one does not vote (none at all: 0).

    Self-consistency (arXiv:2203.11171). Of several answers with the most votes one is drawn by lot.
    """
    votes = Counter(final for final in finals if final is not None)
    if not votes:
        return 0.0
    winners = {final for final, count in votes.items() if count == max(votes.values())}
    right = {final for final, good in zip(finals, correct, strict=True) if good}
    return len(winners & right) / len(winners)


def reflection_rate(texts: Sequence[str]) -> float:
    """Reflection words per thousand words of all texts together."""
    words = [word.lower() for text in texts for word in _WORD.findall(text)]
    return 1000 * sum(word in REFLECTION for word in words) / max(len(words), 1)
