"""Which answers of a group are learnt from (the best, the best against the worst, the most unlike), and which prompts are asked.

An answer's share is its chance under a fair lot among equals, so nothing depends on the order of answers and no lot is drawn.
"""

import torch
from jaxtyping import Bool, Float, Int
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


def max_variance_subset(rewards: Float[Tensor, "P G"], kept: int) -> Int[Tensor, "P m"]:
    """The `kept` answers of each group whose rewards vary most, in the answers' own order (PODS, arXiv:2504.13818).

    The best subset is some of the highest and the rest of the lowest (its section 3), so m + 1 candidates decide it. Of equal
    variances the one with most low rewards is taken, of equal rewards the earlier answers.
    """
    size = rewards.shape[1]
    assert 1 <= kept <= size, (kept, rewards.shape)
    values, order = (rewards.double() - rewards.double().mean(1, keepdim=True)).sort(dim=1, stable=True)
    sums = torch.nn.functional.pad(torch.stack([values, values**2]).cumsum(-1), (1, 0))
    high = torch.arange(kept + 1)  # of the highest; the others are the lowest
    total, squares = sums[..., kept - high] + sums[..., -1:] - sums[..., size - high]
    best = (squares / kept - (total / kept) ** 2).round(decimals=12).argmax(1)
    place = torch.arange(kept)
    places = torch.where(place < kept - best[:, None], place, size - kept + place)
    return order.gather(1, places).sort(1).values


def skip_chance(streak: int, exploration: float) -> float:
    """1 - p_e^z: how likely a prompt is skipped whose answers earned all alike the last z times (GRESO, arXiv:2506.02177)."""
    return 1 - exploration**streak


def adjusted_exploration(exploration: float, share: float, target: float, step: float = 0.01) -> float:
    """p_e after a step in which `share` of the prompts taught nothing: lower where that is `target` or more, else higher.

    Kept within [0.05, 0.95], as in the authors' code.
    """
    return min(max(exploration + (-step if share >= target else step), 0.05), 0.95)
