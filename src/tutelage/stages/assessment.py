"""Scoring models from answers judged alone: a classifier, a regression, or the outcome value of every prefix."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch

from tutelage.algorithms.assessment import Classifier, Regression
from tutelage.algorithms.outcome_value import OutcomeValue
from tutelage.console import say
from tutelage.data.chat import Chat
from tutelage.data.collate import ratings
from tutelage.data.readers import Loaded
from tutelage.evaluation.assessment_report import rating_report, yes_no_report
from tutelage.functional.prefixes import prefix_mask
from tutelage.models.heads import ScalarModel
from tutelage.models.prefixes import PrefixReader
from tutelage.records import AnswerGroup, Rating
from tutelage.rewards.combine import combine
from tutelage.stages.pairs import by_prompt, load_split, split_loaded
from tutelage.stages.parts import in_parts
from tutelage.stages.scoring import new_scorer, reading_chat, scoring_task
from tutelage.stages.training import Ready, load, records_of, stream_of
from tutelage.training.run import Run

RATED = (Classifier, Regression, OutcomeValue)
"""Methods that learn from answers judged alone."""
NO_ANSWERS = "no answers: with --labels, --data is an answers.jsonl (`tutelage sample` writes one)"
FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""How much of an answer an outcome value model has read where it is examined."""


def load_rated(cfg: Any) -> tuple[tuple[Loaded, ...], list[Rating]]:
    """(trained on, held out) from labels in the data, or from sampled answers that the rewards `labels` score here."""
    if not cfg.labels:
        training, heldout = load_split(cfg, "rating")
    else:
        with combine(cfg.labels, device=cfg.device) as rewards:

            def labelled(sources: tuple[str, ...]) -> tuple[Loaded, ...]:
                loaded = load(sources, "group", cfg.bad_rows, NO_ANSWERS)
                rewards.check(group.prompt for group in records_of(loaded))
                return tuple(replace(one, records=_scored(one.records, rewards), kind="rating") for one in loaded)

            training, heldout = split_loaded(cfg, labelled(cfg.data), labelled(cfg.heldout) if cfg.heldout else None)
    check_labels(cfg.algorithm, records_of(training), heldout)
    return training, heldout


def _scored(groups: Sequence[Any], rewards: Any) -> tuple[Rating, ...]:
    """Every answer with the reward that it gets, on a scale from the lowest to the highest."""
    known = cast(Sequence[AnswerGroup], groups)
    scores, _ = rewards.score([group.prompt for group in known], [list(group.answers) for group in known])
    flat = [score for row in scores for score in row]
    scale = (min(flat), max(flat)) if min(flat) < 0 or max(flat) > 1 else (0.0, 1.0)
    return tuple(
        Rating(group.prompt, answer, score, scale)
        for group, row in zip(known, scores, strict=True)
        for answer, score in zip(group.answers, row, strict=True)
    )


def check_labels(method: Any, training: Sequence[Rating], heldout: Sequence[Rating]) -> None:
    """Raises ValueError for labels that the method cannot learn from: off its scale, on several scales, or all the same."""
    probability = method.output == "probability"
    for record in (*training, *heldout):
        if probability and not 0 <= record.score <= 1:
            raise ValueError(
                f"record that begins {record.prompt.text[:60]!r}: {method.name} learns a probability from labels between no (0) "
                f"and yes (1); got {record.score:g} on the scale {record.scale[0]:g} to {record.scale[1]:g}; for ratings "
                "take --algorithm regression"
            )
    scales = sorted({record.scale for record in training})
    if not probability and len(scales) > 1:
        raise ValueError(f"{method.name}: ratings on one scale are needed; got the scales {scales[:4]}")
    if len({record.score for record in training}) == 1:
        raise ValueError(f"{method.name}: every label is {training[0].score:g}: there is nothing to tell apart")


def ready_rated(cfg: Any, training: Sequence[Loaded], heldout: Sequence[Rating]) -> tuple[Ready[Rating], ScalarModel]:
    """The task, with the data checked and the model loaded."""
    records: list[Rating] = records_of(training)
    chat = reading_chat(cfg, closed=not isinstance(cfg.algorithm, OutcomeValue))  # a prefix has no closing
    checked = ratings(records, chat, cfg.max_tokens)
    say(f"{len(records)} labelled answers to train on, {len(heldout)} held out ({dict(checked.counts)})")
    module = new_scorer(cfg)
    if cfg.algorithm.output == "score":
        start_at_mean(module, records)
    draw_groups, epoch = stream_of(training, cfg.batch_size, cfg.seed, by_prompt)

    def draw(step: int) -> tuple[Any, dict[str, float]]:
        return ratings([record for group in draw_groups(step) for record in group], chat, cfg.max_tokens).batch, {}

    reader = PrefixReader(module, cfg.optimization.pass_tokens)
    task = scoring_task(cfg, reader, draw, epoch, f"training ({cfg.algorithm.name})")
    return Ready(task, chat, records, checked), module


def start_at_mean(module: ScalarModel, records: Sequence[Rating]) -> None:
    """The untrained head says the mean rating, and a raw score of 1 is one standard deviation of the ratings."""
    labels = np.array([record.score for record in records])
    module.head.shift, module.head.scale = float(-labels.mean() / labels.std()), float(1 / labels.std())


def report_rated(cfg: Any, module: ScalarModel, chat: Chat, heldout: Sequence[Rating], run: Run) -> None:
    """Write reward.json: how good the scores are on held-out prompts, and the outcome value by how much it has read."""
    reader, probability = PrefixReader(module, cfg.optimization.pass_tokens), cfg.algorithm.output == "probability"
    place = next(module.parameters()).device
    batch = ratings(heldout, chat, cfg.max_tokens).batch.to(place)
    assert len(batch) == len(heldout), "a held-out answer was left out"
    examine = yes_no_report if probability else rating_report

    def seen(scores: torch.Tensor) -> list[float]:
        return (scores.sigmoid() if probability else scores).float().cpu().tolist()

    label = "reading held-out answers"
    if isinstance(cfg.algorithm, OutcomeValue):
        found = _at_fractions(in_parts(batch.answers, reader.prefix_values, label), batch.answers)
        report = examine(heldout, seen(found[1.0]), cfg.seed)
        report["read"] = {f"{part:g}": examine(heldout, seen(found[part]), cfg.seed) for part in FRACTIONS}
    else:
        report = examine(heldout, seen(in_parts(batch.answers, reader.scores, label)), cfg.seed)
    (run.folder / "reward.json").write_text(json.dumps(report, indent=1))
    say(_line(report))


def _at_fractions(values: torch.Tensor, answers: Any) -> dict[float, torch.Tensor]:
    """Values [B, T+1] -> for each of FRACTIONS the value of the longest prefix within that part of the answer.  [B] each"""
    prefixes = prefix_mask(answers.mask, answers.lengths)
    columns = torch.arange(values.shape[1], device=values.device)
    found = {}
    for part in FRACTIONS:
        within = prefixes & (columns <= (part * answers.lengths)[:, None])
        first = prefixes.int().argmax(1)
        place = torch.where(within, columns, -1).amax(1)
        found[part] = values.gather(1, torch.where(place < 0, first, place)[:, None])[:, 0]
    return found


def _line(report: dict[str, Any]) -> str:
    """The headline for the console."""
    names = [
        name for name in ("auc", "accuracy", "absolute_error", "explained", "rank_correlation") if report.get(name)
    ]
    shown = [
        f"{n.replace('_', ' ')} {report[n]['estimate']:.3f} [{report[n]['low']:.3f}, {report[n]['high']:.3f}]"
        for n in names
    ]
    return "held out: " + ", ".join([*shown, *([f"Brier {report['brier']:.3f}"] if "brier" in report else [])])
