"""The batches that flow through a step: rows of equal standing, every field taken together by `rows[index]`.

Legend: P prompts, G answers a prompt, B rows, T answer tokens. Column t of any [B, T] tensor speaks of answer token t given
everything before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Index = Tensor | Sequence[int]


@dataclass(frozen=True)
class Prompts:
    """The distinct prompts of a batch as token ids, ragged; shared by rows, so `rows[index]` leaves them alone."""

    tokens: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Rows:
    """A batch. `rows[index]` takes the rows of every tensor, tuple and nested batch at once; `Prompts` are shared."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def __getitem__(self, index: Index) -> Self:
        index = torch.as_tensor(index)
        assert index.dtype != torch.bool, "row numbers, not a mask: `rows[mask.nonzero()[:, 0]]`"
        index = index.long()

        def take(value: Any) -> Any:
            if isinstance(value, Prompts):
                return value
            if isinstance(value, tuple):
                return tuple(value[i] for i in index.tolist())
            return value[index.to(value.device)] if isinstance(value, Tensor) else value[index]

        return replace(self, **{f.name: take(getattr(self, f.name)) for f in fields(self)})

    def sequences(self) -> tuple[Sequences, ...]:
        """The token rows in here, row-aligned; what a micro-batch costs is counted from them."""
        return tuple(v for f in fields(self) if isinstance(v := getattr(self, f.name), Sequences))

    def to(self, device: torch.device | str) -> Self:
        """The same rows with every tensor on `device`."""

        def move(value: Any) -> Any:
            return value.to(device) if isinstance(value, Tensor | Rows) else value

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True)
class Sequences(Rows):
    """Answers to prompts: the prompt is all before the first trainable token, the rest is `tokens`.

    `lengths` says how many of a row's T columns are real (pad ids never do); `mask` is True on the policy's own tokens,
    False on padding and on what an environment or a user said in between.

    >>> Sequences(torch.tensor([[5, 2], [7, 0]]), mask, torch.tensor([2, 1]), torch.tensor([0, 0]), Prompts(((1, 3),)))
    """

    tokens: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    lengths: Int[Tensor, "B"]
    prompt_of: Int[Tensor, "B"]
    prompts: Prompts

    def sequences(self) -> tuple[Sequences, ...]:
        """The token rows in here, row-aligned; what a micro-batch costs is counted from them."""
        return (self,)

    @property
    def total_tokens(self) -> int:
        """Real tokens of the rows with every used prompt counted once: what the linear layers must see."""
        used = set(self.prompt_of.tolist())
        return int(self.lengths.sum()) + sum(len(self.prompts.tokens[p]) for p in used)


@dataclass(frozen=True)
class Pairs(Rows):
    """Comparisons: `preference` is P(chosen beats rejected) (0.5 a tie), `weight` what the row counts for."""

    chosen: Sequences
    rejected: Sequences
    preference: Float[Tensor, "B"]
    weight: Float[Tensor, "B"]
    margin: Float[Tensor, "B"]

    def both(self) -> Sequences:
        """Chosen rows, then rejected rows, over the same prompts: one forward computes each prompt once."""
        return concat(self.chosen, self.rejected)


@dataclass(frozen=True)
class Rollouts(Rows):
    """Answers sampled in this step with their rewards; `rewards` are the task's, before any KL penalty.

    `sampler_logprobs` are the sampler's own, under the temperature it used; `finished` is False where the token limit cut
    the answer.
    """

    answers: Sequences
    rewards: Float[Tensor, "B"]
    sampler_logprobs: Float[Tensor, "B T"]
    finished: Bool[Tensor, "B"]


@dataclass(frozen=True)
class PolicyBatch(Rows):
    """What a policy-gradient step holds fixed: advantages per token, the old and the reference log-probs."""

    answers: Sequences
    advantages: Float[Tensor, "B T"]
    old_logprobs: Float[Tensor, "B T"]
    ref_logprobs: Float[Tensor, "B T"]


@dataclass(frozen=True)
class ActorCriticBatch(PolicyBatch):
    """A policy batch with the value model's targets and its predictions when the step began."""

    returns: Float[Tensor, "B T"]
    old_values: Float[Tensor, "B T"]


@dataclass(frozen=True)
class PairsWithReference(Pairs):
    """Pairs with the reference's sum of log-probs for each side (DPO and kin)."""

    ref_chosen: Float[Tensor, "B"]
    ref_rejected: Float[Tensor, "B"]


def sequences(
    prompts: Sequence[Sequence[int]],
    prompt_of: Sequence[int],
    rows: Sequence[Sequence[int]],
    masks: Sequence[Sequence[bool]] | None = None,
) -> Sequences:
    """Right-pad token lists into a batch; without `masks` every answer token is the policy's own. Padding holds id 0."""
    assert len(prompt_of) == len(rows), (len(prompt_of), len(rows))
    assert all(len(p) > 0 for p in prompts), "a prompt needs at least one token: nothing predicts the first one"
    width = max((len(row) for row in rows), default=0)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for b, row in enumerate(rows):
        tokens[b, : len(row)] = torch.tensor(list(row), dtype=torch.long)
        mask[b, : len(row)] = torch.tensor([True] * len(row) if masks is None else list(masks[b]), dtype=torch.bool)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    shared = Prompts(tuple(tuple(int(t) for t in p) for p in prompts))
    return Sequences(tokens, mask, lengths, torch.tensor(list(prompt_of), dtype=torch.long), shared)


def concat(first: Sequences, second: Sequences) -> Sequences:
    """Rows of `first`, then of `second`, padded to a common width; both must share their `prompts`.

    What else each row carries (`Sampled`: its temperature) goes along.
    """
    assert type(first) is type(second), (type(first), type(second))
    assert first.prompts is second.prompts or first.prompts == second.prompts, "the two sides must share their prompts"
    width = max(first.tokens.shape[1], second.tokens.shape[1])

    def wide(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (0, width - x.shape[1]))

    own = {f.name: getattr(first, f.name) for f in fields(first)}
    of_rows = {n: (*value, *getattr(second, n)) for n, value in own.items() if isinstance(value, tuple)}
    return replace(
        first,
        tokens=torch.cat([wide(first.tokens), wide(second.tokens)]),
        mask=torch.cat([wide(first.mask), wide(second.mask)]),
        lengths=torch.cat([first.lengths, second.lengths]),
        prompt_of=torch.cat([first.prompt_of, second.prompt_of]),
        **of_rows,
    )


def row_keys(batch: Sequences) -> list[tuple[int, ...]]:
    """What makes two rows the same: prompt, real tokens and mask."""
    tokens, mask = batch.tokens.tolist(), batch.mask.int().tolist()
    rows = zip(batch.prompt_of.tolist(), batch.lengths.tolist(), tokens, mask, strict=True)
    return [(p, *t[:n], *m[:n]) for p, n, t, m in rows]


def distinct(batch: Sequences) -> tuple[Sequences, Int[Tensor, "B"]]:
    """Each different row once, and for every row of `batch` which of them it is.

    An answer that stands in several comparisons (a ranking of K gives K-choose-2) is then computed once.
    """
    first: dict[tuple[int, ...], int] = {}
    which, kept = [], []
    for row, key in enumerate(row_keys(batch)):
        if key not in first:
            first[key] = len(kept)
            kept.append(row)
        which.append(first[key])
    return batch[kept], torch.tensor(which, device=batch.tokens.device)


def per_group(
    values: Float[Tensor, "B"], prompt_of: Int[Tensor, "B"]
) -> tuple[Float[Tensor, "P G"], Int[Tensor, "P G"]]:
    """Values as a [P, G] matrix, a prompt a line, and the row index behind each cell (rows may come in any order).

    Raises ValueError where prompts have different numbers of answers.
    """
    order = torch.argsort(prompt_of, stable=True)
    counts = torch.unique(prompt_of, return_counts=True)[1]
    if len(set(counts.tolist())) > 1:
        raise ValueError(f"every prompt needs the same number of answers; got {counts.tolist()}")
    index = order.view(len(counts), -1)
    return values[index], index


def ungroup(grouped: Float[Tensor, "P G"], index: Int[Tensor, "P G"]) -> Float[Tensor, "B"]:
    """The inverse of `per_group`: one value a row, in the rows' own order."""
    out = grouped.new_empty(index.numel())
    out[index.reshape(-1)] = grouped.reshape(-1)
    return out
