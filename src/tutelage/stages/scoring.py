"""What all scoring models share: the form they read in, a backbone with a fresh head, and the task that trains them."""

from __future__ import annotations

from typing import Any

import torch

from tutelage.algorithms.base import Models
from tutelage.algorithms.reward_model import agreement
from tutelage.console import say
from tutelage.data.batch import Pairs, distinct
from tutelage.data.chat import Chat
from tutelage.data.judging import judging
from tutelage.functional.probe import pairwise_probe
from tutelage.models.heads import ScalarModel, new_scalar_model
from tutelage.models.load import describe, load_backbone, load_tokenizer
from tutelage.models.logprobs import HeadedModel
from tutelage.stages.common import precision
from tutelage.stages.parts import in_parts
from tutelage.training.loop import Draw, Task

DEFAULT_EPOCHS = 2


def reading_chat(cfg: Any, closed: bool) -> Chat:
    """The form that answers are read in; `closed` puts the same tokens behind each of them (`data.judging`)."""
    tokenizer = load_tokenizer(cfg.model, ("policy",))
    chat = Chat.of(tokenizer, cfg.chat_template, cfg.system)
    chat = judging(chat) if closed else chat
    tokenizer.chat_template = chat.template  # what is saved asks in the form it was trained in
    return chat


def new_scorer(cfg: Any) -> ScalarModel:
    """The model's backbone, adapted or whole, with a fresh head."""
    dtype = "float32" if cfg.full else precision(cfg.dtype, cfg.device)
    backbone = load_backbone(
        cfg.model, lora=cfg.adapter, dtype=dtype, device=cfg.device, seed=cfg.seed, layers=cfg.layers
    )
    say(describe(backbone))
    module = new_scalar_model(backbone, seed=cfg.seed)
    return module.requires_grad_(True) if cfg.full else module


def scoring_task(cfg: Any, reader: HeadedModel, draw: Draw, epoch: float, label: str) -> Task:
    """`epoch` is how many steps it takes until every record has come once."""
    return Task(
        Models(reward=reader),
        cfg.algorithm,
        draw,
        {"reward": reader.module},
        cfg.steps or max(1, round(DEFAULT_EPOCHS * epoch)),
        cfg.peak_rate,
        cfg.optimization,
        cfg.seed,
        label,
    )


@torch.no_grad()
def start_head(reader: HeadedModel, pairs: Pairs, centering: float, most: int, seed: int) -> None:
    """Puts the head where it reads the untrained backbone best (`functional.probe`), by `most` comparisons at most.

    One forward pass, a third of what training on them costs: `most` is what training will see.
    """
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))[:most].sort().values
    batch = pairs[order]
    answers, which = distinct(batch.both())
    features = in_parts(
        answers, lambda rows: reader.features(rows).double(), "reading the answers for the head's start"
    )
    chosen, rejected = features[which].chunk(2)
    w = pairwise_probe(chosen, rejected, batch.preference, batch.weight, centering)
    reader.module.head.weight.copy_(w[None])
    right = agreement((chosen - rejected) @ w, batch.preference)[batch.preference != 0.5].mean()
    say(f"head started by a linear probe: {float(right):.1%} of {len(batch)} training comparisons")
