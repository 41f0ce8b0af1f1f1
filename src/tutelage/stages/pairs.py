"""Comparisons as training commands read them: split by prompt, drawn by prompt, so that each answer is computed once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

from tutelage.data.batch import Rows
from tutelage.data.chat import Chat
from tutelage.data.collate import Collated, comparisons
from tutelage.data.readers import Loaded
from tutelage.data.shapes import Kind
from tutelage.records import Comparison, Rating
from tutelage.stages.training import load, records_of, stream_of

HINTS: dict[Kind, str] = {
    "comparison": "no comparisons: give --data FILE with prompt / chosen / rejected rows (docs/data.md)",
    "rating": "no labelled answers: give --data FILE with prompt / completion / label rows, or comparisons (docs/data.md)",
}
Judged = TypeVar("Judged", Comparison, Rating)
B = TypeVar("B", bound=Rows)


def load_split(cfg: Any, kind: Kind = "comparison") -> tuple[tuple[Loaded, ...], list[Any]]:
    """(what is trained on, what is held out): `--heldout`, or a share of the prompts of `--data`."""
    loaded = load(cfg.data, kind, cfg.bad_rows, HINTS[kind])
    return split_loaded(cfg, loaded, load(cfg.heldout, kind, cfg.bad_rows, HINTS[kind]) if cfg.heldout else None)


def split_loaded(
    cfg: Any, loaded: Sequence[Loaded], heldout: Sequence[Loaded] | None
) -> tuple[tuple[Loaded, ...], list[Any]]:
    """The same of what is loaded already: `heldout`, or a share of the prompts."""
    if heldout is not None:
        return tuple(loaded), records_of(heldout)
    sides = [split_by_prompt(cast(Sequence[Any], one.records), cfg.heldout_share) for one in loaded]
    training = tuple(replace(one, records=tuple(kept)) for one, (kept, _) in zip(loaded, sides, strict=True))
    if not records_of(training):
        raise ValueError(
            f"--heldout-share {cfg.heldout_share} leaves no prompt to train on; lower it or give --heldout FILE"
        )
    return training, [record for _, held in sides for record in held]


def pair_draw(
    loaded: Sequence[Loaded],
    chat: Chat,
    cfg: Any,
    collate: Callable[[Sequence[Comparison], Chat, int], Collated[B]] = comparisons,
) -> tuple[Callable[[int], tuple[B, dict[str, float]]], float]:
    """(step -> all comparisons of the step's prompts, steps an epoch); a ranking counts as one comparison does."""
    draw_groups, epoch = stream_of(loaded, cfg.batch_size, cfg.seed, lambda records: by_prompt(share_rankings(records)))

    def draw(step: int) -> tuple[B, dict[str, float]]:
        rows = [record for group in draw_groups(step) for record in group]
        return collate(rows, chat, cfg.max_tokens).batch, {}

    return draw, epoch


def share_rankings(records: Sequence[Comparison]) -> list[Comparison]:
    """Each of a ranking's C(K, 2) pairs with 1 / C(K, 2) of its weight, so that every ranking counts the same.

    arXiv:2203.02155, eq. 1. A ranking is what an annotator said of a prompt's answers under one `group`.
    """
    keys = [(record.prompt.key, record.group, record.annotator) if record.group else None for record in records]
    pairs = Counter(keys)
    return [
        record if key is None else replace(record, weight=record.weight / pairs[key])
        for key, record in zip(keys, records, strict=True)
    ]


def by_prompt(records: Sequence[Judged]) -> list[list[Judged]]:
    """Judgments of one prompt together."""
    groups: dict[str, list[Judged]] = {}
    for record in records:
        groups.setdefault(record.prompt.key, []).append(record)
    return list(groups.values())


def split_by_prompt(records: Sequence[Judged], share: float) -> tuple[list[Judged], list[Judged]]:
    """(training, held out): every prompt is on one side only; which one depends on its content alone."""

    def held(record: Judged) -> bool:
        return int(hashlib.sha256(record.prompt.key.encode()).hexdigest()[:8], 16) / 16**8 < share

    return [r for r in records if not held(r)], [r for r in records if held(r)]
