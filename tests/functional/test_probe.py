"""The linear probe is the minimum of its loss: by hand in one dimension, by its gradient in many."""

import math

import torch
from torch.testing import assert_close

from tutelage.functional.probe import pairwise_probe


def test_one_dimension_by_hand():
    """Features 1 and -1, always preferred: d = 2, v = 1, so w solves 2 (s(2 w) - 1) + w = 0."""
    w = float(pairwise_probe(torch.ones(1, 1), -torch.ones(1, 1), torch.ones(1), torch.ones(1)))
    assert abs(2 * (1 / (1 + math.exp(-2 * w)) - 1) + w) < 1e-7
    assert 0.4 < w < 0.7


def test_the_gradient_is_zero_and_centring_pulls_scores_to_zero():
    g = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(40, 5, generator=g) + 1, torch.randn(40, 5, generator=g) + 0.5
    preference, weight = torch.rand(40, generator=g).round(), torch.rand(40, generator=g)
    for centering in (0.0, 0.3):
        w = pairwise_probe(chosen, rejected, preference, weight, centering).requires_grad_()
        c, r = chosen.double() @ w, rejected.double() @ w
        losses = torch.nn.functional.binary_cross_entropy_with_logits(c - r, preference.double(), reduction="none")
        features = torch.cat([chosen, rejected]).double()
        prior = (features - features.mean(0)).square().sum(-1).mean()
        (weight.double() * (losses + centering * (c + r) ** 2)).sum().add(prior * w @ w / 2).backward()
        assert float(w.grad.abs().max()) < 1e-5
    plain = pairwise_probe(chosen, rejected, preference, weight)
    assert float((features @ w.detach()).mean().abs()) < float((features @ plain).mean().abs())


def test_no_unit_and_no_order_matters():
    g = torch.Generator().manual_seed(1)
    chosen, rejected = torch.randn(30, 4, generator=g), torch.randn(30, 4, generator=g)
    preference, weight = torch.ones(30), torch.ones(30)
    w = pairwise_probe(chosen, rejected, preference, weight)
    assert_close(pairwise_probe(chosen * 8, rejected * 8, preference, weight) * 8, w)
    assert_close(pairwise_probe(chosen.flip(0), rejected.flip(0), preference, weight), w)
    assert_close(pairwise_probe(rejected, chosen, 1 - preference, weight), w)


def test_separable_data_stay_finite():
    w = pairwise_probe(torch.full((500, 3), 1e3), torch.zeros(500, 3), torch.ones(500), torch.ones(500))
    assert bool(w.isfinite().all())
