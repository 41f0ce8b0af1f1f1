"""Fraction preferred to the reference: answers of two policies to the same prompts, a judge, and an honest interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tutelage.records import Answer, AnswerGroup, Prompt
from tutelage.statistics import Interval, cluster_mean, cluster_share, matched_length_win_rate, win_rate

Judge = Callable[[list[Prompt], list[list[Answer]]], list[list[float]]]
"""Prompts and groups of answers -> a score for each answer; the higher one is preferred."""


@dataclass(frozen=True)
class Comparison:
    """What a judge said of policy against reference, answer k against answer k of the same prompt; ties count 1/2."""

    win_rate: Interval
    ties: float
    matched_length: Interval | None
    score: Interval
    reference_score: Interval


def compare(
    policy: Sequence[AnswerGroup],
    reference: Sequence[AnswerGroup],
    judge: Judge,
    rng: np.random.Generator | None = None,
    tie_margin: float = 1e-9,
) -> Comparison:
    """Judge both sides; intervals are clustered by prompt. `rng` asks for the win rate at equal length too (bootstrap)."""
    return compare_scores(policy, reference, (scores(policy, judge), scores(reference, judge)), rng, tie_margin)


def compare_scores(
    policy: Sequence[AnswerGroup],
    reference: Sequence[AnswerGroup],
    scored: tuple[list[list[float]], list[list[float]]],
    rng: np.random.Generator | None = None,
    tie_margin: float = 1e-9,
) -> Comparison:
    """The same from scores that are there already: (the policy's, the reference's), a list a prompt."""
    assert [g.prompt.key for g in policy] == [g.prompt.key for g in reference], "both sides answer the same prompts"
    ours, theirs = scored
    outcomes, lengths, clusters = [], [], []
    for p, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        for k, (a, b) in enumerate(zip(mine, other, strict=False)):
            outcomes.append(0.5 if abs(a - b) <= tie_margin else float(a > b))
            lengths.append(words(policy[p].answers[k]) - words(reference[p].answers[k]))
            clusters.append(p)
    rate = win_rate(outcomes, clusters)
    return Comparison(
        rate,
        sum(o == 0.5 for o in outcomes) / len(outcomes),
        None if rng is None else matched_length_win_rate(outcomes, lengths, clusters, rng=rng),
        mean_score(ours),
        mean_score(theirs),
    )


def scores(groups: Sequence[AnswerGroup], judge: Judge) -> list[list[float]]:
    """The judge's score of every answer."""
    return judge([group.prompt for group in groups], [list(group.answers) for group in groups])


def words(answer: Answer) -> int:
    """Length as people see it: words."""
    return len(answer.text.split())


def lengths(groups: Sequence[AnswerGroup]) -> dict[str, float]:
    """Mean tokens and words of an answer, and the share that ended by itself."""
    answers = [answer for group in groups for answer in group.answers]
    return {
        "tokens": float(np.mean([len(a.tokens) for a in answers])),
        "words": float(np.mean([words(a) for a in answers])),
        "finished": float(np.mean([a.finished for a in answers])),
    }


def divergence(groups: Sequence[AnswerGroup], reference_logprobs: Sequence[Sequence[float]]) -> Interval:
    """KL(policy || reference) per answer from the policy's own samples (k1), clustered by prompt.

    `reference_logprobs` has a list a row, answer by answer in the groups' order.
    """
    values, clusters, at = [], [], 0
    for p, group in enumerate(groups):
        for answer in group.answers:
            values.append(sum(answer.logprobs) - sum(reference_logprobs[at][: len(answer.tokens)]))
            clusters.append(p)
            at += 1
    return cluster_mean(values, clusters)


def interval(value: Interval | None) -> dict[str, Any] | None:
    """An interval as JSON."""
    return None if value is None else asdict(value)


def mean_score(rows: Sequence[Sequence[float]]) -> Interval:
    """Mean of the answers' scores [P][G], clustered by prompt; where each is 0 or 1 it is a share, and so are its bounds.

    A rule that says right or wrong and finds 0 of 48 right has an interval up to some 7 %, not one of no width.
    """
    values, prompts = [x for row in rows for x in row], [p for p, row in enumerate(rows) for _ in row]
    return (cluster_share if set(values) <= {0.0, 1.0} else cluster_mean)(values, prompts)
