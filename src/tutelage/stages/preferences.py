"""What a policy trained on preferences has learnt: does its implicit reward rank unseen answers as people did?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tutelage.algorithms.preference import answer_logprobs
from tutelage.console import say
from tutelage.data.batch import Sequences
from tutelage.data.collate import comparisons, ratings
from tutelage.evaluation.reward_report import reward_report
from tutelage.evaluation.winrate import interval
from tutelage.records import Comparison, Rating
from tutelage.stages.common import Actor
from tutelage.stages.parts import in_parts
from tutelage.statistics import auc_interval
from tutelage.training.run import Run


def heldout_accuracy(cfg: Any, actor: Actor, heldout: Sequence[Comparison] | Sequence[Rating], run: Run) -> None:
    """Write prefer.json: the reward report with the implicit reward as the score, and for labelled answers the AUC too."""
    if not heldout:
        return
    rated = [record for record in heldout if isinstance(record, Rating)]
    report = _rated_report(cfg, actor, rated) if rated else _compared_report(cfg, actor, heldout)  # type: ignore[arg-type]
    (run.folder / "prefer.json").write_text(json.dumps(report, indent=1))
    for name, what in (("accuracy", "held-out implicit accuracy"), ("auc", "held-out area under the curve")):
        if name in report:
            say(f"{what} {report[name]['estimate']:.3f} [{report[name]['low']:.3f}, {report[name]['high']:.3f}]")


def implicit_rewards(cfg: Any, actor: Actor, answers: Sequences) -> torch.Tensor:
    """The method's reward of each answer, from log(pi/ref).  [B]"""

    def log_ratio(rows: Sequences) -> torch.Tensor:
        return answer_logprobs(actor.policy, rows) - answer_logprobs(actor.reference, rows)

    return cfg.algorithm.implicit(in_parts(answers, log_ratio, "reading held-out answers"), answers)


def _compared_report(cfg: Any, actor: Actor, heldout: Sequence[Comparison]) -> dict[str, Any]:
    both = comparisons(heldout, actor.chat, cfg.max_tokens).batch.both()
    assert len(both) == 2 * len(heldout), "a held-out pair was left out: its two sides are equal after the cut"
    sides = [side.tolist() for side in implicit_rewards(cfg, actor, both).chunk(2)]
    return reward_report(heldout, lambda rows: _lookup(rows, heldout, sides))


def _rated_report(cfg: Any, actor: Actor, heldout: Sequence[Rating]) -> dict[str, Any]:
    """Of all answers the AUC; where a prompt has answers of both kinds, how often the desirable one has the larger reward."""
    answers = ratings(heldout, actor.chat, cfg.max_tokens).batch.answers
    assert len(answers) == len(heldout), "a held-out answer was left out: it has no token"
    scored = list(zip(heldout, implicit_rewards(cfg, actor, answers).tolist(), strict=True))
    by_prompt: dict[str, tuple[list[Any], list[Any]]] = {}
    for record, reward in scored:
        by_prompt.setdefault(record.prompt.key, ([], []))[record.score > 0.5].append((record, reward))
    pairs = [(good, bad) for no, yes in by_prompt.values() for good in yes for bad in no]
    compared = [Comparison(good.prompt, good.answer, bad.answer) for (good, _), (bad, _) in pairs]
    report = reward_report(compared, lambda rows: [(a, b) for (_, a), (_, b) in pairs]) if pairs else {}
    if len({record.score for record in heldout}) == 2:
        rewards, labels = [reward for _, reward in scored], [record.score for record in heldout]
        clusters = [record.prompt.key for record in heldout]
        report["auc"] = interval(auc_interval(rewards, labels, clusters, rng=np.random.default_rng(cfg.seed)))
    return {**report, "answers": len(heldout)}


def _lookup(
    rows: Sequence[Comparison], all_rows: Sequence[Comparison], sides: list[list[float]]
) -> list[tuple[float, float]]:
    position = {id(record): i for i, record in enumerate(all_rows)}
    return [(sides[0][position[id(r)]], sides[1][position[id(r)]]) for r in rows]
