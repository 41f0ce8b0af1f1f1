"""Reading many answers in parts, with progress: on a CPU a held-out set takes minutes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from tutelage.console import track
from tutelage.data.batch import Rows

R = TypeVar("R", bound=Rows)
One = TypeVar("One")
AT_ONCE = 64
"""Rows of a part; more where one prompt has more."""


def in_parts(rows: R, read: Callable[[R], Tensor], label: str, unit: str = "answer") -> Tensor:
    """`read` of all rows, in their order: some prompts at a time, whole ones, so that each is still computed once.  [B, ...]

    No gradient is kept.
    """
    found: list[Tensor] = []
    parts = list(whole_prompts(rows.sequences()[0].prompt_of, AT_ONCE))
    with torch.no_grad(), track(len(rows), label, unit) as bar:
        for part in parts:
            found.append(read(rows[part]))
            bar.advance(len(part))
    return torch.cat(found)[torch.cat(parts).argsort().to(found[0].device)]


def whole_prompts(prompt_of: Tensor, most: int) -> Iterator[Tensor]:
    """Row numbers in parts of about `most`, all rows of a prompt in the same one."""
    order = prompt_of.argsort(stable=True)
    groups = order.split(prompt_of[order].unique_consecutive(return_counts=True)[1].tolist())
    part: list[Tensor] = []
    for group in groups:
        if part and sum(map(len, part)) + len(group) > most:
            yield torch.cat(part)
            part = []
        part.append(group)
    if part:
        yield torch.cat(part)


def some_at_a_time(items: Sequence[One], label: str, unit: str = "prompt", most: int = AT_ONCE // 4) -> Iterator[slice]:
    """Slices of a sequence, one after the other, with progress."""
    with track(len(items), label, unit) as bar:
        for start in range(0, len(items), most):
            yield slice(start, start + most)
            bar.advance(len(items[start : start + most]))
