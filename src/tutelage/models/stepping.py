"""A decoding step of a Llama-like model on a CPU as one list of kernels, through which PyTorch's threads run by themselves.

At 64 rows a layer takes 2 ms, and coming back to Python between its eight kernels takes a tenth of that. The list is made
once for the weights as they are; a step fills in how many rows there are, and where its keys and values lie.
"""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.models import fused
from tutelage.models.asking import FAR, attending
from tutelage.models.cache import BUFFERS, Step

SIZE = 24
"""Numbers that a kernel may be told."""


@dataclass(frozen=True)
class Norm:
    """A root-mean-square norm's numbers."""

    weight: Float[Tensor, "D"]
    eps: float


@dataclass(frozen=True)
class Layer:
    """A layer's numbers: what its kernels read."""

    norms: tuple[Norm, Norm]
    """Before the attention, and before the gate."""
    of_heads: tuple[Norm | None, Norm | None]
    """Of each query and of each key."""
    projections: tuple[tuple[Tensor, Tensor | None], Tensor, Tensor, Tensor, Tensor]
    """Weight and bias of queries, keys and values, side by side; the weights of what is seen, of gate, up and down."""
    scaling: float
    window: int | None
    sizes: tuple[int, int, int]
    """Heads of queries, and of keys and values; numbers of a head."""


@dataclass
class _Lists:
    """Kernels, the numbers that each is told, and which of those a step fills in, by name."""

    kernels: list[int] = field(default_factory=list)
    numbers: list[list[int]] = field(default_factory=list)
    places: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kernel: Any, *numbers: int | str) -> None:
        row = len(self.kernels)
        self.kernels.append(kernel.address)
        self.numbers.append([0] * SIZE)
        for at, number in enumerate(numbers, 1):
            if isinstance(number, str):
                self.places[number].append(row * SIZE + at)
            else:
                self.numbers[row][at] = number


class Stepping:
    """A step's hidden states from its embeddings, for at most `rows` rows at once."""

    def __init__(self, layers: Sequence[Layer], last: Norm, rows: int) -> None:
        self.rows, self._kept = rows, (layers, last)  # the weights live as long as their addresses are used
        heads, kv, width = layers[0].sizes
        _, out, gate, _, _ = layers[0].projections
        depth, middle, asked, seen = len(out), len(gate), (heads + 2 * kv) * width, heads * width
        sizes = {"x": depth, "normed": depth, "plus": depth, "asked": asked, "turned": asked, "seen": seen}
        sizes |= {"gate": middle, "up": middle}
        self._memory = {name: torch.empty(size * rows) for name, size in sizes.items()}
        self._memory |= {"tiles": fused.tiles(max(depth, seen), rows), "gate tiles": fused.tiles(middle, rows)}
        self._layer, self._depth = layers[0], depth
        lists = self._lists(layers, last)
        self._kernels = np.array(lists.kernels, dtype=np.int64)
        self._numbers = np.array(lists.numbers, dtype=np.int64)
        self._places = {name: np.array(places) for name, places in lists.places.items()}

    def __call__(
        self, x: Float[Tensor, "N D"], cos: Float[Tensor, "W N"], sin: Float[Tensor, "W N"], step: Step
    ) -> Float[Tensor, "N D"]:
        """Last hidden states, normed, in columns; the next step overwrites them."""
        asking = step.asking
        assert asking is not None, "a step for the kernels"
        rows, (heads, kv, width) = len(x), self._layer.sizes
        self._view("x", rows).copy_(x.t())
        numbers = self._numbers.reshape(-1)
        self._numbers[:, 0] = 0  # nothing is taken yet
        own = "asked" if None in self._layer.of_heads else "turned"
        here, there = (fused.address(self._memory[name]) for name in (own, "asked"))
        told = asking.told() | {"rows": rows, "cos": fused.address(cos), "sin": fused.address(sin)}
        told |= {"query": here, "key": here + 4 * heads * width * rows}
        told |= {"raw key": there + 4 * heads * width * rows}
        told |= {"value": there + 4 * (heads + kv) * width * rows}
        for name in BUFFERS:
            buffers = getattr(step.cache, name)
            told[name] = np.array([fused.address(buffer) for buffer in buffers])
            told[f"{name} room"] = buffers[0].shape[2]
        for name, places in self._places.items():
            numbers[places] = told[name]
        lists = self._kernels.ctypes.data, numbers.ctypes.data, 8 * SIZE
        fused.run(fused.compiled().sequence, len(self._kernels), *lists, _barrier())
        return self._view("normed", rows).t()

    def _view(self, name: str, rows: int) -> Float[Tensor, "D N"]:
        return self._memory[name][: self._depth * rows].view(self._depth, rows)

    def _lists(self, layers: Sequence[Layer], last: Norm) -> _Lists:
        lists, memory = _Lists(), {name: fused.address(x) for name, x in self._memory.items()}
        plus = 0
        for layer in layers:
            self._attention(lists, layer, memory, plus)
            self._gate(lists, layer, memory)
            plus = memory["plus"]
        _norm(lists, last, (memory["x"], memory["normed"], plus))
        return lists

    def _attention(self, lists: _Lists, layer: Layer, memory: dict[str, int], plus: int) -> None:
        (weight, bias), out, _, _, _ = layer.projections
        (heads, kv, width), (of_query, of_key) = layer.sizes, layer.of_heads
        places = memory["x"], memory["normed"], plus
        _product(lists, weight, _normed(lists, layer.norms[0], places, weight, memory["tiles"]), memory["asked"], bias)
        if of_query is not None and of_key is not None:
            _norm(lists, of_query, (memory["asked"], "query", 0), heads)
            _norm(lists, of_key, ("raw key", "key", 0), kv)
        lists.add(fused.compiled().turn, heads + kv, width // 2, "rows", "query", "cos", "sin")
        sizes = "blocks", kv, "rows", layer.window or FAR, "keys room", "prompt_keys room", "cells"
        asking = "bounds", "order", "slots", "said", "asked", "query", "key", "value", *BUFFERS
        lists.add(attending(width, heads // kv), *sizes, fused.bits(layer.scaling), *asking, memory["seen"])
        _product(lists, out, _split(lists, out, memory["seen"], memory["tiles"]), memory["plus"], None)

    def _gate(self, lists: _Lists, layer: Layer, memory: dict[str, int]) -> None:
        _, _, gate, up, down = layer.projections
        places = memory["x"], memory["normed"], memory["plus"]
        kernels, x = _normed(lists, layer.norms[1], places, gate, memory["tiles"])
        below = fused.multiplying(down)
        both = kernels is below and hasattr(kernels, "split")  # then what comes out is split on its way
        unit = fused.unit_of(len(gate), kernels.DEEP if both else kernels.UNIT)
        places = fused.address(gate), fused.address(up), x, memory["gate"], memory["up"]
        lists.add(kernels.gated, *gate.shape, "rows", *places, unit, memory["gate tiles"] if both else 0)
        laid = below, memory["gate tiles"]
        read = laid if both else _split(lists, down, memory["gate"], memory["gate tiles"])
        _product(lists, down, read, memory["plus"], None)


def _norm(lists: _Lists, norm: Norm, places: tuple[int | str, int | str, int], heads: int = 1) -> None:
    """`places`: of x, of the result, and of what is added to x before."""
    (x, out, plus), weight = places, fused.address(norm.weight)
    lists.add(fused.compiled().norm, len(norm.weight), "rows", fused.bits(norm.eps), x, out, weight, plus, heads)


def _normed(lists: _Lists, norm: Norm, places: tuple[int, int, int], weight: Tensor, tiles: int) -> tuple[Any, int]:
    """A norm before a product: its kernels, and where they find x as they read it."""
    kernels = fused.multiplying(weight)
    if not hasattr(kernels, "split"):
        _norm(lists, norm, places)
        return kernels, places[1]
    x, out, plus = places
    numbers = fused.bits(norm.eps), x, out, fused.address(norm.weight), plus, 1, tiles
    lists.add(kernels.norm, len(norm.weight), "rows", *numbers)
    return kernels, tiles


def _split(lists: _Lists, weight: Tensor, x: int, tiles: int) -> tuple[Any, int]:
    """The kernels that multiply these weights, and where they find x as they read it."""
    kernels = fused.multiplying(weight)
    if not hasattr(kernels, "split"):
        return kernels, x
    lists.add(kernels.split, weight.shape[1], "rows", x, tiles)
    return kernels, tiles


def _product(lists: _Lists, weight: Tensor, read: tuple[Any, int], out: int, bias: Tensor | None) -> None:
    """`read`: the kernels that multiply, and where they find x."""
    (kernels, x), (rows, depth), shift = read, weight.shape, 0 if bias is None else fused.address(bias)
    unit = fused.unit_of(rows, kernels.UNIT)
    lists.add(kernels.product, rows, depth, "rows", fused.address(weight), x, out, unit, shift)


@cache
def _barrier() -> int:
    """Where the function lies at which PyTorch's threads wait for each other (GOMP_barrier)."""
    return ctypes.cast(ctypes.CDLL(None).GOMP_barrier, ctypes.c_void_p).value or 0
