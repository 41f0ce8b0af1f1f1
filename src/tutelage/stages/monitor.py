"""Watching a policy while it trains: answers to held-out prompts, judged against the reference's answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tutelage.config import config
from tutelage.data.collate import prompts_and_answers
from tutelage.evaluation.gold import gold_score
from tutelage.evaluation.winrate import Comparison, Judge, compare, divergence, lengths
from tutelage.models.sampling import Decoding
from tutelage.records import Answer, AnswerGroup, Prompt
from tutelage.rewards.combine import resolve_judge
from tutelage.rewards.rules import REWARDS
from tutelage.stages.common import Actor, Count
from tutelage.stages.sample import read_groups
from tutelage.training.loop import Hook


@config
class Monitor:
    """Win rates over training; off where `against` is not given. It chooses nothing: the last step is the result."""

    against: str | None = None
    """answers.jsonl of the reference to held-out prompts (`tutelage sample` writes one)."""
    judges: tuple[str, ...] = ("gold",)
    """Who compares: `gold` (the quickstart's hidden rule), a reward's name, a reward model's folder."""
    every: Count = 5
    """Steps between two looks."""
    prompts: Count = 60
    """How many of the held-out prompts a look takes (one answer each)."""
    max_new_tokens: Count = 48
    """Longest answer, in tokens."""


def judge(name: str) -> Judge:
    """A judge by name: `gold`, a rule of rewards/, an import path or a reward model's folder."""
    return gold if name == "gold" else resolve_judge(name)


def gold(prompts: list[Prompt], groups: list[list[Answer]]) -> list[list[float]]:
    """The hidden gold rule as a judge."""
    return [[gold_score(prompt, answer) for answer in group] for prompt, group in zip(prompts, groups, strict=True)]


def judges_of(names: Sequence[str], known: Mapping[str, Judge] | None = None) -> dict[str, Judge]:
    """Judges by their name in metrics: a rule's own name, `reward` for a model's folder (`reward_2` for the second).

    `known` are judges that are loaded already, by the name they were asked for.
    """
    found: dict[str, Judge] = {}
    for name in names:
        label = name if name == "gold" or name in REWARDS else "reward"
        count = sum(key == label or key.startswith(f"{label}_") for key in found)
        found[f"{label}_{count + 1}" if count else label] = (known or {}).get(name) or judge(name)
    return found


def monitor_hooks(
    settings: Monitor, actor: Actor, seed: int, judges: Mapping[str, Judge] | None = None
) -> tuple[Hook, ...]:
    """The loop's hook, or none where there is nothing to compare with."""
    if settings.against is None:
        return ()
    reference = [AnswerGroup(g.prompt, g.answers[:1]) for g in read_groups(settings.against)[: settings.prompts]]
    known = judges_of(settings.judges) if judges is None else judges

    def look(step: int) -> Mapping[str, float]:
        return look_at(actor, reference, known, settings, f"{seed}/monitor {step}")

    return (Hook(settings.every, look),)


def look_at(
    actor: Actor, reference: list[AnswerGroup], judges: Mapping[str, Judge], settings: Monitor, seed: str
) -> dict[str, float]:
    """Metrics of one look, under `eval/`."""
    decoding = Decoding(settings.max_new_tokens, actor.policy.temperature)
    tokens = [actor.chat.prompt_tokens(group.prompt) for group in reference]
    answers = actor.decoder.sample(tokens, 1, decoding, seed)
    groups = [AnswerGroup(g.prompt, tuple(a)) for g, a in zip(reference, answers, strict=True)]
    kl = divergence(groups, reference_logprobs(actor, groups))
    size = lengths(groups)
    metrics = {"eval/kl": kl.estimate, "eval/length": size["tokens"], "eval/finished": size["finished"]}
    for name, one in judges.items():
        metrics |= figures(name, compare(groups, reference, one))
    return metrics


def figures(name: str, found: Comparison) -> dict[str, float]:
    """A comparison as metrics."""
    rate = found.win_rate
    return {
        f"eval/win_{name}": rate.estimate,
        f"eval/win_{name}_low": rate.low,
        f"eval/win_{name}_high": rate.high,
        f"eval/score_{name}": found.score.estimate,
    }


def reference_logprobs(actor: Actor, groups: Sequence[AnswerGroup]) -> list[list[float]]:
    """The reference's log-probs of the policy's answers, a list a row."""
    batch = prompts_and_answers(groups, actor.chat)
    with torch.no_grad():
        return actor.reference.logprobs(batch).tolist()


def curve(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """metrics.jsonl rows -> the points of the win-rate curve, from 1/2 at step 0."""
    start = {"step": 0, "win_gold": 0.5, "win_reward": 0.5, "kl": 0.0}
    points = [
        {"step": row["step"] + 1, **{k.removeprefix("eval/"): v for k, v in row.items() if k.startswith("eval/")}}
        for row in rows
        if any(k.startswith("eval/") for k in row)
    ]
    return [start, *points]
