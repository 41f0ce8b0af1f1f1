"""Every row in small, on a random model: that the harness works and both sides do the same, in seconds."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from speed_data import Source, fixed_rewards, scored
from speed_rows import Kind, Row, Variant
from speed_work import Demonstration, Pair, Work

TEXTS = ("hi", "what is 2 + 2?", "name a colour")


def small(row: Row, folder: Path) -> Row:
    """The row on a tiny model that is saved in `folder`, with one of the rival's settings.

    vLLM's row is tried against `generate`: a random model of this size has shapes that vLLM does not run.
    """
    forced = isinstance(row.build, partial) and row.build.keywords.get("forced", False)
    counted = tuple(variant for variant in row.variants if variant.counts)[-1:]
    generate = {"rival": "speed_replay:generate", "python": "own", "variants": (Variant(),)}
    return replace(
        row,
        build=lambda source: tiny_work(row.kind, folder, forced=forced),
        trial=(1, 8),
        **(generate if row.python == "vllm" else {"variants": tuple(map(_two_rows, counted))}),
    )


def _two_rows(variant: Variant) -> Variant:
    """Micro-batches that the small works can be cut into."""
    key = "per_device_train_batch_size"
    settings = {name: 2 if name == key else value for name, value in variant.settings.items()}
    return replace(variant, settings={**settings, **({"max_length": 64} if "max_length" in settings else {})})


def tiny_model(folder: Path) -> str:
    """A directory with a random two-layer model and its byte tokenizer."""
    from tutelage.models.load import save_policy
    from tutelage.models.tiny import tiny

    place = folder / "tiny"
    if not place.is_dir():
        save_policy(*tiny(), place)
    return str(place)


def tiny_work(kind: Kind, folder: Path, *, forced: bool = False) -> Work:
    """Ragged rows of random tokens: 3 prompts x 4 answers of at most 12 tokens, or 6 demonstrations or pairs."""
    source = Source(tiny_model(folder), Path(), folder / "cache", 1)
    draw = random.Random(0)

    def said(longest: int) -> list[int]:
        return [draw.randrange(256) for _ in range(draw.randint(1, longest))]

    if kind == "rollouts":
        return _rollouts(source, forced)
    if kind == "demonstrations":
        return source.work(demonstrations=[Demonstration(said(20), said(20)) for _ in range(6)])
    build: Any = lambda source: source.work(pairs=[Pair(said(20), said(20), said(20)) for _ in range(6)])  # noqa: E731
    return scored(build, source) if kind == "scored" else build(source)


def _rollouts(source: Source, forced: bool) -> Work:
    from tutelage.records import Message, Prompt

    chat = source.chat()
    return source.work(
        prompts=[chat.prompt_tokens(Prompt((Message("user", text),))) for text in TEXTS],
        messages=[[{"role": "user", "content": text}] for text in TEXTS],
        rewards=fixed_rewards(len(TEXTS), 4),
        group=4,
        max_tokens=12,
        forced=forced,
    )
