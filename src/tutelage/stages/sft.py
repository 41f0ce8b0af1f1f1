"""`tutelage sft`: imitate demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from tutelage.algorithms.base import Models
from tutelage.algorithms.sft import SFT
from tutelage.config import config
from tutelage.console import say
from tutelage.data.batch import Rows
from tutelage.data.collate import demonstrations
from tutelage.data.readers import Loaded
from tutelage.models.load import save_policy
from tutelage.records import Demonstration
from tutelage.stages.common import Actor, Training, load_actor
from tutelage.stages.training import Ready, finished, load, records_of, run_task, stream_of
from tutelage.training.loop import Task

DEFAULT_EPOCHS = 2
HINT = "no demonstrations: give --data FILE with prompt/completion or messages rows (docs/data.md)"


@config
class Sft(Training):
    """Supervised fine-tuning on demonstrations: conversations whose assistant turns show what to do."""

    algorithm: SFT = Field(default_factory=SFT)
    """How tokens are averaged."""
    turns: Literal["all", "last"] = "all"
    """Which assistant turns are trained."""


def ready(cfg: Sft, loaded: Sequence[Loaded]) -> tuple[Ready[Demonstration], Actor]:
    """The task, with the data checked and the model loaded."""
    records: list[Demonstration] = records_of(loaded)
    actor = load_actor(cfg, cfg.adapter, tokens=cfg.optimization.tokens_per_pass)
    checked = demonstrations(records, actor.chat, cfg.max_tokens, turns=cfg.turns)
    say(f"{len(records)} demonstrations ({dict(checked.counts)})")
    draw_records, epoch = stream_of(loaded, cfg.batch_size, cfg.seed)

    def draw(step: int) -> tuple[Rows, dict[str, float]]:
        return demonstrations(draw_records(step), actor.chat, cfg.max_tokens, turns=cfg.turns).batch, {}

    task = Task(
        Models(policy=actor.policy),
        cfg.algorithm,
        draw,
        {"policy": actor.module},
        cfg.steps or max(1, round(DEFAULT_EPOCHS * epoch)),
        cfg.peak_rate,
        cfg.optimization,
        cfg.seed,
        "training (sft)",
    )
    return Ready(task, actor.chat, records, checked), actor


def main(cfg: Sft) -> Path:
    """Run the command; returns the run folder, which holds policy/."""
    loaded = load(cfg.data, "demonstration", cfg.bad_rows, HINT)
    prepared, actor = ready(cfg, loaded)
    run = run_task(cfg, "sft", prepared)
    save_policy(actor.module, actor.tokenizer, run.folder / "policy")
    return finished(run, "policy")
