"""`tutelage sft`: imitate demonstrations."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tutelage.algorithms.base import Models
from tutelage.algorithms.sft import SFT
from tutelage.config import config
from tutelage.console import say
from tutelage.data.collate import demonstrations
from tutelage.data.readers import load_records
from tutelage.data.stream import Stream
from tutelage.models.load import save_policy
from tutelage.records import Demonstration
from tutelage.stages.common import Training, load_actor, open_run, resume_line
from tutelage.training.loop import Task, train

DEFAULT_EPOCHS = 2


@config
class Sft(Training):
    """Supervised fine-tuning on demonstrations: conversations whose assistant turns show what to do."""

    algorithm: SFT = Field(default_factory=SFT)
    """How tokens are averaged."""
    turns: Literal["all", "last"] = "all"
    """Which assistant turns are trained."""


def main(cfg: Sft) -> Path:
    """Run the command; returns the run folder, which holds policy/."""
    records = load_demonstrations(cfg.data, cfg.bad_rows)
    actor = load_actor(cfg, cfg.adapter, tokens=cfg.optimization.tokens_per_pass)
    checked = demonstrations(records, actor.chat, cfg.max_tokens, turns=cfg.turns)
    say(f"{len(records)} demonstrations ({dict(checked.counts)})")
    run = open_run(cfg, "sft")
    stream = Stream(records, cfg.batch_size, cfg.seed)
    steps = cfg.steps or max(1, round(DEFAULT_EPOCHS * stream.steps_per_epoch))

    def draw(step: int) -> tuple[Any, dict[str, float]]:
        return demonstrations(stream.draw(step), actor.chat, cfg.max_tokens, turns=cfg.turns).batch, {}

    task = Task(
        Models(policy=actor.policy),
        cfg.algorithm,
        draw,
        {"policy": actor.module},
        steps,
        cfg.peak_rate,
        cfg.optimization,
        cfg.seed,
        "training (sft)",
    )
    train(task, run, resume_command=resume_line("sft", run))
    save_policy(actor.module, actor.tokenizer, run.folder / "policy")
    run.finish({"policy": "policy"})
    return run.folder


def load_demonstrations(sources: tuple[str, ...], bad_rows: Any = "error") -> list[Demonstration]:
    """Demonstrations of any shape; ValueError where none is named."""
    if not sources:
        raise ValueError("no demonstrations: give --data FILE with prompt/completion or messages rows (docs/data.md)")
    return [record for source in sources for record in load_records(source, "demonstration", bad_rows).records]
