"""Losses on pairs of answers, one number per pair: reward models and direct preference optimisation.

h is the log-ratio log pi(y | x) - log ref(y | x) of a whole answer, summed over its tokens.
"""

from jaxtyping import Float
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
) -> Float[Tensor, "B"]:
    """-log sigma(beta (h+ - h-)): `bradley_terry` on the implicit rewards   (DPO, arXiv:2305.18290, eq. 7).

    `label_smoothing` is the probability that a label is flipped (conservative DPO, Mitchell 2023); 1/2 is a tie.
    """
    return soft_bradley_terry(implicit_reward(h_chosen, beta), implicit_reward(h_rejected, beta), 1 - label_smoothing)


def ipo(h_chosen: Float[Tensor, "B"], h_rejected: Float[Tensor, "B"], tau: float) -> Float[Tensor, "B"]:
    """(h+ - h- - 1 / (2 tau))^2   (IPO, arXiv:2310.12036, eq. 17)."""
    assert h_chosen.shape == h_rejected.shape, (h_chosen.shape, h_rejected.shape)
    return (h_chosen - h_rejected - 1 / (2 * tau)) ** 2
