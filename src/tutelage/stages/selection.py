"""Rejection sampling off line: rewards choose among sampled answers, the chosen ones become demonstrations, with a report."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tutelage.algorithms.best_of_n import kl_bound
from tutelage.console import say
from tutelage.records import Answer, AnswerGroup, Demonstration, Message, to_json, write_jsonl
from tutelage.rewards.base import Grid
from tutelage.statistics import Interval, best_of_n_unbiased, cluster_mean
from tutelage.training.files import write_whole

DEMONSTRATIONS, REPORT = "demonstrations.jsonl", "best_of_n.json"
Keep = Literal["best"] | float


def kept_of(keep: Keep, answers: int) -> int:
    """How many of a group's answers are kept: one, or a share rounded up to whole answers."""
    return 1 if keep == "best" else math.ceil(keep * answers)


def fit_to_imitate(answer: Answer) -> bool:
    """False for an empty answer, and for one that was cut: imitating it would teach to stop there."""
    return answer.finished and bool(answer.text.strip())


def chosen(group: AnswerGroup, scores: Sequence[float], count: int, at_least: float | None, lot: str) -> list[Answer]:
    """At most `count` answers with the highest scores among those fit to imitate; equals by a lot that `lot` decides."""
    order = list(range(len(scores)))
    random.Random(lot).shuffle(order)
    best = sorted(order, key=lambda i: -scores[i])
    good = [i for i in best if fit_to_imitate(group.answers[i]) and (at_least is None or scores[i] >= at_least)]
    return [group.answers[i] for i in good[:count]]


def write_demonstrations(
    folder: Path, groups: Sequence[AnswerGroup], scores: Grid, keep: Keep, *, at_least: float | None, seed: int
) -> list[Demonstration]:
    """demonstrations.jsonl, which `sft` reads, and best_of_n.json: what choosing among n is worth, for n = 1..N.

    Raises ValueError where no answer is chosen.
    """
    count = kept_of(keep, len(scores[0]))
    picked = [
        chosen(group, row, count, at_least, f"{seed}/keep {number}")
        for number, (group, row) in enumerate(zip(groups, scores, strict=True))
    ]
    rows = [_shown(group, one) for group, some in zip(groups, picked, strict=True) for one in some]
    fates = Counter(fate(a, s, at_least) for g, row in zip(groups, scores, strict=True) for a, s in zip(g.answers, row, strict=True))  # fmt: skip
    if not rows:
        raise ValueError(
            f"none of {sum(fates.values())} answers can be kept ({dict(fates)}); lower --at-least, or raise --max-new-tokens"
        )
    report = {
        "prompts": len(groups),
        "prompts_without_a_kept_answer": sum(not some for some in picked),
        "kept": len(rows),
        "answers": dict(fates),
        "kl_at_most": kl_bound(len(scores[0]), count),
        "curve": curve(scores),
    }
    write_jsonl(folder / DEMONSTRATIONS, map(to_json, rows))
    write_whole(folder / REPORT, json.dumps(report, indent=1) + "\n")
    first, last = report["curve"][0]["reward"]["estimate"], report["curve"][-1]["reward"]["estimate"]
    say(
        f"{len(rows)} demonstrations from {len(groups)} prompts in {folder / DEMONSTRATIONS}; reward {first:.3f}, best of "
        f"{len(scores[0])} {last:.3f} ({REPORT})"
    )
    return rows


def curve(scores: Grid) -> list[dict[str, Any]]:
    """For n = 1..N the unbiased reward of the best of n, with a 95 % interval over prompts, and a bound of its KL in nats.

    All answers are in it, those that are unfit to imitate too: it speaks of the policy's best of n by this reward.
    """
    found = []
    for n in range(1, len(scores[0]) + 1):
        reward = cluster_mean([best_of_n_unbiased(row, row, n) for row in scores])
        found.append({"n": n, "reward": shown(reward), "kl_at_most": kl_bound(n, 1)})
    return found


def shown(found: Interval) -> dict[str, Any]:
    """An interval for a JSON file; of a single prompt there are no bounds."""
    bounded = found.clusters > 1
    return {
        "estimate": found.estimate,
        "low": found.low if bounded else None,
        "high": found.high if bounded else None,
        "prompts": found.clusters,
    }


def fate(answer: Answer, score: float, at_least: float | None) -> str:
    """Whether an answer could be chosen, and why not."""
    if not fit_to_imitate(answer):
        return "empty" if answer.finished else "cut"
    return "below at_least" if at_least is not None and score < at_least else "fit"


def _shown(group: AnswerGroup, answer: Answer) -> Demonstration:
    messages = (*group.prompt.messages, Message("assistant", answer.text))
    return Demonstration(messages, group.prompt.id, group.prompt.category)
