"""`tutelage evaluate`: a policy against another on held-out prompts, by one or several judges, with intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from tutelage.config import config, dump
from tutelage.console import say, warn
from tutelage.data.collate import check_prompts, prompts_and_answers
from tutelage.evaluation.winrate import compare_scores, divergence, interval, lengths, mean_score
from tutelage.models.load import load_policy, load_tokenizer
from tutelage.models.logprobs import CausalModel
from tutelage.models.sampling import Decoding
from tutelage.records import AnswerGroup, Prompt, to_json, write_jsonl
from tutelage.rewards.pairwise import TwoAnswerModel
from tutelage.stages.common import Actor, Common, Count, load_actor, out_folder, precision
from tutelage.stages.exploit import exploitability, first_preference, load_judges, scored_by
from tutelage.stages.folders import check_unused
from tutelage.stages.parts import in_parts
from tutelage.stages.sample import answer, load_prompts, read_groups, write_groups
from tutelage.statistics import paired_difference
from tutelage.training.files import write_whole

WRITTEN = ("answers.jsonl", "samples.jsonl", "evaluation.json", "config.yaml")
LENGTHS = 2.0
"""How many times as long as the other side's answers ours may be, or theirs as ours, before it is said aloud."""


@config
class Evaluate(Common):
    """Answer held-out prompts and let judges score the answers, alone or against another policy's."""

    against: str | None = None
    """The other policy: a model, a run folder, or the answers.jsonl that it gave to the same prompts."""
    reference: str | None = None
    """Where to measure the KL to, if not `--against` itself (needed with an answers.jsonl)."""
    judge: tuple[str, ...] = ("gold",)
    """`gold` (the quickstart's hidden rule), a rule's name, an import path, a reward model's or a preference model's folder."""
    rivals: tuple[str, ...] = ()
    """Policies (or a run's `pool` folder) to measure exploitability against, by the first preference model or judge."""
    responses: tuple[str, ...] = ()
    """Policies that were trained to beat `--model` (`rl --algorithm best_response`)."""
    answers: Count = 1
    """Answers to each prompt."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Randomness of the draw; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus: only the likeliest tokens that make up this probability."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Only the likeliest k tokens; 0: all."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer (`--stop "Question:"`); its text is cut before them."""
    max_new_tokens: Count = 256
    """Longest answer, in tokens."""
    limit: Count | None = None
    """Only the first prompts."""
    announce: bool = True
    """Print the results; they are written to evaluation.json all the same."""


def main(cfg: Evaluate) -> Path:
    """Run the command; returns the folder, which holds evaluation.json, answers.jsonl and samples.jsonl."""
    prompts, other = _prompts(cfg)
    folder = out_folder(cfg, "evaluate")
    check_unused(folder, WRITTEN, cfg.resume)
    judges = load_judges(cfg)
    actor = load_actor(cfg, None, trained=False, temperature=cfg.temperature or 1.0)
    check_prompts(prompts, actor.chat, cfg.max_tokens - cfg.max_new_tokens)
    decoding = Decoding(cfg.max_new_tokens, cfg.temperature, cfg.top_p, top_k=cfg.top_k, stop=cfg.stop)
    if other is None and cfg.against is not None:
        rival = load_actor(_with_model(cfg), None, trained=False)
        other = answer(rival, prompts, cfg.answers, decoding, seed=f"{cfg.seed}/against", label="the other answers")
    ours = answer(actor, prompts, cfg.answers, decoding, seed=f"{cfg.seed}/evaluate", label="answering")
    scored = {
        name: scored_by(one, ours, other)
        for name, one in judges.items()
        if other is not None or not isinstance(one, TwoAnswerModel)
    }  # once: a reward model reads every answer
    found: dict[str, Any] = {"prompts": len(prompts), "answers": cfg.answers, "policy": lengths(ours)}
    found["judges"] = {name: report(one, ours, other, cfg.seed) for name, one in scored.items()}
    if other is not None:
        found["against"] = lengths(other)
    base = cfg.reference or (cfg.against if cfg.against and not cfg.against.endswith(".jsonl") else None)
    if base is not None and cfg.temperature > 0 and not decoding.truncates:
        found["kl"] = interval(divergence(ours, base_logprobs(cfg, base, ours, actor)))
    if cfg.rivals or cfg.responses:
        found["exploitability"] = exploitability(cfg, prompts, ours, decoding, first_preference(judges))
    folder.mkdir(parents=True, exist_ok=True)
    write_groups(folder / "answers.jsonl", ours)
    write_jsonl(folder / "samples.jsonl", _samples(ours, other, scored))
    dump(cfg, folder / "config.yaml", command="evaluate")
    write_whole(folder / "evaluation.json", json.dumps(found, indent=1) + "\n")
    if cfg.announce:
        for name, one in found["judges"].items():
            say(_line(name, one))
        told = length_warning(found)
        if told:
            warn(told)
    return folder


def length_warning(found: Mapping[str, Any]) -> str:
    """A warning where the two sides' answers are of very different lengths, which a judge may pay for; otherwise nothing."""
    if "against" not in found:
        return ""
    ours, theirs = found["policy"]["words"], found["against"]["words"]
    if theirs / LENGTHS <= ours <= theirs * LENGTHS:
        return ""
    return (
        f"the answers have {ours:.1f} words on average, the other side's {theirs:.1f}: read samples.jsonl and look at "
        "`matched_length` before you believe the win rate"
    )


Scored = tuple[list[list[float]], list[list[float]] | None]
"""A judge's scores of our answers and, where there is another side, of its answers."""


def report(scored: Scored, ours: list[AnswerGroup], other: list[AnswerGroup] | None, seed: int) -> dict[str, Any]:
    """What a judge says: mean score; against another policy win rate, ties, equal-length win rate, paired difference."""
    mine, theirs = scored
    if other is None or theirs is None:
        return {"score": interval(mean_score(mine))}
    found = compare_scores(ours, other, (mine, theirs), np.random.default_rng(seed))
    return {
        "win_rate": interval(found.win_rate),
        "ties": found.ties,
        "matched_length": interval(found.matched_length),
        "score": interval(found.score),
        "against_score": interval(found.reference_score),
        "difference": interval(paired_difference(_means(mine), _means(theirs))),
    }


def _means(rows: list[list[float]]) -> list[float]:
    """A prompt's mean score, prompt by prompt."""
    return [float(np.mean(row)) for row in rows]


def base_logprobs(cfg: Evaluate, base: str, groups: list[AnswerGroup], actor: Actor) -> list[list[float]]:
    """Log-probs of the answers under the model that the KL is measured to. Raises ValueError for another vocabulary."""
    if load_tokenizer(base, ("policy",)).get_vocab() != actor.tokenizer.get_vocab():
        raise ValueError(f"the KL to {base} is not defined: it splits text into other tokens than {cfg.model}")
    module = load_policy(base, dtype=precision(cfg.dtype, cfg.device), device=cfg.device)
    rows = prompts_and_answers(groups, actor.chat)
    return in_parts(rows, CausalModel(module, cfg.temperature).logprobs, f"reading the answers with {base}").tolist()


def _with_model(cfg: Evaluate) -> Evaluate:
    from dataclasses import replace

    assert cfg.against is not None
    return replace(cfg, model=cfg.against)


def _prompts(cfg: Evaluate) -> tuple[list[Prompt], list[AnswerGroup] | None]:
    """The prompts, and the other side's answers where they come as a file."""
    if cfg.against is None or not cfg.against.endswith(".jsonl"):
        return load_prompts(cfg.data, cfg.bad_rows)[: cfg.limit], None
    groups = read_groups(cfg.against)[: cfg.limit]
    if not groups:
        raise ValueError(f"{cfg.against}: no answers in it")
    return [group.prompt for group in groups], [AnswerGroup(g.prompt, g.answers[: cfg.answers]) for g in groups]


def _samples(
    ours: list[AnswerGroup], other: list[AnswerGroup] | None, scored: dict[str, Scored], count: int = 20
) -> list[dict[str, Any]]:
    """The first prompts with both sides' first answers and their scores."""
    rows = []
    for p, group in enumerate(ours[:count]):
        row: dict[str, Any] = {"prompt": to_json(group.prompt)["messages"], "policy": group.answers[0].text}
        if other is not None:
            row["against"] = other[p].answers[0].text
        for name, (mine, theirs) in scored.items():
            row[f"{name}_policy"] = mine[p][0]
            if theirs is not None:
                row[f"{name}_against"] = theirs[p][0]
        rows.append(row)
    return rows


def _line(name: str, one: dict[str, Any]) -> str:
    shown = one.get("win_rate") or one["score"]
    what = "win rate" if "win_rate" in one else "mean score"
    return f"{name}: {what} {shown['estimate']:.3f} [{shown['low']:.3f}, {shown['high']:.3f}] (n={shown['n']})"
