"""Rewards before they become advantages: length and missing-end penalties, rewards of steps, the adaptive KL coefficient.

All of these run once per step, without gradient, in `prepare`.
"""

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from tutelage.functional.advantages import reward_to_go
from tutelage.functional.weights import keep


def soft_overlong(lengths: Int[Tensor, "B"], limit: int, buffer: int) -> Float[Tensor, "B"]:
    """0 up to limit - buffer tokens, then falling in a line to -1 at `limit`   (DAPO, arXiv:2503.14476, eq. 13).

    An answer that the limit cut is `limit` tokens long and so gets the full -1. A buffer of 0 tokens punishes nothing.
    """
    if buffer == 0:
        return torch.zeros(lengths.shape, device=lengths.device)
    over = (lengths - (limit - buffer)).float() / buffer
    return -over.clamp(0, 1)


def missing_end(finished: Bool[Tensor, "B"], penalty: float) -> Float[Tensor, "B"]:
    """-penalty for an answer without its end-of-turn token, 0 for one that ended by itself."""
    return torch.where(finished, 0.0, -penalty)


def step_advantages(
    rewards: Float[Tensor, "B T"],
    steps: Bool[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    prompt_of: Int[Tensor, "B"],
    epsilon: float | None,
) -> Float[Tensor, "B T"]:
    """A_{i,t} = sum over the steps of answer i that end at or after t of (r - mean(R)) / (std(R) + epsilon).

    Process supervision of DeepSeekMath (arXiv:2402.03300, section 4.1.3): `rewards` are r_i^{index(j)} where `steps` is
    true (the last token of step j, one of the policy's own), and R is all step rewards of the group, std with |R| - 1.
    `epsilon=None` leaves the division out (as Dr. GRPO does). Equal rewards give exactly 0; so does a group of one step.
    """
    assert not (steps & ~mask.bool()).any(), "a step ends on a token that the policy chose"
    groups, group = prompt_of.unique(return_inverse=True)

    def per_group(x: Float[Tensor, "B T"]) -> Float[Tensor, "N"]:
        return x.new_zeros(len(groups)).index_add(0, group, keep(x, steps).sum(1))

    count = per_group(torch.ones_like(rewards))
    # The mean of n equal floats can miss them by a rounding error; the mean of n zeros cannot.
    highest = torch.where(steps, rewards, -torch.inf).amax(1)
    top = torch.full_like(count, -torch.inf).scatter_reduce(0, group, highest, "amax")
    offsets = keep(rewards - top[group][:, None], steps)
    centered = keep(offsets - (per_group(offsets) / count.clamp(min=1))[group][:, None], steps)
    if epsilon is not None:
        std = (per_group(centered.square()) / (count - 1).clamp(min=1)).sqrt()[group][:, None]
        centered = torch.where(std > 0, centered / (std + epsilon), 0)
    return reward_to_go(centered, mask)


def adapted_coefficient(coefficient: float, kl: float, target: float, rate: float) -> float:
    """beta (1 + rate * clip((KL - target) / target, -0.2, 0.2))   (arXiv:1909.08593, section 2.2, where rate = 0.1).

    A proportional controller on log beta: the penalty grows while the policy is further from the reference than wanted.
    """
    error = min(max((kl - target) / target, -0.2), 0.2)
    return coefficient * (1 + rate * error)
