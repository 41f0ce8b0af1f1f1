"""`tutelage prefer`: train the policy on comparisons or labels directly, without a reward model or sampling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from tutelage.algorithms.base import Models
from tutelage.algorithms.kto import KTO
from tutelage.algorithms.preference import DPO, IPO
from tutelage.config import config
from tutelage.console import say
from tutelage.data.collate import comparisons
from tutelage.data.readers import Loaded
from tutelage.data.shapes import Kind
from tutelage.models.load import save_policy
from tutelage.stages.common import Actor, Training, check_out, load_actor
from tutelage.stages.monitor import Monitor, monitor_hooks
from tutelage.stages.pairs import load_split, pair_draw
from tutelage.stages.preferences import heldout_accuracy
from tutelage.stages.rated import rated_draw
from tutelage.stages.training import Ready, finished, records_of, run_task
from tutelage.training.loop import Task

Algorithm = DPO | IPO | KTO
DEFAULT_EPOCHS = 2


@config
class Prefer(Training):
    """Train the policy on what people preferred: it becomes likelier, relative to the reference.

    DPO and IPO read comparisons, KTO answers with a yes or no each (a comparison gives it one of both).
    """

    algorithm: Annotated[Algorithm, Field(discriminator="name")] = Field(default_factory=DPO)
    """The preference loss; `--algorithm dpo|ipo|kto`."""
    heldout: tuple[str, ...] = ()
    """Records to report the implicit accuracy on; default: `heldout_share` of the prompts of `--data`."""
    heldout_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the prompts kept out of training where no `--heldout` is given."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature that log-probs are taken at (and answers are sampled at where training is watched)."""
    monitor: Monitor = Field(default_factory=Monitor)
    """Win rate against the reference's answers while training."""

    @property
    def reads(self) -> Kind:
        """The records that the method learns from."""
        return "rating" if isinstance(self.algorithm, KTO) else "comparison"


def ready(cfg: Prefer, training: Sequence[Loaded], heldout: Sequence[Any]) -> tuple[Ready[Any], Actor]:
    """The task, with the data checked and the model loaded."""
    records = records_of(training)
    actor = load_actor(cfg, cfg.adapter, temperature=cfg.temperature, tokens=cfg.optimization.pass_tokens)
    if cfg.reads == "rating":
        draw, epoch, checked = rated_draw(training, actor.chat, cfg)
    else:
        checked = comparisons(records, actor.chat, cfg.max_tokens)
        draw, epoch = pair_draw(training, actor.chat, cfg)
    say(f"{len(records)} {cfg.reads}s to train on, {len(heldout)} held out ({dict(checked.counts)})")
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
    check_out(cfg, "prefer")
    training, heldout = load_split(cfg, cfg.reads)
    prepared, actor = ready(cfg, training, heldout)
    run = run_task(cfg, "prefer", prepared, monitor_hooks(cfg.monitor, actor, cfg.seed))
    heldout_accuracy(cfg, actor, heldout, run)
    save_policy(actor.module, actor.tokenizer, run.folder / "policy")
    return finished(run, "policy")
