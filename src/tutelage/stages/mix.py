"""The pretraining mix of PPO-ptx: text that the policy goes on being trained on, beside the rewards."""

from __future__ import annotations

from tutelage.algorithms.sft import SFT
from tutelage.console import say
from tutelage.data.batch import Rows
from tutelage.data.collate import demonstrations, documents
from tutelage.data.readers import load_sources
from tutelage.stages.common import Actor, Training
from tutelage.stages.training import load, stream_of
from tutelage.training.loop import Beside


def pretraining_mix(
    cfg: Training, actor: Actor, data: tuple[str, ...], coefficient: float, batch_size: int
) -> Beside | None:
    """The second term of the loop, None without data. ValueError for rows that are neither texts nor demonstrations."""
    if not data:
        return None
    plain = load_sources(data[:1], None, cfg.bad_rows)[0].kind == "document"
    loaded = load(data, "document" if plain else "demonstration", cfg.bad_rows, "")
    draw_records, epoch = stream_of(loaded, batch_size, cfg.seed)
    say(f"beside the rewards: {coefficient:g} x the loss of {batch_size} texts, {epoch:.0f} optimiser steps an epoch")

    def draw(number: int) -> Rows:
        records = draw_records(number)
        if plain:
            return documents(records, actor.tokenizer, cfg.max_tokens).batch
        return demonstrations(records, actor.chat, cfg.max_tokens).batch

    return Beside("ptx", SFT(), draw, coefficient)
