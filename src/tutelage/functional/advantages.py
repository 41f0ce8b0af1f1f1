"""From rewards to advantages: baselines over a group, returns and GAE over the tokens of an answer, whitening.

These run once per step, without gradient, in `prepare`. Time is counted in action tokens: where the mask has holes, the
token before a hole is followed by the token after it. Masked cells are never read and come out as 0.
"""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn.functional import pad

from tutelage.functional.weights import Total, identity, keep


def center(rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """r_i - mean(r): the advantage of Dr. GRPO (arXiv:2503.20783). A group of equal rewards gives exactly 0.

    As a baseline the group mean shrinks the expected gradient by 1 - 1/G, since it contains r_i itself.
    """
    # The mean of G equal floats can miss them by a rounding error; the mean of G zeros cannot.
    offsets = rewards - rewards[:, :1]
    return offsets - offsets.mean(dim=1, keepdim=True)


def leave_one_out(rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """r_i - mean of the other r_j: unbiased baseline (RLOO, arXiv:2402.14740). Equal rewards give exactly 0.

    With G = 1 there are no others, the baseline is 0 and the advantage is the reward: plain REINFORCE, still unbiased.
    """
    group = rewards.shape[1]
    return center(rewards) * group / (group - 1) if group > 1 else rewards.clone()


def standardize(rewards: Float[Tensor, "P G"], epsilon: float) -> Float[Tensor, "P G"]:
    """(r_i - mean(r)) / (std(r) + epsilon): the advantage of GRPO (arXiv:2402.03300, section 4.1.2), std with G - 1.

    A group of equal rewards, and so a group of one, gives exactly 0.
    """
    centered = center(rewards)
    std = (centered.square().sum(dim=1, keepdim=True) / max(rewards.shape[1] - 1, 1)).sqrt()
    return torch.where(std > 0, centered / (std + epsilon), 0)


def at_last_token(scores: Float[Tensor, "B"], mask: Shaped[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """The score of an answer as the reward of its last action token (its EOS if it has one); 0 on every other token.

    A row without any action token gets zeros.
    """
    assert scores.shape == mask.shape[:1], (scores.shape, mask.shape)
    actions = mask.bool()
    actions_left = actions.flip(1).cumsum(1).flip(1)
    return torch.where(actions & (actions_left == 1), scores[:, None], 0)


def first_token(mask: Shaped[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """True on the first action token of each row: the state before it is the prompt, whatever is said afterwards."""
    actions = mask.bool()
    return actions & (actions.cumsum(1) == 1)


def reward_to_go(
    rewards: Float[Tensor, "B T"], mask: Shaped[Tensor, "B T"], discount: float = 1.0
) -> Float[Tensor, "B T"]:
    """R_t = r_t + discount * R_{t+1}: the return that an action can still influence (Sutton & Barto, eq. 3.9)."""
    actions = mask.bool()
    decay = torch.full_like(rewards, discount).masked_fill(~actions, 1)
    return keep(_sum_ahead(keep(rewards, actions), decay), actions)


def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    discount: float,
    lam: float,
    *,
    bootstrap: Float[Tensor, "B"] | None = None,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Generalised advantage estimation and the returns a value model learns from (arXiv:1506.02438, eq. 16).

        delta_t = r_t + discount * V_{t+1} - V_t        A_t = delta_t + discount * lam * A_{t+1}        R_t = A_t + V_t

    V_t is the value before action t. After the last action V is 0, because the answer has ended, unless `bootstrap`
    gives the value of the state after it: for answers that were cut off, with 0 in the rows of answers that ended.
    """
    assert rewards.shape == values.shape == mask.shape, (rewards.shape, values.shape, mask.shape)
    actions = mask.bool()
    after_last = values.new_zeros(len(values)) if bootstrap is None else bootstrap
    next_values = _next_action_values(keep(values, actions), actions, after_last)
    deltas = keep(rewards + discount * next_values - values, actions)
    decay = torch.full_like(deltas, discount * lam).masked_fill(~actions, 1)
    advantages = keep(_sum_ahead(deltas, decay), actions)
    return advantages, keep(advantages + values, actions)


def whiten(
    x: Float[Tensor, "*shape"],
    mask: Shaped[Tensor, "*shape"],
    total: Total = identity,
    shift_mean: bool = True,
    epsilon: float = 1e-8,
) -> Float[Tensor, "*shape"]:
    """(x - mean) / sqrt(var + epsilon), mean and variance (n - 1) being those of the masked-in cells of all ranks.

    `shift_mean=False` adds the mean back and so changes only the spread (arXiv:1909.08593, for rewards).
    Advantages want True. Fewer than two cells have variance 0.
    """
    count = total(mask.bool().sum())
    mean = total(keep(x, mask).sum()) / count.clamp(min=1)
    deviations = keep(x - mean, mask)
    variance = total(deviations.square().sum()) / (count - 1).clamp(min=1)
    whitened = deviations * torch.rsqrt(variance + epsilon)
    return keep(whitened if shift_mean else whitened + mean, mask)


def _next_action_values(
    values: Float[Tensor, "B T"], actions: Shaped[Tensor, "B T"], after_last: Float[Tensor, "B"]
) -> Float[Tensor, "B T"]:
    """The value of the first action after each cell, or `after_last` where there is none; `values` is 0 off actions."""
    onwards = torch.cat([values, after_last[:, None]], dim=1)
    hole = pad(~actions, (0, 1)).to(values.dtype)
    return _sum_ahead(onwards, hole)[:, 1:]


def _sum_ahead(terms: Float[Tensor, "B T"], decay: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """S_t = terms_t + decay_t * S_{t+1}, by doubling: log2(T) passes over [B, T] in place of T steps."""
    span = 1
    # Here S_t = terms_t + decay_t * S_{t+span}; putting in the same line for S_{t+span} doubles the span.
    while span < terms.shape[1]:
        terms = terms + decay * pad(terms[:, span:], (0, span))
        decay = decay * pad(decay[:, span:], (0, span))
        span *= 2
    return terms
