"""Preference games by hand and by law: rock, scissors, paper with a reference that likes rock."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from tutelage.functional.nash import (
    antisymmetric,
    best_response,
    exploitability,
    geometric_mixture,
    mirror_descent_step,
    nash_md_step,
    preference_loss,
    win_probability,
)

CYCLE = tensor([[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]], dtype=torch.float64)
"""Rock, scissors, paper: each beats the next one, the last the first; row beats column."""
MU = tensor([0.6, 0.3, 0.1], dtype=torch.float64).log()
START = tensor([0.2, 0.2, 0.6], dtype=torch.float64).log()
TAU = 0.1
SELF_PLAY = tensor([0.432, 0.230, 0.338], dtype=torch.float64)
"""The fixed point mu exp(P(y > pi) / tau) / Z, to three digits."""


def test_the_preference_is_antisymmetric_for_any_scorer():
    one, other = tensor([0.3, -2.0, 5.0]), tensor([1.1, -2.0, -4.0])
    assert torch.equal(antisymmetric(one, other), -antisymmetric(other, one))
    assert_close(torch.sigmoid(antisymmetric(one, other)) + torch.sigmoid(antisymmetric(other, one)), torch.ones(3))
    assert torch.sigmoid(antisymmetric(one, one)).tolist() == [0.5, 0.5, 0.5]


def test_preference_loss_by_hand():
    logit = math.log(3.0)  # P(first wins) = 3/4
    losses = preference_loss(tensor([logit] * 3), tensor([1.0, 0.0, 0.5]))
    assert_close(losses, tensor([-math.log(0.75), -math.log(0.25), -(math.log(0.75) + math.log(0.25)) / 2]))


def test_geometric_mixture_by_hand():
    """sqrt(.64 .04) = .16, sqrt(.36 .96) = .588 : normalised .2139 and .7861. A shift of the logits changes nothing."""
    logp, ref = tensor([0.64, 0.36]).log(), tensor([0.04, 0.96]).log()
    a, b = 0.16, math.sqrt(0.36 * 0.96)
    assert_close(geometric_mixture(logp, ref, 0.5).exp(), tensor([a, b]) / (a + b))
    assert_close(geometric_mixture(logp, ref, 0.0), logp)
    assert_close(geometric_mixture(logp, ref, 1.0), ref)
    assert_close(geometric_mixture(logp + 3, ref - 7, 0.3), geometric_mixture(logp, ref, 0.3))


def test_win_probability_by_hand():
    """Against (.2, .2, .6): rock wins .1 + .2, scissors .1 + .6, paper .2 + .3."""
    assert_close(win_probability(CYCLE, START), tensor([0.3, 0.7, 0.5], dtype=torch.float64))


def iterate(step, rates, start=START):
    policy = start
    for rate in rates:
        policy = step(policy, MU, CYCLE, TAU, rate)
    return policy


def test_one_step_of_each_by_hand():
    """Weights pi^.9 mu^.1 exp(P) with eta = 1; self-play meets (.3, .7, .5), Nash-MD the mixture."""
    mixed = [0.2**0.9 * 0.6**0.1, 0.2**0.9 * 0.3**0.1, 0.6**0.9 * 0.1**0.1]
    weights = [m * math.exp(p) for m, p in zip(mixed, [0.3, 0.7, 0.5], strict=True)]
    expected = tensor([w / sum(weights) for w in weights], dtype=torch.float64)
    assert_close(mirror_descent_step(START, MU, CYCLE, TAU, 1.0).exp(), expected)
    r, s, p = (m / sum(mixed) for m in mixed)
    weights = [m * math.exp(w) for m, w in zip(mixed, [r / 2 + s, s / 2 + p, p / 2 + r], strict=True)]
    expected = tensor([w / sum(weights) for w in weights], dtype=torch.float64)
    assert_close(nash_md_step(START, MU, CYCLE, TAU, 1.0).exp(), expected)


def test_mirror_descent_reaches_the_equilibrium():
    policy = iterate(mirror_descent_step, [0.05] * 4000)
    assert_close(policy.exp(), SELF_PLAY, atol=5e-4, rtol=0)
    assert_close(best_response(CYCLE, policy, MU, TAU), policy)
    assert float(exploitability(CYCLE, policy, MU, TAU)) == pytest.approx(0, abs=1e-12)


def test_nash_md_reaches_it_with_falling_rates_and_stops_elsewhere_with_a_constant_one():
    falling = iterate(nash_md_step, [2 / (TAU * (t + 2)) for t in range(20_000)])
    assert_close(falling.exp(), SELF_PLAY, atol=1e-3, rtol=0)
    assert float(exploitability(CYCLE, falling, MU, TAU)) < 1e-5
    constant = iterate(nash_md_step, [1.25] * 2000)
    assert_close(constant.exp(), tensor([0.416, 0.203, 0.381], dtype=torch.float64), atol=1e-3, rtol=0)
    rival = geometric_mixture(constant, MU, 0.125)
    assert_close(best_response(CYCLE, rival, MU, TAU), constant)
    assert float(exploitability(CYCLE, constant, MU, TAU)) > 1e-3


def test_exploitability_is_the_gain_of_the_best_response():
    """Written out for the start, and without regularisation by hand: scissors win .7."""
    best = best_response(CYCLE, START, MU, TAU)

    def worth(policy):
        return policy.exp() @ win_probability(CYCLE, START) - TAU * (policy.exp() * (policy - MU)).sum()

    assert float(exploitability(CYCLE, START, MU, TAU)) == pytest.approx(float(worth(best) - worth(START)))
    assert float(exploitability(CYCLE, START, MU, 0.0)) == pytest.approx(0.2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        policy = torch.log_softmax(torch.randn(3, generator=generator, dtype=torch.float64), 0)
        assert float(exploitability(CYCLE, policy, MU, TAU)) > 0
        assert float(worth(policy)) <= float(worth(best))
