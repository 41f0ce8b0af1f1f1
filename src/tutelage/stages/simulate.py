"""`tutelage simulate`: simulated annotators rank answers by the hidden gold rule, with known faults."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from tutelage.config import config
from tutelage.console import say
from tutelage.evaluation.gold import gold_score
from tutelage.evaluation.winrate import interval
from tutelage.feedback.simulated import LABELLERS, compare_all
from tutelage.records import Answer, Comparison, Prompt, to_json, write_jsonl
from tutelage.stages.folders import check_unused
from tutelage.stages.sample import read_groups
from tutelage.statistics import cluster_share, krippendorff_alpha, pairwise_agreement
from tutelage.training.files import write_whole


@config
class Simulate:
    """Simulated feedback, never to be taken for people's: what it is worth is known, because the truth is."""

    data: str
    """answers.jsonl of `tutelage sample`."""
    heldout: str | None = None
    """answers.jsonl to other prompts, to test a reward model on."""
    out: str
    """The folder for comparisons.jsonl, heldout.jsonl and feedback.json."""
    overlap: Annotated[int, Field(gt=0, le=3)] = 3
    """How many of the three labellers rank each prompt's answers."""
    labels: Literal["simulated", "shuffled"] = "simulated"
    """`shuffled` gives every comparison a random winner: the control that must teach nothing."""
    seed: int = 0
    """Decides the labellers' noise."""
    resume: bool = False
    """Write anew what an earlier call left in `--out`."""


def main(cfg: Simulate) -> Path:
    """Run the command; returns the folder."""
    folder = Path(cfg.out)
    check_unused(folder, ("comparisons.jsonl", "heldout.jsonl", "feedback.json"), cfg.resume)
    training = _label(cfg, cfg.data, 0)
    write_jsonl(folder / "comparisons.jsonl", (to_json(record) for record in training))
    heldout = [] if cfg.heldout is None else _label(cfg, cfg.heldout, 1)
    write_jsonl(folder / "heldout.jsonl", (to_json(record) for record in heldout))
    quality = label_quality(training)
    quality["heldout"] = label_quality(heldout) if heldout else None
    quality["labels"] = cfg.labels
    write_whole(folder / "feedback.json", json.dumps(quality, indent=1) + "\n")
    agreement = quality["agreement"]
    say(
        f"{len(training)} comparisons by simulated labellers; two of them agree on {agreement['estimate']:.1%} of pairs"
    )
    with_gold = ", ".join(f"{p['name']} {p['agreement_with_gold']['estimate']:.1%}" for p in quality["annotators"])
    say(f"agreement with the gold rule, ties left out: {with_gold}")
    tested = quality["heldout"] or quality
    say(f"so these labels allow a held-out accuracy of at most {tested['ceiling']:.1%}")
    return folder


def _label(cfg: Simulate, path: str, part: int) -> list[Comparison]:
    records = compare_all(read_groups(path), gold_score, LABELLERS, cfg.overlap, 2 * cfg.seed + part)
    return records if cfg.labels == "simulated" else shuffled(records, cfg.seed)


def shuffled(records: Sequence[Comparison], seed: int) -> list[Comparison]:
    """The same comparisons with winners drawn by a coin."""
    rng = random.Random(f"shuffled/{seed}")
    return [replace(r, chosen=r.rejected, rejected=r.chosen) if rng.random() < 0.5 else r for r in records]


def gold_reward(prompt: Prompt, answers: list[Answer]) -> list[float]:
    """The gold rule itself as a reward, in the log-odds of the middle labeller: what a reward model could learn at best (a control)."""
    middle = sorted(one.temperature for one in LABELLERS)[len(LABELLERS) // 2]
    return [gold_score(prompt, answer) / middle for answer in answers]


def label_quality(records: Sequence[Comparison]) -> dict[str, Any]:
    """Agreement of the labellers with the gold rule and with each other, and the best accuracy these labels allow."""
    decided = [r for r in records if r.preference != 0.5]
    truth = np.array([_gold_agrees(r) for r in decided])
    clusters = [r.prompt.key for r in decided]
    units = _units(records)
    people = []
    for person in LABELLERS:
        mine = [i for i, r in enumerate(decided) if r.annotator == person.name]
        if mine:
            share = cluster_share(truth[mine], [clusters[i] for i in mine])
            people.append({**asdict(person), "agreement_with_gold": interval(share)})
    return {
        "kind": "simulated",
        "annotators": people,
        "comparisons": len(records),
        "ties": 1 - len(decided) / len(records),
        "agreement": interval(pairwise_agreement(list(units.values()), [prompt for prompt, *_ in units])),
        "alpha": krippendorff_alpha(list(units.values())),
        "ceiling": float(truth.mean()),
    }


def _gold_agrees(record: Comparison) -> float:
    difference = gold_score(record.prompt, record.chosen) - gold_score(record.prompt, record.rejected)
    return 0.5 + 0.5 * float(np.sign(difference)) * float(np.sign(record.preference - 0.5))


def _units(records: Sequence[Comparison]) -> dict[tuple[str, str, str], list[float]]:
    """(prompt, answer, answer) in a fixed order -> what each labeller said: 1 the first, 0 the second, 1/2 a tie."""
    units: dict[tuple[str, str, str], list[float]] = {}
    for r in records:
        a, b = r.chosen.text, r.rejected.text
        first = r.preference if a <= b else 1 - r.preference
        units.setdefault((r.prompt.key, min(a, b), max(a, b)), []).append(first)
    return units
