"""Which answers of a group are learnt from: the best ones, or the best against the worst. Equal rewards share evenly.

An answer's share is its chance under a fair lot among equals, so nothing depends on the order of answers and no lot is drawn.
"""

from jaxtyping import Bool, Float
from torch import Tensor


def top_shares(rewards: Float[Tensor, "P G"], kept: int) -> Float[Tensor, "P G"]:
    """The chance of each answer to be among the `kept` of its group with the highest rewards; each group's sum is `kept`.

    1 above the lowest kept reward, 0 below it; the answers that have it share the places that are left.
    """
    assert 1 <= kept <= rewards.shape[1], (kept, rewards.shape)
    lowest = rewards.topk(kept, dim=1).values[:, -1:]
    above, level = (rewards > lowest).to(rewards.dtype), (rewards == lowest).to(rewards.dtype)
    left = kept - above.sum(1, keepdim=True)
    return above + level * left / level.sum(1, keepdim=True)


def best_against_worst(rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G G"]:
    """Cell (i, j): the chance that i is drawn as the group's best answer and j as its worst; each group's sum is 1.

    Groups of equal rewards have every cell at 1/G^2: there nothing is better than anything (`differ` says which they are).
    """
    best = (rewards == rewards.amax(1, keepdim=True)).to(rewards.dtype)
    worst = (rewards == rewards.amin(1, keepdim=True)).to(rewards.dtype)
    cells = best[:, :, None] * worst[:, None, :]
    return cells / cells.sum((1, 2), keepdim=True)


def differ(rewards: Float[Tensor, "P G"]) -> Bool[Tensor, "P"]:
    """Whether a group's rewards are not all the same."""
    return (rewards != rewards[:, :1]).any(1)
