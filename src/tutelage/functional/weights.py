"""How losses become one number: weights over the tokens, or rows, of one whole optimiser step.

`weighted_sum(losses, weights)` is the loss of the step. Weights are computed once, before the step is cut into
micro-batches, and their denominators pass through `total`, a sum over ranks: how rows are split changes no gradient.
Rows and groups with nothing to train on keep their place in the denominators and get weight 0.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

Total = Callable[[Tensor], Tensor]


def identity(x: Tensor) -> Tensor:
    """The sum over ranks when there is one rank."""
    return x


def keep(x: Float[Tensor, "*shape"], mask: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x where the mask is true, elsewhere exactly 0, in value and in gradient, whatever stood there (even NaN)."""
    assert x.shape == mask.shape, (x.shape, mask.shape)
    return torch.where(mask.bool(), x, 0)


def weighted_sum(losses: Float[Tensor, "*shape"], weights: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """sum of losses * weights in which a cell of weight 0 has no say, even if its loss is NaN."""
    return (keep(losses, weights != 0) * weights).sum()


def token_mean(mask: Shaped[Tensor, "B T"], total: Total = identity) -> Float[Tensor, "B T"]:
    """1 / (tokens of the step): every token counts the same; long answers count for more than short ones."""
    return mask.bool() / _at_least_one(total(mask.bool().sum()))


def sequence_mean(mask: Shaped[Tensor, "B T"], total: Total = identity) -> Float[Tensor, "B T"]:
    """1 / (rows * own length): every row counts the same, so a token of a short row counts for more.

    The weights of GRPO's paper (arXiv:2402.03300, eq. 3).
    """
    return mask.bool() / _at_least_one(_lengths(mask))[:, None] / _rows(mask, total)


def sequence_sum(mask: Shaped[Tensor, "B T"], total: Total = identity) -> Float[Tensor, "B T"]:
    """1 / rows on every token: the weights of the gradient of the expected return, E[sum_t A_t grad log pi(y_t)].

    REINFORCE (Williams 1992).
    """
    return mask.bool() / _rows(mask, total)


def constant(mask: Shaped[Tensor, "B T"], length: int, total: Total = identity) -> Float[Tensor, "B T"]:
    """1 / (rows * length), `length` being fixed (the budget of answer tokens): Dr. GRPO (arXiv:2503.20783)."""
    assert length > 0, length
    return mask.bool() / (_rows(mask, total) * length)


def group_token_mean(
    mask: Shaped[Tensor, "B T"], prompt_of: Int[Tensor, "B"], total: Total = identity
) -> Float[Tensor, "B T"]:
    """1 / (groups * tokens of own group): tokens weigh alike within a group, groups weigh alike.

    DAPO's formula (arXiv:2503.14476, eq. 8), whose 1 / sum_i |o_i| stands inside the expectation over prompts.
    Rows with the same `prompt_of` are one group; a group lives on one rank.
    """
    prompts, group = prompt_of.unique(return_inverse=True)
    tokens = torch.zeros_like(prompts, dtype=torch.long).index_add(0, group, _lengths(mask))
    groups = total(torch.tensor(len(prompts), device=mask.device))
    return mask.bool() / _at_least_one(tokens)[group][:, None] / _at_least_one(groups)


def row_mean(
    rows: Shaped[Tensor, "B"], weights: Float[Tensor, "B"] | None = None, total: Total = identity
) -> Float[Tensor, "B"]:
    """1 / rows for losses of one number per row (pairs, labels). `rows` is false on rows that are skipped but counted.

    With `weights`, weights / (their sum): 1 / C(K, 2) on each pair of a ranking of K makes every ranking count the same
    (arXiv:2203.02155, eq. 1). Weights are finite and not negative.
    """
    if weights is None:
        return rows.bool() / _rows(rows, total)
    sum_of_weights = total(weights.sum())
    # With no weight anywhere each numerator is 0 too, and any denominator but 0 will do.
    return keep(weights, rows) / torch.where(sum_of_weights > 0, sum_of_weights, 1)


def _lengths(mask: Shaped[Tensor, "B T"]) -> Int[Tensor, "B"]:
    return mask.bool().sum(dim=1)


def _rows(mask: Shaped[Tensor, "B *rest"], total: Total) -> Int[Tensor, ""]:
    return _at_least_one(total(torch.tensor(len(mask), device=mask.device)))


def _at_least_one(count: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """A count used as a denominator; where it is 0 the numerator is 0 as well."""
    return count.clamp(min=1)
