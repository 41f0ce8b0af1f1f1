"""Comparisons as training commands read them: split by prompt, drawn by prompt, so that each answer is computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

from tutelage.data.batch import Pairs
from tutelage.data.chat import Chat
from tutelage.data.collate import comparisons
from tutelage.data.readers import Loaded
from tutelage.records import Comparison
from tutelage.stages.training import load, records_of, stream_of

HINT = "no comparisons: give --data FILE with prompt / chosen / rejected rows (docs/data.md)"


def load_split(cfg: Any) -> tuple[tuple[Loaded, ...], list[Comparison]]:
    """(what is trained on, what is held out): `--heldout`, or a share of the prompts of `--data`."""
    loaded = load(cfg.data, "comparison", cfg.bad_rows, HINT)
    if cfg.heldout:
        return loaded, records_of(load(cfg.heldout, "comparison", cfg.bad_rows, HINT))
    sides = [split_by_prompt(cast(Sequence[Comparison], one.records), cfg.heldout_share) for one in loaded]
    training = tuple(replace(one, records=tuple(kept)) for one, (kept, _) in zip(loaded, sides, strict=True))
    if not records_of(training):
        raise ValueError(
            f"--heldout-share {cfg.heldout_share} leaves no prompt to train on; lower it or give --heldout FILE"
        )
    return training, [record for _, held in sides for record in held]


def pair_draw(
    loaded: Sequence[Loaded], chat: Chat, cfg: Any
) -> tuple[Callable[[int], tuple[Pairs, dict[str, float]]], float]:
    """(step -> all comparisons of the step's prompts, steps an epoch)."""
    draw_groups, epoch = stream_of(loaded, cfg.batch_size, cfg.seed, by_prompt)

    def draw(step: int) -> tuple[Pairs, dict[str, float]]:
        rows = [record for group in draw_groups(step) for record in group]
        return comparisons(rows, chat, cfg.max_tokens).batch, {}

    return draw, epoch


def by_prompt(records: Sequence[Comparison]) -> list[list[Comparison]]:
    """Comparisons of one prompt together."""
    groups: dict[str, list[Comparison]] = {}
    for record in records:
        groups.setdefault(record.prompt.key, []).append(record)
    return list(groups.values())


def split_by_prompt(records: Sequence[Comparison], share: float) -> tuple[list[Comparison], list[Comparison]]:
    """(training, held out): every prompt is on one side only; which one depends on its content alone."""

    def held(record: Comparison) -> bool:
        return int(hashlib.sha256(record.prompt.key.encode()).hexdigest()[:8], 16) / 16**8 < share

    return [r for r in records if not held(r)], [r for r in records if held(r)]
