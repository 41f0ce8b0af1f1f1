"""`tutelage refine`: a policy rewrites answers as their critiques ask; what a reward prefers is kept, to train on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from tutelage.config import config
from tutelage.console import say
from tutelage.data.collate import check_prompts
from tutelage.models.sampling import Decoding
from tutelage.records import Answer, AnswerGroup, Critique, Message, Prompt, to_json, write_jsonl
from tutelage.rewards.combine import combine
from tutelage.stages.common import Common, Count, load_actor, out_folder
from tutelage.stages.folders import check_unused
from tutelage.stages.sample import answer
from tutelage.stages.selection import fit_to_imitate, shown
from tutelage.stages.training import load, records_of
from tutelage.statistics import cluster_mean, cluster_share
from tutelage.training.files import write_whole

CRITIQUES, REPORT = "critiques.jsonl", "refine.json"
PLACE = "{critique}"
REQUEST = f"About your answer: {PLACE}\n\nWrite a better answer to my request. Give the answer alone."
HINT = "no critiques: give --data FILE with prompt / response / critique rows (docs/data.md)"

HINT_ANSWERS = "no answers: with --critique give --data answers.jsonl, as `tutelage sample` writes it"


@config
class Refine(Common):
    """Critique -> refinement: the policy reads its answer and a critique, and answers again; `sft` and `prefer` read the result.

    arXiv:2204.14146 (language feedback), with a reward in the place of its choice by similarity.
    """

    reward: tuple[str, ...] = ()
    """What a refinement is judged by (forms as in `rl`): the best one is kept where it beats the original answer.

    Without a reward the first refinement is kept, unjudged."""
    answers: Count = 4
    """Refinements tried for each critique."""
    critique: str | None = None
    """One critique for every answer: `--data` is then answers.jsonl of `sample` (a principle, as in arXiv:2212.08073)."""
    request: str = REQUEST
    """What the user says behind the answer; {critique} stands for the critique."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Randomness of the draw."""
    max_new_tokens: Count = 256
    """Longest refinement, in tokens."""
    limit: Count | None = None
    """Only the first critiques."""


def main(cfg: Refine) -> Path:
    """Run the command; returns the path of critiques.jsonl, whose rows are critiques with rewritten answers."""
    if PLACE not in cfg.request:
        raise ValueError(f"request: the place for the critique is missing; got {cfg.request!r}, which needs {PLACE}")
    critiques = _read(cfg)
    folder = out_folder(cfg, "refine")
    target = folder / CRITIQUES
    check_unused(folder, (CRITIQUES, REPORT), cfg.resume)
    prompts = [one.prompt for one in critiques]
    with ExitStack() as stack:
        rewards = stack.enter_context(combine(cfg.reward, device=cfg.device)) if cfg.reward else None
        if rewards is not None:
            rewards.check(prompts)
        tried = _refinements(cfg, critiques)
        scores = None
        if rewards is not None:
            scores = rewards(
                prompts, [(one.answer, *group.answers) for one, group in zip(critiques, tried, strict=True)]
            )
    refined = _kept(critiques, tried, scores)
    if not refined:
        raise ValueError(
            f"no refinement of {len(critiques)} answers can be kept: {_report(critiques, tried, scores, [])}"
        )
    write_jsonl(target, map(to_json, refined))
    report = _report(critiques, tried, scores, refined)
    write_whole(folder / REPORT, json.dumps(report, indent=1) + "\n")
    say(f"{len(refined)} of {len(critiques)} answers refined, in {target} (`sft` and `prefer` read it)")
    return target


def _read(cfg: Refine) -> list[Critique]:
    """Those that say something of an answer that says something; ValueError where there is none."""
    if cfg.critique is None:
        everything: list[Critique] = records_of(load(cfg.data, "critique", cfg.bad_rows, HINT))
    else:
        groups: list[AnswerGroup] = records_of(load(cfg.data, "group", cfg.bad_rows, HINT_ANSWERS))
        everything = [Critique(group.prompt, one, cfg.critique) for group in groups for one in group.answers]
    critiques = [one for one in everything if one.critique.strip() and one.answer.text.strip()]
    if not critiques:
        raise ValueError(f"none of {len(everything)} critiques has words on an answer that says something")
    return critiques[: cfg.limit]


def request_of(one: Critique, request: str) -> Prompt:
    """The conversation, the answer as the assistant's own, and the critique as the user's next turn."""
    asked = Message("user", request.replace(PLACE, one.critique))
    return replace(one.prompt, messages=(*one.prompt.messages, Message("assistant", one.answer.text), asked))


def best_refinement(original: Answer, answers: Sequence[Answer], scores: Sequence[float] | None) -> Answer | None:
    """The one to train on, as text; None where none will do. `scores` begin with the original's; ties keep the original.

    An answer that was cut, says nothing or repeats the original will not do.
    """
    usable = [i for i, one in enumerate(answers) if fit_to_imitate(one) and one.text != original.text]
    if scores is not None:
        usable = sorted((i for i in usable if scores[1 + i] > scores[0]), key=lambda i: -scores[1 + i])
    # Its ids and log-probs were drawn behind the critique; it will be trained on behind the prompt alone
    return Answer(answers[usable[0]].text, author="refined") if usable else None


def _refinements(cfg: Refine, critiques: Sequence[Critique]) -> list[AnswerGroup]:
    actor = load_actor(cfg, None, trained=False)
    requests = [request_of(one, cfg.request) for one in critiques]
    check_prompts(requests, actor.chat, cfg.max_tokens - cfg.max_new_tokens)
    decoding = Decoding(cfg.max_new_tokens, cfg.temperature)
    return answer(actor, requests, cfg.answers, decoding, seed=f"{cfg.seed}/refine", label="refining")


def _kept(
    critiques: Sequence[Critique], tried: Sequence[AnswerGroup], scores: Sequence[Sequence[float]] | None
) -> list[Critique]:
    rows = scores if scores is not None else [None] * len(critiques)
    best = [best_refinement(one.answer, g.answers, row) for one, g, row in zip(critiques, tried, rows, strict=True)]
    return [replace(one, rewritten=new) for one, new in zip(critiques, best, strict=True) if new is not None]


def _report(
    critiques: Sequence[Critique],
    tried: Sequence[AnswerGroup],
    scores: Sequence[Sequence[float]] | None,
    refined: Sequence[Critique],
) -> dict[str, Any]:
    """How many were kept; with a reward the originals' score, the refinements', and how often a refinement wins (ties 1/2)."""
    found: dict[str, Any] = {
        "critiques": len(critiques),
        "kept": len(refined),
        "unfit": sum(not fit_to_imitate(one) for group in tried for one in group.answers),
    }
    if scores is None:
        return found
    wins = [sum(((s > row[0]) + (s >= row[0])) / 2 for s in row[1:]) / (len(row) - 1) for row in scores]
    return found | {
        "reward/original": shown(cluster_mean([row[0] for row in scores])),
        "reward/refined": shown(cluster_mean([sum(row[1:]) / (len(row) - 1) for row in scores])),
        "refined_wins": shown(cluster_share(wins)),
    }
