"""Putting rows on one line of tokens: each piece once, with its positions and what it goes on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from tutelage.data.batch import Sequences
from tutelage.models.attention import Span


@dataclass(frozen=True)
class Piece:
    """A prompt, an answer, or what a later prompt adds to an earlier row."""

    number: int
    """Of its span's pieces."""
    end: int
    """Index of its last token on the line."""
    depth: int
    """Position behind its last token: how many tokens of its own sequence stand up to there."""


class Line:
    """A line in the making; `before` and `last` as in `packing.Packed`."""

    def __init__(self, batch: Sequences) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.spans: list[Span] = []
        self.before: Int[Tensor, "B T"] = torch.zeros(batch.tokens.shape, dtype=torch.long)
        self.last: Int[Tensor, "B"] = torch.zeros(len(batch), dtype=torch.long)
        self._prompts = batch.prompts.tokens
        self._rows = rows_of(batch)
        self._sizes: list[int] = []
        self._parents: list[int] = []

    def begin(self) -> None:
        """A new span."""
        self._sizes, self._parents = [], []

    def group(self, prompt: int, parent: Piece | None, rows: Sequence[int]) -> dict[int, Piece]:
        """What a prompt adds to `parent` (all of it where there is none), then its answers: the piece that each row ends with."""
        here = self._add(self._prompts[prompt][parent.depth if parent else 0 :], parent)
        pieces = {}
        for row in rows:
            piece, length = self._add(self._rows[row], here), len(self._rows[row])
            first = piece.end - length + 1
            self.before[row, :length] = torch.arange(first - 1, first + length - 1)
            self.before[row, :1] = here.end
            self.last[row] = piece.end
            pieces[row] = piece
        return pieces

    def end(self) -> None:
        """The span is whole."""
        parents = tuple(self._parents[1:])
        start = len(self.ids) - sum(self._sizes)
        self.spans.append(Span(start, len(self.ids), tuple(self._sizes[1:]), parents if any(parents) else ()))

    def _add(self, tokens: Sequence[int], parent: Piece | None) -> Piece:
        if not tokens:
            assert parent is not None, "a prompt needs at least one token"
            return parent
        depth = parent.depth if parent else 0
        self._sizes.append(len(tokens))
        self._parents.append(parent.number if parent else 0)
        self.ids.extend(tokens)
        self.positions.extend(range(depth, depth + len(tokens)))
        return Piece(len(self._sizes) - 1, len(self.ids) - 1, depth + len(tokens))


def rows_of(batch: Sequences) -> list[tuple[int, ...]]:
    """The real tokens of every row."""
    return [tuple(t[:n]) for t, n in zip(batch.tokens.tolist(), batch.lengths.tolist(), strict=True)]


def continuations(batch: Sequences, members: Mapping[int, Sequence[int]]) -> dict[int, int]:
    """Prompt -> the row that it goes on from: the longest one that it begins with, prompt and answer (a dialogue's last turn)."""
    prompts, rows = batch.prompts.tokens, rows_of(batch)
    found: dict[int, tuple[int, int]] = {}
    for later in members:
        whole = prompts[later]
        for earlier, answers in members.items():
            head = prompts[earlier]
            if len(head) >= len(whole) or whole[: len(head)] != head:
                continue
            for row in answers:
                size = len(head) + len(rows[row])
                if rows[row] and whole[len(head) : size] == rows[row] and size > found.get(later, (0, 0))[0]:
                    found[later] = (size, row)
    return {later: row for later, (_, row) in found.items()}
