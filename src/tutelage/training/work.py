"""What the phases of a step did: seconds, the tokens that they needed, and those that went through the linear layers.

The first are real tokens with each prompt once; the second are counted by a hook on each network. Where the two differ a pass
ran padded or a prompt was computed twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tutelage.algorithms.base import Models
from tutelage.console import warn
from tutelage.data.batch import Rows, row_keys
from tutelage.models.floors import Network
from tutelage.models.packing import Packed, backbone_of, unsupported

Key = tuple[int, bool]
"""A network (the id of its backbone), and whether the pass keeps what a gradient needs."""


@dataclass
class Work:
    """What a phase did in one step."""

    seconds: float = 0.0
    tokens: int = 0
    """Real tokens that the phase needs, each prompt once (over all optimiser steps); of sampling the tokens said."""
    labels: int = 0
    """Those of them that a language-model head is asked about."""
    through: dict[Key, int] = field(default_factory=dict)
    """Tokens through the linear layers of each network."""
    own: dict[Key, int] = field(default_factory=dict)
    """Real tokens of networks that read rows of their own (reward models: in their own template)."""
    passes: int = 0
    padded: int = 0

    def needed(self, key: Key) -> int:
        """Of the tokens through a network, those that it had to see."""
        return min(self.own.get(key, self.tokens), self.through[key])

    @property
    def computed(self) -> int:
        """Tokens through the linear layers of the network that saw most: one pass over the rows, if all is well."""
        return max(self.through.values(), default=0)


def packed_tokens(batch: Rows) -> int:
    """Tokens that a forward computes."""
    return real_tokens(batch)[0]


def real_tokens(batch: Rows) -> tuple[int, int]:
    """(tokens that a forward computes, those that a head is asked about): equal prompts once, equal answers of pairs once."""
    parts = batch.sequences()
    if not parts:
        return 0, 0
    if len(parts) == 1:  # rows of their own, even where two say the same
        return parts[0].total_tokens, int(parts[0].mask.sum())
    seen = {key for part in parts for key in row_keys(part)}
    prompts = parts[0].prompts.tokens
    heads = sum(len(prompts[p]) for p in {key[0] for key in seen})
    return heads + sum((len(key) - 1) // 2 for key in seen), sum(sum(key[1 + (len(key) - 1) // 2 :]) for key in seen)


def networks_of(models: Models) -> list[nn.Module]:
    """The Hugging Face networks of a step, the policy first; what is computed otherwise is not counted."""
    found = [getattr(getattr(models, f.name), "module", None) for f in fields(models)]
    return [m for m in found if isinstance(m, nn.Module) and isinstance(_backbone(m), PreTrainedModel)]


def _backbone(module: nn.Module) -> PreTrainedModel:
    return backbone_of(getattr(module, "backbone", module))  # type: ignore[arg-type]


class Passes:
    """Every forward of a step's networks, counted where it begins. `scorers` are reward models.

    With `require_packed` a pass that runs padded is a ValueError; otherwise its reason is said once.
    """

    def __init__(self, models: Models, scorers: Sequence[nn.Module] = (), *, require_packed: bool = False) -> None:
        self.backbones: dict[int, PreTrainedModel] = {}
        self.networks: dict[int, Network | None] = {}
        self._scorers = {id(_backbone(module)) for module in scorers}
        self._require_packed = require_packed
        self._prompts: set[tuple[int, tuple[int, ...]]] = set()
        self._reasons: set[str] = set()
        for module in (*networks_of(models), *scorers):
            backbone = _backbone(module)
            if id(backbone) not in self.backbones:
                self.backbones[id(backbone)], self.networks[id(backbone)] = backbone, Network.of(module)

    @property
    def place(self) -> torch.device:
        """Where the first network is."""
        first = next(iter(self.backbones.values()), None)
        return torch.device("cpu") if first is None else next(first.parameters()).device

    def check(self) -> None:
        """Says (or, where packing is required, raises as a ValueError) which networks cannot run packed, and why."""
        for backbone in self.backbones.values():
            if reason := unsupported(backbone.config, backbone):
                self._fall_back(reason)

    @contextmanager
    def counted(self, meter: Any) -> Iterator[None]:
        """Inside, each forward is put down in `meter.present(scores)`: the `Work` of the present phase, or None."""

        def count(backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            layout, work = kwargs.get("layout"), meter.present(id(backbone) in self._scorers)
            if work is not None and (layout is None or isinstance(layout, Packed)):
                self._count(work, id(backbone), kwargs["input_ids"] if "input_ids" in kwargs else args[0], layout)

        with ExitStack() as stack:
            for backbone in self.backbones.values():
                stack.callback(backbone.register_forward_pre_hook(count, with_kwargs=True).remove)
            yield

    def next_step(self) -> None:
        """Forget which prompts the scorers have read."""
        self._prompts = set()

    def _count(self, work: Work, network: int, ids: torch.Tensor, layout: Packed | None) -> None:
        key = (network, torch.is_grad_enabled())
        work.through[key] = work.through.get(key, 0) + ids.numel()
        work.passes += 1
        if network in self._scorers:
            repeated = 0 if layout is None else self._repeated(network, ids[0].tolist(), layout)
            work.own[key] = work.own.get(key, 0) + ids.numel() - repeated
        if layout is None:
            work.padded += 1
            backbone = self.backbones[network]
            self._fall_back(unsupported(backbone.config, backbone) or "it was asked for")

    def _repeated(self, network: int, line: list[int], layout: Packed) -> int:
        """Tokens of prompts on a scorer's line that it has read in an earlier pass of the step."""
        ends, repeated = sorted(set(layout.before[:, 0].tolist())), 0
        for span in layout.spans:
            end = next((end for end in ends if span.start <= end < span.stop), span.start - 1)
            prompt = (network, tuple(line[span.start : end + 1]))
            repeated += len(prompt[1]) if prompt in self._prompts else 0
            self._prompts.add(prompt)
        return repeated

    def _fall_back(self, reason: str) -> None:
        if self._require_packed:
            raise ValueError(f"require_packed: rows would run padded, each with its own copy of the prompt: {reason}")
        if reason not in self._reasons:
            self._reasons.add(reason)
            warn(f"rows run padded, each with its own copy of the prompt: {reason}")
