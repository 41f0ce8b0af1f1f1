"""`tutelage reward`: a reward model from comparisons."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from tutelage.algorithms.base import Models
from tutelage.algorithms.reward_model import BradleyTerry
from tutelage.config import config
from tutelage.console import say
from tutelage.data.chat import Chat
from tutelage.data.collate import comparisons
from tutelage.data.readers import load_records
from tutelage.data.stream import Stream
from tutelage.evaluation.reward_report import reward_report
from tutelage.models.heads import new_scalar_model, save_reward_model
from tutelage.models.load import describe, load_backbone, load_tokenizer
from tutelage.models.logprobs import HeadedModel
from tutelage.records import Comparison
from tutelage.stages.common import Training, open_run, precision, resume_line
from tutelage.training.loop import Task, train

DEFAULT_EPOCHS = 2


@config
class Reward(Training):
    """Train a reward model: a language model with a head that gives one number to an answer."""

    algorithm: BradleyTerry = Field(default_factory=BradleyTerry)
    """The likelihood of the comparisons."""
    heldout: tuple[str, ...] = ()
    """Comparisons to report accuracy on; default: `heldout_share` of the prompts of `--data`."""
    heldout_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the prompts kept out of training where no `--heldout` is given (split by prompt, never by pair)."""


def main(cfg: Reward) -> Path:
    """Run the command; returns the run folder, which holds reward_model/ and reward.json."""
    records = load_comparisons(cfg.data, cfg.bad_rows)
    if cfg.heldout:
        training, heldout = records, load_comparisons(cfg.heldout, cfg.bad_rows)
    else:
        training, heldout = split_by_prompt(records, cfg.heldout_share)
    tokenizer = load_tokenizer(cfg.model, ("policy",))
    chat = Chat.of(tokenizer, cfg.chat_template, cfg.system)
    checked = comparisons(records, chat, cfg.max_tokens)
    say(f"{len(training)} comparisons to train on, {len(heldout)} held out ({dict(checked.counts)})")
    run = open_run(cfg, "reward")
    backbone = load_backbone(cfg.model, lora=cfg.adapter, dtype=_dtype(cfg), device=cfg.device, seed=cfg.seed)
    say(describe(backbone))
    module = new_scalar_model(backbone, seed=cfg.seed)
    if cfg.full:
        module.requires_grad_(True)
    model = HeadedModel(module, cfg.optimization.tokens_per_pass)
    stream = Stream(by_prompt(training), cfg.batch_size, cfg.seed)
    steps = cfg.steps or max(1, round(DEFAULT_EPOCHS * stream.steps_per_epoch))

    def draw(step: int) -> tuple[Any, dict[str, float]]:
        rows = [record for group in stream.draw(step) for record in group]
        return comparisons(rows, chat, cfg.max_tokens).batch, {}

    task = Task(
        Models(reward=model),
        cfg.algorithm,
        draw,
        {"reward": module},
        steps,
        cfg.peak_rate,
        cfg.optimization,
        cfg.seed,
        "reward model",
    )
    train(task, run, resume_command=resume_line("reward", run))
    if heldout:
        report = reward_report(heldout, lambda rows: _scores(model, rows, chat, cfg.max_tokens))
        (run.folder / "reward.json").write_text(json.dumps(report, indent=1))
        say(
            f"held-out accuracy {report['accuracy']['estimate']:.3f} "
            f"[{report['accuracy']['low']:.3f}, {report['accuracy']['high']:.3f}], longer-wins {report['longer_wins']:.3f}"
        )
    save_reward_model(module, tokenizer, run.folder / "reward_model")
    run.finish({"reward_model": "reward_model"})
    return run.folder


def _dtype(cfg: Reward) -> str:
    return "float32" if cfg.full else precision(cfg.dtype, cfg.device)


def _scores(
    model: HeadedModel, records: Sequence[Comparison], chat: Chat, max_tokens: int
) -> list[tuple[float, float]]:
    """(score of chosen, score of rejected) of each comparison."""
    import torch

    from tutelage.data.batch import distinct

    batch = comparisons(records, chat, max_tokens).batch
    rows, which = distinct(batch.both())
    with torch.no_grad():
        chosen, rejected = model.scores(rows)[which].chunk(2)
    return list(zip(chosen.tolist(), rejected.tolist(), strict=True))


def load_comparisons(sources: tuple[str, ...], bad_rows: Any = "error") -> list[Comparison]:
    """Comparisons of any shape; ValueError where none is named."""
    if not sources:
        raise ValueError("no comparisons: give --data FILE with prompt / chosen / rejected rows (docs/data.md)")
    return [record for source in sources for record in load_records(source, "comparison", bad_rows).records]


def by_prompt(records: Sequence[Comparison]) -> list[list[Comparison]]:
    """Comparisons of one prompt together: a step takes whole prompts, so each answer is computed once."""
    groups: dict[str, list[Comparison]] = {}
    for record in records:
        groups.setdefault(record.prompt.key, []).append(record)
    return list(groups.values())


def split_by_prompt(records: Sequence[Comparison], share: float) -> tuple[list[Comparison], list[Comparison]]:
    """(training, held out): every prompt is on one side only; which one depends on its content alone."""

    def held(record: Comparison) -> bool:
        import hashlib

        return int(hashlib.sha256(record.prompt.key.encode()).hexdigest()[:8], 16) / 16**8 < share

    return [r for r in records if not held(r)], [r for r in records if held(r)]
