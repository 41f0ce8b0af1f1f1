"""The best linear reading of fixed features by comparisons: a convex problem, solved exactly."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

ITERATIONS = 50


def pairwise_probe(
    chosen: Float[Tensor, "B D"],
    rejected: Float[Tensor, "B D"],
    preference: Float[Tensor, "B"],
    weight: Float[Tensor, "B"],
    centering: float = 0.0,
) -> Float[Tensor, "D"]:
    """w that minimises the Bradley-Terry loss of scores w . h, with a Gaussian prior on w, in float64.

    sum_i weight_i [-p_i log s(w . d_i) - (1 - p_i) log s(-w . d_i) + centering (w . t_i)^2] + v |w|^2 / 2

    d = chosen - rejected, t = chosen + rejected, s the logistic function, v the mean squared distance of the features from
    their mean: the prior expects scores of a spread of about 1 whatever the features' units are. Newton's method with
    halved steps. "Linear probing, then fine-tuning" (Kumar et al. 2022, arXiv:2202.10054) starts a head here, so that the
    first gradients do not tear up features that a random head cannot read yet.
    """
    difference, total = (chosen - rejected).double(), (chosen + rejected).double()
    weight, preference = weight.double(), preference.double()
    features = torch.cat([chosen, rejected]).double()
    prior = (features - features.mean(0)).square().sum(-1).mean().clamp_min(1e-12)
    identity = torch.eye(features.shape[1], dtype=torch.float64, device=features.device)
    spread = 2 * centering * (total.T * weight) @ total + prior * identity

    def objective(w: Tensor) -> Tensor:
        score = difference @ w
        loss = torch.nn.functional.binary_cross_entropy_with_logits(score, preference, weight, reduction="sum")
        return loss + w @ spread @ w / 2

    w = torch.zeros(features.shape[1], dtype=torch.float64, device=features.device)
    value = objective(w)
    for _ in range(ITERATIONS):
        sigma = torch.sigmoid(difference @ w)
        gradient = difference.T @ (weight * (sigma - preference)) + spread @ w
        curvature = (difference.T * (weight * sigma * (1 - sigma))) @ difference + spread
        step = torch.linalg.solve(curvature, gradient)
        if float(gradient @ step) < 1e-12 * (1 + abs(float(value))):
            break
        size = 1.0
        while float(objective(w - size * step)) > float(value) and size > 1e-6:
            size /= 2
        w = w - size * step
        value = objective(w)
    return w
