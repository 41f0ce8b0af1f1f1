"""`tutelage reward`: a reward model from comparisons."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from tutelage.algorithms.base import Models
from tutelage.algorithms.reward_model import BradleyTerry
from tutelage.config import config
from tutelage.console import say
from tutelage.data.chat import Chat
from tutelage.data.collate import comparisons
from tutelage.data.readers import Loaded
from tutelage.evaluation.reward_report import reward_report
from tutelage.models.heads import ScalarModel, new_scalar_model, save_reward_model
from tutelage.models.load import describe, load_backbone, load_tokenizer
from tutelage.models.logprobs import HeadedModel
from tutelage.records import Comparison
from tutelage.stages.common import Training, precision
from tutelage.stages.pairs import load_split, pair_draw
from tutelage.stages.training import Ready, finished, records_of, run_task
from tutelage.training.loop import Task

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


def ready(
    cfg: Reward, training: Sequence[Loaded], heldout: Sequence[Comparison]
) -> tuple[Ready[Comparison], ScalarModel]:
    """The task, with the data checked and the model loaded."""
    records: list[Comparison] = records_of(training)
    tokenizer = load_tokenizer(cfg.model, ("policy",))
    chat = Chat.of(tokenizer, cfg.chat_template, cfg.system)
    tokenizer.chat_template = chat.template  # what is saved asks in the form it was trained in
    checked = comparisons(records, chat, cfg.max_tokens)
    say(f"{len(records)} comparisons to train on, {len(heldout)} held out ({dict(checked.counts)})")
    dtype = "float32" if cfg.full else precision(cfg.dtype, cfg.device)
    backbone = load_backbone(cfg.model, lora=cfg.adapter, dtype=dtype, device=cfg.device, seed=cfg.seed)
    say(describe(backbone))
    module = new_scalar_model(backbone, seed=cfg.seed)
    if cfg.full:
        module.requires_grad_(True)
    draw, epoch = pair_draw(training, chat, cfg)
    task = Task(
        Models(reward=HeadedModel(module, cfg.optimization.tokens_per_pass)),
        cfg.algorithm,
        draw,
        {"reward": module},
        cfg.steps or max(1, round(DEFAULT_EPOCHS * epoch)),
        cfg.peak_rate,
        cfg.optimization,
        cfg.seed,
        "reward model",
    )
    return Ready(task, chat, records, checked), module


def main(cfg: Reward) -> Path:
    """Run the command; returns the run folder, which holds reward_model/ and reward.json."""
    training, heldout = load_split(cfg)
    prepared, module = ready(cfg, training, heldout)
    run = run_task(cfg, "reward", prepared)
    if heldout:
        model = HeadedModel(module, cfg.optimization.tokens_per_pass)
        report = reward_report(heldout, lambda rows: _scores(model, rows, prepared.chat, cfg.max_tokens))
        (run.folder / "reward.json").write_text(json.dumps(report, indent=1))
        accuracy = report["accuracy"]
        say(
            f"held-out accuracy {accuracy['estimate']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}], "
            f"longer-wins {report['longer_wins']:.3f}, shorter-wins {report['shorter_wins']:.3f}"
        )
    save_reward_model(module, prepared.chat.tokenizer, run.folder / "reward_model")
    return finished(run, "reward_model")


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
