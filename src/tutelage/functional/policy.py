"""Policy-gradient losses, one number per token: REINFORCE, PPO's clipped surrogate, the value loss.

Nothing here is averaged or masked: weights do that. Advantages and old log-probabilities are constants of the step.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def reinforce(logp: Float[Tensor, "*shape"], advantages: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """-A log pi, whose gradient is that of minus the expected return when A is unbiased (Williams 1992)."""
    assert logp.shape == advantages.shape, (logp.shape, advantages.shape)
    return -advantages * logp


def ratio(logp: Float[Tensor, "*shape"], old_logp: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """pi / pi_old of the sampled tokens."""
    assert logp.shape == old_logp.shape, (logp.shape, old_logp.shape)
    return torch.exp(logp - old_logp)


def clipped_surrogate(
    logp: Float[Tensor, "*shape"],
    old_logp: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    low: float,
    high: float,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """-min(r A, clip(r, 1 - low, 1 + high) A), r = pi / pi_old   (PPO, arXiv:1707.06347, eq. 7, where low = high).

    `high` > `low` is DAPO's clip-higher (arXiv:2503.14476, eq. 10). Also returns 1 where the clip binds, that is where
    the token has no gradient, else 0: r above 1 + high with A > 0, or r below 1 - low with A < 0.
    """
    assert logp.shape == advantages.shape, (logp.shape, advantages.shape)
    r = ratio(logp, old_logp)
    losses = -torch.minimum(r * advantages, r.clamp(1 - low, 1 + high) * advantages)
    clipped = ((r > 1 + high) & (advantages > 0)) | ((r < 1 - low) & (advantages < 0))
    return losses, clipped.to(losses.dtype)


def clipped_value_loss(
    values: Float[Tensor, "*shape"],
    old_values: Float[Tensor, "*shape"],
    returns: Float[Tensor, "*shape"],
    clip: float | None,
) -> Float[Tensor, "*shape"]:
    """max((V - R)^2, (V_clip - R)^2) / 2, V_clip = V kept within `clip` of the old V   (as in arXiv:2005.12729).

    `clip=None` gives (V - R)^2 / 2.
    """
    assert values.shape == old_values.shape == returns.shape, (values.shape, old_values.shape, returns.shape)
    squared_error = (values - returns) ** 2
    if clip is None:
        return squared_error / 2
    near_old = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum(squared_error, (near_old - returns) ** 2) / 2


def importance_weight(
    trainer_old: Float[Tensor, "*shape"], sampler: Float[Tensor, "*shape"], cap: float
) -> Float[Tensor, "*shape"]:
    """min(pi_trainer_old / pi_sampler, cap), detached: corrects the loss of tokens drawn by another engine.

    Both arguments are log-probabilities, of the same model weights in different arithmetic; the cap bounds the variance
    (truncated importance sampling, Ionides 2008).
    """
    return ratio(trainer_old, sampler).clamp(max=cap).detach()
