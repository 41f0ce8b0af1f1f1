"""`tutelage prefer`: train the policy on comparisons directly (DPO), without a reward model or sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from tutelage.algorithms.base import Models
from tutelage.algorithms.preference import DPO
from tutelage.config import config
from tutelage.console import say
from tutelage.data.collate import comparisons
from tutelage.data.stream import Stream
from tutelage.models.load import save_policy
from tutelage.stages.common import Training, load_actor, open_run, resume_line
from tutelage.stages.monitor import Monitor, monitor_hooks
from tutelage.stages.preferences import heldout_accuracy
from tutelage.stages.reward import by_prompt, load_comparisons, split_by_prompt
from tutelage.training.loop import Task, train

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


def main(cfg: Prefer) -> Path:
    """Run the command; returns the run folder, which holds policy/ and prefer.json."""
    records = load_comparisons(cfg.data, cfg.bad_rows)
    if cfg.heldout:
        training, heldout = records, load_comparisons(cfg.heldout, cfg.bad_rows)
    else:
        training, heldout = split_by_prompt(records, cfg.heldout_share)
    actor = load_actor(cfg, cfg.adapter, temperature=cfg.temperature, tokens=cfg.optimization.tokens_per_pass)
    checked = comparisons(records, actor.chat, cfg.max_tokens)
    say(f"{len(training)} comparisons to train on, {len(heldout)} held out ({dict(checked.counts)})")
    run = open_run(cfg, "prefer")
    stream = Stream(by_prompt(training), cfg.batch_size, cfg.seed)
    steps = cfg.steps or max(1, round(DEFAULT_EPOCHS * stream.steps_per_epoch))

    def draw(step: int) -> tuple[Any, dict[str, float]]:
        rows = [record for group in stream.draw(step) for record in group]
        return comparisons(rows, actor.chat, cfg.max_tokens).batch, {}

    task = Task(
        Models(policy=actor.policy, reference=actor.reference),
        cfg.algorithm,
        draw,
        {"policy": actor.module},
        steps,
        cfg.peak_rate,
        cfg.optimization,
        cfg.seed,
        f"training ({cfg.algorithm.name})",
    )
    train(task, run, monitor_hooks(cfg.monitor, actor, cfg.seed), resume_line("prefer", run))
    heldout_accuracy(cfg, actor, heldout, run)
    save_policy(actor.module, actor.tokenizer, run.folder / "policy")
    run.finish({"policy": "policy"})
    return run.folder
