"""The rows of a decoding step as the compiled kernel of attention takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.models import fused
from tutelage.models.compiled import kept

BLOCK = 16
"""Cells that the kernel may read at once: a cache's rows have whole blocks of them."""
FAR = 1 << 40
"""A window that hides nothing."""


@dataclass(frozen=True)
class Asking:
    """The rows of a step as the attention kernel takes them: a few rows of one prompt at a time. R rows, P prompts."""

    slots: Int[Tensor, "R"]
    said: Int[Tensor, "R"]
    asked: Int[Tensor, "P"]
    """Tokens of each prompt."""
    cells: int
    """The most that a row sees."""
    order: np.ndarray[Any, Any] = field(repr=False)
    bounds: np.ndarray[Any, Any] = field(repr=False)

    @classmethod
    def of(cls, held: Sequence[int], slots: Tensor, said: Tensor, asked: Tensor, cells: int) -> Asking:
        """`held`: the prompt of each row."""
        order = sorted(range(len(held)), key=lambda row: held[row])
        most, bounds = fused.compiled("attention_kernel").ROWS, []
        for at, row in enumerate(order):
            if at == 0 or held[row] != held[order[at - 1]] or at - bounds[-1][0] == most:
                bounds.append([at, at])
            bounds[-1][1] = at + 1
        return cls(slots, said, asked.contiguous(), whole(cells) + 2 * BLOCK, np.array(order), np.array(bounds))

    def told(self) -> dict[str, Any]:
        """What the kernel is told of them, by name."""
        told = {name: fused.address(getattr(self, name)) for name in ("slots", "said", "asked")}
        tables = {"bounds": self.bounds.ctypes.data, "order": self.order.ctypes.data}
        return told | tables | {"blocks": len(self.bounds), "cells": self.cells}

    def attend(
        self,
        fresh: tuple[Float[Tensor, "H R W"], Float[Tensor, "K R W"], Float[Tensor, "K R W"]],
        buffers: Sequence[Float[Tensor, "n K t W"]],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "R H W"]:
        """New keys and values are written into the rows' own `buffers` (`cache.BUFFERS`), then each looks at prompt and self."""
        query, key, value = (x.transpose(1, 2).contiguous() for x in fresh)
        (heads, width, rows), kv = query.shape, len(key)
        out = query.new_empty(heads, width, rows)
        sizes = len(self.bounds), kv, rows, window or FAR, buffers[0].shape[2], buffers[2].shape[2], self.cells
        tables = self.bounds.ctypes.data, self.order.ctypes.data
        tensors = self.slots, self.said, self.asked, query, key, value, *buffers, out
        fused.run(attending(width, heads // kv), *sizes, fused.bits(scale), *tables, *map(fused.address, tensors))
        return out.permute(2, 0, 1)


def whole(cells: int) -> int:
    """So many cells, or more, in whole blocks."""
    return -(-cells // BLOCK) * BLOCK


@cache
def attending(width: int, folded: int) -> Any:
    """The kernel of attention for such heads."""
    kernels = fused.compiled("attention_kernel")
    with kept():
        return kernels.attend_of(width, folded)
