"""`tutelage prefer`: train the policy on comparisons directly (DPO), without a reward model or sampling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from tutelage.algorithms.base import Models
from tutelage.algorithms.preference import DPO
from tutelage.config import config
from tutelage.console import say
from tutelage.data.collate import comparisons
from tutelage.data.readers import Loaded
from tutelage.models.load import save_policy
from tutelage.records import Comparison
from tutelage.stages.common import Actor, Training, load_actor
from tutelage.stages.monitor import Monitor, monitor_hooks
from tutelage.stages.pairs import load_split, pair_draw
from tutelage.stages.preferences import heldout_accuracy
from tutelage.stages.training import Ready, finished, records_of, run_task
from tutelage.training.loop import Task

DEFAULT_EPOCHS = 2


@config
class Prefer(Training):
    """Train the policy on comparisons: what was chosen becomes likelier than what was rejected, relative to the reference."""

    algorithm: DPO = Field(default_factory=DPO)
    """The preference loss."""
    heldout: tuple[str, ...] = ()
    """Comparisons to report the implicit accuracy on; default: `heldout_share` of the prompts of `--data`."""
    heldout_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the prompts kept out of training where no `--heldout` is given."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature that log-probs are taken at (and answers are sampled at where training is watched)."""
    monitor: Monitor = Field(default_factory=Monitor)
    """Win rate against the reference's answers while training."""


def ready(cfg: Prefer, training: Sequence[Loaded], heldout: Sequence[Comparison]) -> tuple[Ready[Comparison], Actor]:
    """The task, with the data checked and the model loaded."""
    records: list[Comparison] = records_of(training)
    actor = load_actor(cfg, cfg.adapter, temperature=cfg.temperature, tokens=cfg.optimization.tokens_per_pass)
    checked = comparisons(records, actor.chat, cfg.max_tokens)
    say(f"{len(records)} comparisons to train on, {len(heldout)} held out ({dict(checked.counts)})")
    draw, epoch = pair_draw(training, actor.chat, cfg)
    task = Task(
        Models(policy=actor.policy, reference=actor.reference),
        cfg.algorithm,
        draw,
        {"policy": actor.module},
        cfg.steps or max(1, round(DEFAULT_EPOCHS * epoch)),
        cfg.peak_rate,
        cfg.optimization,
        cfg.seed,
        f"training ({cfg.algorithm.name})",
    )
    return Ready(task, actor.chat, records, checked), actor


def main(cfg: Prefer) -> Path:
    """Run the command; returns the run folder, which holds policy/ and prefer.json."""
    training, heldout = load_split(cfg)
    prepared, actor = ready(cfg, training, heldout)
    run = run_task(cfg, "prefer", prepared, monitor_hooks(cfg.monitor, actor, cfg.seed))
    heldout_accuracy(cfg, actor, heldout, run)
    save_policy(actor.module, actor.tokenizer, run.folder / "policy")
    return finished(run, "policy")
