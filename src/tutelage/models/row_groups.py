"""Which rows answer the same prompt: they ask its keys together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """Which rows answer which prompt, as the products over the prompts' keys need them. P prompts, M rows a prompt at most."""

    slots: Int[Tensor, "R"]
    """Each row's prompt."""
    members: Int[Tensor, "P*M"]
    """The rows of each prompt, padded with row 0."""
    place: Int[Tensor, "R"]
    """Where each row stands among `members`."""
    prompts: int
    in_order: bool
    """Whether `members` are simply all rows in their order: nothing has to be gathered."""

    @classmethod
    def of(cls, held: Sequence[int], device: torch.device) -> Groups:
        """`held`: the prompt of each row; every prompt from 0 to the largest has one."""
        rows_of: list[list[int]] = [[] for _ in range(max(held) + 1)]
        within = []
        for row, slot in enumerate(held):
            within.append(len(rows_of[slot]))
            rows_of[slot].append(row)
        most = max(len(rows) for rows in rows_of)
        members = [row for rows in rows_of for row in rows + [0] * (most - len(rows))]
        place = [slot * most + nth for slot, nth in zip(held, within, strict=True)]
        slots, padded, back = (torch.tensor(each, device=device) for each in (list(held), members, place))
        return cls(slots, padded, back, len(rows_of), members == list(range(len(held))))

    def gather(self, x: Float[Tensor, "R K r n"]) -> Float[Tensor, "P*K M*r n"]:
        """What the rows of a prompt ask, side by side."""
        _, kv, folded, size = x.shape
        together = x if self.in_order else x[self.members]
        return together.view(self.prompts, -1, kv, folded, size).transpose(1, 2).reshape(self.prompts * kv, -1, size)

    def scatter(self, x: Float[Tensor, "P*K M*r n"], kv: int) -> Float[Tensor, "R K r n"]:
        """The reverse of `gather`."""
        most = len(self.members) // self.prompts
        apart = x.view(self.prompts, kv, most, -1, x.shape[-1]).transpose(1, 2).flatten(0, 1)
        return apart if self.in_order else apart[self.place]
