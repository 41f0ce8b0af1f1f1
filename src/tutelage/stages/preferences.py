"""Held-out implicit accuracy of a policy trained on comparisons: does log(pi/ref) rank unseen pairs as people did?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from tutelage.algorithms.preference import sequence_logprobs
from tutelage.console import say
from tutelage.data.collate import comparisons
from tutelage.evaluation.reward_report import reward_report
from tutelage.records import Comparison
from tutelage.stages.common import Actor
from tutelage.training.run import Run


def heldout_accuracy(cfg: Any, actor: Actor, heldout: Sequence[Comparison], run: Run) -> None:
    """Write prefer.json: the reward report with beta log(pi/ref) as the score."""
    if not heldout:
        return
    with torch.no_grad():
        batch = comparisons(heldout, actor.chat, cfg.max_tokens).batch
        now = sequence_logprobs(actor.policy, batch)
        start = sequence_logprobs(actor.reference, batch)
    sides = [(cfg.algorithm.beta * (a - b)).tolist() for a, b in zip(now, start, strict=True)]
    assert len(sides[0]) == len(heldout), "a held-out pair was left out: its two sides are equal after the cut"
    report = reward_report(heldout, lambda rows: _lookup(rows, heldout, sides))
    (run.folder / "prefer.json").write_text(json.dumps(report, indent=1))
    accuracy = report["accuracy"]
    say(f"held-out implicit accuracy {accuracy['estimate']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]")


def _lookup(
    rows: Sequence[Comparison], all_rows: Sequence[Comparison], sides: list[list[float]]
) -> list[tuple[float, float]]:
    position = {id(record): i for i, record in enumerate(all_rows)}
    return [(sides[0][position[id(r)]], sides[1][position[id(r)]]) for r in rows]
