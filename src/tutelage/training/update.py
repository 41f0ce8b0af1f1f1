"""One optimiser step: weights over the whole of it, losses by micro-batch, so that the split changes no gradient."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tutelage.algorithms.base import Algorithm, Models
from tutelage.data.batch import Rows
from tutelage.functional.weights import weighted_sum
from tutelage.models.packing import micro_batches


@dataclass
class Averages:
    """Metrics of a step, averaged with the losses' own weights over all micro-batches."""

    sums: dict[str, float] = field(default_factory=dict)
    weight: float = 0.0

    def add(self, metrics: Mapping[str, Tensor], weights: Tensor) -> None:
        """Account one micro-batch; tensors have the weights' shape. Summed in float64 (on the CPU: not every device has it)."""
        exact = weights.to("cpu", torch.float64)
        self.weight += float(exact.sum())
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(weighted_sum(value.to("cpu", torch.float64), exact))

    def join(self, other: Averages) -> None:
        """Account what another one has accounted."""
        self.weight += other.weight
        for name, total in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + total

    def means(self) -> dict[str, float]:
        """Name -> weighted mean."""
        return {name: total / self.weight for name, total in self.sums.items()} if self.weight else {}


def accumulate(
    algorithm: Algorithm,
    models: Models,
    batch: Rows,
    tokens: int,
    *,
    scale: float = 1.0,
    need: Callable[[Rows], None] = lambda rows: None,
) -> tuple[float, Averages]:
    """Gradients of one optimiser step, times `scale`, added into `.grad`; returns the loss (unscaled) and its metrics.

    `need` is told the rows that count.

    Rows that count for nothing cost nothing. Raises ValueError where nothing is trained on (every label masked), instead of
    a run that learns nothing with loss 0, unless the method says that it `may_rest`: then there is no gradient.
    """
    weights = algorithm.weights(batch)
    alive = (weights != 0) if weights.ndim == 1 else (weights != 0).any(1)
    if not bool(alive.any()):
        if getattr(algorithm, "may_rest", False):
            return 0.0, Averages()
        raise ValueError(
            "no token of this batch is trained on: every label is masked or cut; see `tutelage check` for the data's rows"
        )
    if not bool(alive.all()):
        kept = alive.nonzero()[:, 0]
        batch, weights = batch[kept], weights[kept]
    need(batch)
    loss, averages = 0.0, Averages()
    for rows in micro_batches(batch, tokens):
        part = weights[rows.to(weights.device)]
        losses, metrics = algorithm.losses(models, batch[rows])
        value = weighted_sum(losses, part)
        (value if scale == 1 else scale * value).backward()
        loss += float(value.detach())
        averages.add({**metrics, "loss": losses.detach()}, part)
    return loss, averages


def minibatches(count: int, parts: int, seed: str) -> Iterator[Tensor]:
    """`parts` random disjoint pieces of `count` rows; in their own order where there is one."""
    order = list(range(count))
    if parts > 1:
        random.Random(seed).shuffle(order)
    for part in range(parts):
        piece = order[part * count // parts : (part + 1) * count // parts]
        if piece:
            yield torch.tensor(piece)


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> float:
    """Scale gradients down to norm `limit`; returns the norm before.

    Raises ValueError for a norm that is not finite: stepping would destroy the weights.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    total = torch.nn.utils.get_total_norm(gradients)
    norm = float(total)
    if norm != norm or norm == float("inf"):
        raise ValueError(
            f"the gradient's norm is {norm}; lower the learning rate, or look for extreme rewards in samples.jsonl"
        )
    if norm > limit:  # otherwise all of them would be multiplied by 1
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, total)
    return norm
