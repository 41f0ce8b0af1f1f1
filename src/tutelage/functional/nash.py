"""Two-player preference games: the antisymmetric preference, geometric mixtures, mirror descent, distance from equilibrium.

A game over Y answers is a matrix `preference` with P[i, j] = P(answer i beats answer j), P + P^T = 1. Policies are
log-probs over the answers; mu is the reference, tau the strength of the pull to it (arXiv:2312.00886, section 4).
The regularised equilibrium is the fixed point pi(y) proportional to mu(y) exp(P(y > pi) / tau).
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

HALF = 0.5
"""What a policy wins against itself; the value of every such game."""


def antisymmetric(forward: Float[Tensor, "*shape"], backward: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """s(x, y, y') - s(x, y', y): the logit of P(y > y' | x).

    Swapping the answers flips its sign exactly, so P(y > y') + P(y' > y) = 1 and P(y > y) = 1/2 whatever the scorer says.
    """
    assert forward.shape == backward.shape, (forward.shape, backward.shape)
    return forward - backward


def preference_loss(logit: Float[Tensor, "*shape"], label: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """-p log sigma(d) - (1 - p) log sigma(-d): cross-entropy with the label p = P(the first answer wins), 1/2 a tie."""
    return -label * logsigmoid(logit) - (1 - label) * logsigmoid(-logit)


def geometric_mixture(
    logp: Float[Tensor, "*shape V"], ref: Float[Tensor, "*shape V"], mixing: float
) -> Float[Tensor, "*shape V"]:
    """log of pi^(1 - b) mu^b / Z along the last dimension (arXiv:2312.00886, section 6); b = 0 is pi, b = 1 is mu.

    Logits serve as well as log-probs: a constant along V cancels in Z.
    """
    assert logp.shape == ref.shape, (logp.shape, ref.shape)
    return torch.log_softmax((1 - mixing) * logp + mixing * ref, dim=-1)


def win_probability(preference: Float[Tensor, "Y Y"], rival: Float[Tensor, "Y"]) -> Float[Tensor, "Y"]:
    """P(y > pi') = sum over y' of pi'(y') P(y > y'), for every answer y; `rival` holds log-probs."""
    return preference @ rival.exp()


def mirror_descent_step(
    logp: Float[Tensor, "Y"], ref: Float[Tensor, "Y"], preference: Float[Tensor, "Y Y"], tau: float, rate: float
) -> Float[Tensor, "Y"]:
    """Online mirror descent: pi_{t+1} proportional to pi_t^(1 - eta tau) mu^(eta tau) exp(eta P(y > pi_t)), eta = rate.

    It plays against the policy itself; any fixed point is the regularised equilibrium. 0 < eta tau <= 1.
    """
    assert 0 < rate * tau <= 1, (rate, tau)
    mixed = geometric_mixture(logp, ref, rate * tau)
    return torch.log_softmax(mixed + rate * win_probability(preference, logp), dim=-1)


def nash_md_step(
    logp: Float[Tensor, "Y"], ref: Float[Tensor, "Y"], preference: Float[Tensor, "Y Y"], tau: float, rate: float
) -> Float[Tensor, "Y"]:
    """Nash-MD: the same step against the mixture pi_t^(1 - eta tau) mu^(eta tau) instead of pi_t (arXiv:2312.00886, section 6).

    Its last iterate converges to the regularised equilibrium with eta_t = 2 / (tau (t + 2)) (theorem 1). With a constant
    rate it stops at mu exp(P(y > mixture) / tau) / Z, which is another point.
    """
    assert 0 < rate * tau <= 1, (rate, tau)
    mixed = geometric_mixture(logp, ref, rate * tau)
    return torch.log_softmax(mixed + rate * win_probability(preference, mixed), dim=-1)


def best_response(
    preference: Float[Tensor, "Y Y"], rival: Float[Tensor, "Y"], ref: Float[Tensor, "Y"], tau: float
) -> Float[Tensor, "Y"]:
    """argmax over pi of P(pi > rival) - tau KL(pi, mu): mu(y) exp(P(y > rival) / tau) / Z, as log-probs. tau > 0."""
    assert tau > 0, tau
    return torch.log_softmax(ref + win_probability(preference, rival) / tau, dim=-1)


def exploitability(
    preference: Float[Tensor, "Y Y"], policy: Float[Tensor, "Y"], ref: Float[Tensor, "Y"], tau: float
) -> Float[Tensor, ""]:
    """What the best response gains over staying: max_pi' [P(pi' > pi) - tau KL(pi', mu)] - [1/2 - tau KL(pi, mu)].

    The maximum is tau log sum_y mu(y) exp(P(y > pi) / tau). Never negative; 0 only at the regularised equilibrium. With
    tau = 0 the reference does not count, and it is max_y P(y > pi) - 1/2.
    """
    wins = win_probability(preference, policy)
    if tau == 0:
        return wins.max() - HALF
    kl = (policy.exp() * (policy - ref)).sum()
    return tau * torch.logsumexp(ref + wins / tau, dim=-1) - HALF + tau * kl
