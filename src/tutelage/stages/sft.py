"""`tutelage sft`: imitate demonstrations, or a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from tutelage.algorithms.base import Models
from tutelage.algorithms.distill import Distill
from tutelage.algorithms.sft import SFT
from tutelage.config import config
from tutelage.console import say
from tutelage.data.readers import Loaded
from tutelage.data.shapes import Kind
from tutelage.models.load import save_policy
from tutelage.stages.common import Actor, Count, Training, check_out, load_actor
from tutelage.stages.distill import check_teacher, sequence_draw, token_draw, with_teacher
from tutelage.stages.training import Ready, finished, load, records_of, run_task
from tutelage.training.loop import Task

DEFAULT_EPOCHS = 2
HINT = "no demonstrations: give --data FILE with prompt/completion or messages rows (docs/data.md)"


@config
class Sft(Training):
    """Supervised fine-tuning: imitate demonstrations, or a teacher."""

    algorithm: Annotated[SFT | Distill, Field(discriminator="name")] = Field(default_factory=SFT)
    """`sft`: the demonstrations' tokens; `distill`: a teacher's distributions over them, or its own answers."""
    turns: Literal["all", "last"] = "all"
    """Which assistant turns are trained."""
    teacher: str | None = None
    """For `distill`: a model (directory, run folder, hub id) that is imitated."""
    temperature: float = Field(default=1.0, gt=0)
    """For `distill`: what teacher and student are compared at, and answers sampled at."""
    max_new_tokens: Count = 256
    """For `distill`: the longest answer that teacher or student is asked for, in tokens."""

    @property
    def reads(self) -> Kind:
        """What `--data` holds: of demonstrations that a teacher answers anew, the prompts are enough."""
        return (
            "prompt" if isinstance(self.algorithm, Distill) and self.algorithm.level == "sequence" else "demonstration"
        )


def ready(cfg: Sft, loaded: Sequence[Loaded], limit: int | None = None) -> tuple[Ready[Any], Actor]:
    """The task, with the data checked and the model loaded; a teacher answers only the first `limit` prompts."""
    check_teacher(cfg.algorithm, cfg.teacher)
    if isinstance(cfg.algorithm, SFT) and cfg.temperature != 1:
        raise ValueError(f"temperature: demonstrations are imitated at 1; got {cfg.temperature:g} (it is for distill)")
    if isinstance(cfg.algorithm, SFT) and cfg.max_new_tokens != Sft.max_new_tokens:
        raise ValueError(f"max_new_tokens: nothing is sampled here; got {cfg.max_new_tokens} (it is for distill)")
    actor = load_actor(cfg, cfg.adapter, temperature=cfg.temperature, tokens=cfg.optimization.pass_tokens)
    models, records = Models(policy=actor.policy), records_of(loaded)
    if isinstance(cfg.algorithm, Distill) and cfg.algorithm.level == "sequence":
        if cfg.algorithm.on_policy:
            raise ValueError(
                "algorithm.on_policy: at the sequence level every answer is the teacher's; take level token"
            )
        records, draw, epoch, checked = sequence_draw(cfg, loaded, actor, limit)
    else:
        draw, epoch, checked = token_draw(cfg, loaded, actor)
        if cfg.teacher is not None:
            models = with_teacher(cfg, actor, cfg.teacher)
    say(f"{len(records)} demonstrations ({dict(checked.counts)})")
    task = Task(
        models,
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


def main(cfg: Sft) -> Path:
    """Run the command; returns the run folder, which holds policy/."""
    check_out(cfg, "sft")
    loaded = load(cfg.data, cfg.reads, cfg.bad_rows, HINT)
    prepared, actor = ready(cfg, loaded)
    run = run_task(cfg, "sft", prepared)
    save_policy(actor.module, actor.tokenizer, run.folder / "policy")
    return finished(run, "policy")
