"""Losses on preferred answers, one number per row: reward models, direct preference optimisation, labels on single answers.

h is the log-ratio log pi(y | x) - log ref(y | x) of a whole answer, summed over its tokens.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry(
    r_chosen: Float[Tensor, "B"], r_rejected: Float[Tensor, "B"], margin: Float[Tensor, "B"] | float = 0.0
) -> Float[Tensor, "B"]:
    """-log sigma(r+ - r- - margin)   (arXiv:2203.02155, eq. 1; the margin is Llama 2's, arXiv:2307.09288, eq. 2)."""
    assert r_chosen.shape == r_rejected.shape, (r_chosen.shape, r_rejected.shape)
    return -logsigmoid(r_chosen - r_rejected - margin)


def soft_bradley_terry(
    r_first: Float[Tensor, "B"],
    r_second: Float[Tensor, "B"],
    p: Float[Tensor, "B"] | float,
    margin: Float[Tensor, "B"] | float = 0.0,
) -> Float[Tensor, "B"]:
    """-p log sigma(d) - (1 - p) log sigma(-d), d = r1 - r2 - margin: cross-entropy with the label P(first wins) = p.

    p is in [0, 1]: the share of labellers for the first answer, or 1/2 for a tie. p = 1 is `bradley_terry`.
    """
    return p * bradley_terry(r_first, r_second, margin) + (1 - p) * bradley_terry(r_second, r_first, -margin)


def davidson_log_probs(difference: Float[Tensor, "B"], nu: float) -> Float[Tensor, "B 3"]:
    """log P(first wins), log P(second wins), log P(tie), which are as e^(d/2) : e^(-d/2) : nu, d = r1 - r2.

    Bradley-Terry extended by ties (Davidson, JASA 65, 1970): of equals nu / (2 + nu) tie, and given that there is no tie
    the first wins with sigma(d). nu > 0.
    """
    return torch.stack(
        [difference / 2, -difference / 2, torch.full_like(difference, math.log(nu))], dim=-1
    ).log_softmax(-1)


def davidson(
    r_first: Float[Tensor, "B"],
    r_second: Float[Tensor, "B"],
    p: Float[Tensor, "B"],
    nu: float,
    margin: Float[Tensor, "B"] | float = 0.0,
) -> Float[Tensor, "B"]:
    """-log P(tie) where p = 1/2, else -p log P(first wins) - (1 - p) log P(second wins), d = r1 - r2 - margin.

    The likelihood of `davidson_log_probs`. As a loss of DPO's implicit rewards: arXiv:2409.17431 (whose nu is half of this).
    """
    assert r_first.shape == r_second.shape == p.shape, (r_first.shape, r_second.shape, p.shape)
    first, second, tie = davidson_log_probs(r_first - r_second - margin, nu).unbind(-1)
    return -torch.where(p == 0.5, tie, p * first + (1 - p) * second)


def implicit_reward(h: Float[Tensor, "*shape"], beta: float) -> Float[Tensor, "*shape"]:
    """beta h: the reward for which pi is the optimal policy under a KL penalty beta, up to a constant per prompt.

    arXiv:2305.18290, eq. 5; the constant beta log Z(x) cancels between two answers to one prompt.
    """
    return beta * h


def dpo(
    h_chosen: Float[Tensor, "B"],
    h_rejected: Float[Tensor, "B"],
    beta: float,
    label_smoothing: Float[Tensor, "B"] | float = 0.0,
    margin: Float[Tensor, "B"] | float = 0.0,
) -> Float[Tensor, "B"]:
    """-log sigma(beta (h+ - h-) - margin): `bradley_terry` on the implicit rewards   (DPO, arXiv:2305.18290, eq. 7).

    `label_smoothing` is the probability that a label is flipped (conservative DPO, Mitchell 2023); 1/2 is a tie.
    `margin` is the lead asked for, in implicit reward (DPO with an offset, arXiv:2402.10571).
    """
    r_chosen, r_rejected = implicit_reward(h_chosen, beta), implicit_reward(h_rejected, beta)
    return soft_bradley_terry(r_chosen, r_rejected, 1 - label_smoothing, margin)


def ipo(h_chosen: Float[Tensor, "B"], h_rejected: Float[Tensor, "B"], tau: float) -> Float[Tensor, "B"]:
    """(h+ - h- - 1 / (2 tau))^2   (IPO, arXiv:2310.12036, eq. 17)."""
    assert h_chosen.shape == h_rejected.shape, (h_chosen.shape, h_rejected.shape)
    return (h_chosen - h_rejected - 1 / (2 * tau)) ** 2


def soft_ipo(
    h_first: Float[Tensor, "B"], h_second: Float[Tensor, "B"], tau: float, p: Float[Tensor, "B"] | float
) -> Float[Tensor, "B"]:
    """p ipo(h1, h2) + (1 - p) ipo(h2, h1): the mean over labels with P(first wins) = p, smallest at h1 - h2 = (2p - 1) / (2 tau)."""
    return p * ipo(h_first, h_second, tau) + (1 - p) * ipo(h_second, h_first, tau)


def kto(
    h: Float[Tensor, "B"],
    desirable: Bool[Tensor, "B"],
    z0: Float[Tensor, "B"] | float,
    beta: float,
    *,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Tensor, "B"]:
    """lambda_D (1 - sigma(beta (h - z0))) where desirable, else lambda_U (1 - sigma(beta (z0 - h)))   (KTO, arXiv:2402.01306).

    z0 >= 0 estimates KL(pi || ref) and is a constant of the step: no gradient goes through it.
    """
    assert h.shape == desirable.shape, (h.shape, desirable.shape)
    gain = beta * (h - z0)
    return torch.where(desirable, desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain))


def hinge(h_chosen: Float[Tensor, "B"], h_rejected: Float[Tensor, "B"], beta: float) -> Float[Tensor, "B"]:
    """max(0, 1 - beta (h+ - h-)): SLiC's hinge (arXiv:2305.10425) on log-ratios, as in RSO (arXiv:2309.06657).

    With log pi in place of h it is SLiC's own max(0, delta - log pi(y+) + log pi(y-)), divided by delta = 1 / beta.
    """
    assert h_chosen.shape == h_rejected.shape, (h_chosen.shape, h_rejected.shape)
    return (1 - beta * (h_chosen - h_rejected)).clamp(min=0)


def simpo(
    mean_chosen: Float[Tensor, "B"], mean_rejected: Float[Tensor, "B"], beta: float, gamma: float
) -> Float[Tensor, "B"]:
    """-log sigma(beta m+ - beta m- - gamma), m = log pi(y | x) / |y|   (SimPO, arXiv:2405.14734, eq. 6). No reference."""
    return bradley_terry(beta * mean_chosen, beta * mean_rejected, gamma)


def orpo(mean_chosen: Float[Tensor, "B"], mean_rejected: Float[Tensor, "B"], weight: float) -> Float[Tensor, "B"]:
    """-m+ - weight log sigma(log odds(y+) - log odds(y-)), odds = e^m / (1 - e^m), m = log pi(y | x) / |y|.

    ORPO, arXiv:2403.07691, eq. 6 and 7. No reference. m < 0.
    """
    return -mean_chosen + weight * bradley_terry(_log_odds(mean_chosen), _log_odds(mean_rejected))


def _log_odds(logp: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """log(p / (1 - p)), exact near both ends."""
    return logp - torch.log(-torch.expm1(logp))
