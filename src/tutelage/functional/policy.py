"""Policy-gradient losses, one number per token: REINFORCE, PPO's clipped surrogate, CISPO, the value loss.

Nothing here is averaged or masked: weights do that. Advantages and old log-probabilities are constants of the step.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from tutelage.functional.weights import keep


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


def mean_log_ratio(
    logp: Float[Tensor, "B T"], old_logp: Float[Tensor, "B T"], mask: Shaped[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """log s_i = (1/|y_i|) sum_t log pi/pi_old, on every masked-in token of row i   (GSPO, arXiv:2507.18071, eq. 7).

    exp of it is the geometric mean of the tokens' ratios. `clipped_surrogate(mean_log_ratio, 0, A)` with the weights
    `sequence_mean` is GSPO's objective (eq. 5), one clipped ratio an answer. Masked cells are 0, the ratio 1.
    """
    lengths = mask.bool().sum(1, keepdim=True).clamp(min=1)
    mean = keep(logp - old_logp, mask).sum(1, keepdim=True) / lengths
    return keep(mean.expand(mask.shape), mask)


def cispo(
    logp: Float[Tensor, "*shape"],
    old_logp: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    low: float,
    high: float,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """-sg(clip(r, 1 - low, 1 + high)) A log pi, sg = stop gradient   (CISPO, arXiv:2506.13585, eq. 4 and 5).

    REINFORCE with a clipped importance weight: unlike the surrogate's, this clip takes no token's gradient away. `low` = 1
    leaves the ratio unbounded below, as in the paper. Also returns 1 where the weight was clipped, else 0.
    """
    assert logp.shape == advantages.shape, (logp.shape, advantages.shape)
    r = ratio(logp, old_logp).detach()
    weight = r.clamp(1 - low, 1 + high)
    return reinforce(logp, weight * advantages), (weight != r).to(logp.dtype)


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
