"""Estimators of KL(pi || ref) from tokens sampled by pi, and what the gradient of each one really is.

Every function maps the log-probabilities of the sampled tokens under pi and ref to one number per token
(Schulman, "Approximating KL divergence", joschu.net/blog/kl-approx.html). Write r = ref / pi at the sampled token.

An estimator whose mean is the KL need not have the gradient of the KL (arXiv:2506.09477). Expected gradients at one
state, for tokens sampled from the current pi; "in the loss" differentiates the term, "in the reward" multiplies it,
detached, by grad log pi:

| estimator  | in the loss                | in the reward                                   |
|------------|----------------------------|-------------------------------------------------|
| `k1`       | 0                          | grad KL(pi, ref)                                |
| `k2`       | grad KL(pi, ref)           | grad E_pi[k2] - grad KL(pi, ref)                |
| `k3`       | grad KL(ref, pi): forward  | grad KL(pi, ref) - grad KL(ref, pi)             |
| `ratio_k3` | grad KL(pi, ref)           | as `k3`                                         |

"In the loss" holds the visited states fixed: the sum over t of grad KL(pi, ref at s_t). Token by token, only k1 in the
reward, with reward-to-go and no discount, gives the gradient of the KL between whole sequences. Where the whole answer is
one action (log pi its sum over tokens) the table speaks of whole sequences in every line.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Estimator = Literal["k1", "k2", "k3", "ratio_k3"]


def k1(logp: Float[Tensor, "*shape"], ref: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """-log r = log pi - log ref. Unbiased, may be negative. For the reward; in the loss its expected gradient is 0."""
    return logp - ref


def k2(logp: Float[Tensor, "*shape"], ref: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """(log r)^2 / 2. Biased as a value, but in the loss its expected gradient is that of KL(pi, ref)."""
    return (logp - ref) ** 2 / 2


def k3(logp: Float[Tensor, "*shape"], ref: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """(r - 1) - log r. Unbiased and never negative: the one to report.

    In the loss its expected gradient is that of the forward KL(ref, pi), which is what GRPO's paper descends
    (arXiv:2402.03300, eq. 4). For the gradient of KL(pi, ref) use `ratio_k3`.
    """
    log_r = ref - logp
    return torch.expm1(log_r) - log_r


def ratio_k3(
    logp: Float[Tensor, "*shape"], ref: Float[Tensor, "*shape"], old_logp: Float[Tensor, "*shape"] | None = None
) -> Float[Tensor, "*shape"]:
    """pi / sg(pi) * k3, sg = stop gradient: the value of k3 with, in the loss, the expected gradient of KL(pi, ref).

    The factor is 1 in value; it carries the score-function part that `k3` leaves out (arXiv:2506.09477). With
    `old_logp`, the log-probabilities under the policy that sampled, the factor is pi / pi_old: for its samples the
    value is again unbiased, and the gradient again that of KL(pi, ref).
    """
    sampled_by = logp.detach() if old_logp is None else old_logp
    return torch.exp(logp - sampled_by) * k3(logp, ref)


def estimate(
    name: Estimator,
    logp: Float[Tensor, "*shape"],
    ref: Float[Tensor, "*shape"],
    old_logp: Float[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """The estimator of that name. `old_logp`, the policy that sampled where it is not pi, matters to `ratio_k3` alone."""
    if name == "ratio_k3":
        return ratio_k3(logp, ref, old_logp)
    return {"k1": k1, "k2": k2, "k3": k3}[name](logp, ref)
