"""Importance weights: with no cap and whole answers the expected gradient is exactly the one of answers drawn exactly."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from tabular import ascent, grad_return, make_world, sampled_by_another, step_loss
from tutelage.algorithms.corrected import Corrected, mismatch
from tutelage.algorithms.grpo import GRPO
from tutelage.algorithms.ppo import PPO
from tutelage.algorithms.reinforce import Reinforce
from tutelage.functional.weights import weighted_sum

EXACT = 1e-9
METHODS = {
    "no baseline": (Reinforce(baseline="none", kl_coefficient=0.0), 1),
    "leave one out": (Reinforce(baseline="leave_one_out", kl_coefficient=0.0), 2),
}


def distance(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("name", METHODS)
def test_whole_answers_without_a_cap_are_exact(name):
    """Answers from another policy near by; uncorrected, capped and token by token the direction is another one."""
    method, size = METHODS[name]
    world = sampled_by_another(make_world(3, 2, 3), 5)
    truth = grad_return(world)
    assert distance(ascent(Corrected(method, math.inf, "sequence"), world, size), truth) < EXACT
    for other in (method, Corrected(method, 1.1, "sequence"), Corrected(method, math.inf, "token")):
        assert distance(ascent(other, world, size), truth) > 0.01


@pytest.mark.parametrize("name", METHODS)
def test_tokens_are_exact_where_an_answer_is_one_token(name):
    method, size = METHODS[name]
    world = sampled_by_another(make_world(4, 1, 2), 5)
    assert distance(ascent(Corrected(method, math.inf, "token"), world, size), grad_return(world)) < EXACT
    assert distance(ascent(method, world, size), grad_return(world)) > 0.01


@pytest.mark.parametrize("method", [GRPO(group_size=2), PPO(), Reinforce(baseline="leave_one_out")])
def test_a_sampler_that_is_the_policy_needs_no_correction(method):
    """The weights are 1, so the loss is the method's own, whatever the cap above 1 and the level."""
    world = make_world(3, 2, 3)
    rollouts = world.rollouts((0, 3), (5, 1))
    exact = step_loss(method, world, rollouts)
    for level in ("token", "sequence"):
        assert_close(step_loss(Corrected(method, 1.5, level), world, rollouts), exact, atol=1e-12, rtol=0)


@pytest.mark.parametrize("method", [GRPO(group_size=2), PPO(), Reinforce(baseline="leave_one_out")])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_split_changes_no_gradient(method, level):
    """The law: rows one by one give what they give together, ratios and KL from the trainer's log-probs."""
    world = sampled_by_another(make_world(3, 2, 3), 5)
    corrected = Corrected(method, 1.3, level)
    rows, _, metrics = corrected.prepare(world.models, world.rollouts((0, 3), (5, 1)), corrected.initial_state())
    weights = corrected.weights(rows)
    whole = torch.autograd.grad(weighted_sum(corrected.losses(world.models, rows)[0], weights), world.logits)[0]
    parts = sum(
        weighted_sum(corrected.losses(world.models, rows[[row]])[0], weights[[row]]) for row in range(len(rows))
    )
    assert_close(torch.autograd.grad(parts, world.logits)[0], whole, atol=1e-12, rtol=0)
    assert {len(part) for part in rows.sequences()} == {4}
    assert metrics["rollout/logprob_gap"] > 0.01


def test_mismatch_by_hand():
    """Ratios 2, 1/2 and 1 on three tokens, weights 2, 1/2, 1: ESS (3.5)^2 / (3 * 5.25) of the tokens."""
    sampler = torch.tensor([[0.2, 0.4], [0.5, 0.9]]).log()
    trainer = torch.tensor([[0.4, 0.2], [0.5, 0.1]]).log()
    mask = torch.tensor([[True, True], [True, False]])
    found = mismatch(trainer, sampler, mask, (trainer - sampler).exp())
    assert found["rollout/logprob_gap"] == pytest.approx(2 * math.log(2) / 3)
    assert found["rollout/kl"] == pytest.approx(0, abs=1e-6)
    assert found["rollout/max_ratio"] == pytest.approx(2)
    assert found["rollout/effective_share"] == pytest.approx(3.5**2 / (3 * 5.25))


def test_what_the_loop_asks_is_the_methods_own():
    method = PPO(kl_coefficient=0.0, passes=3, minibatches=4)
    corrected = Corrected(method)
    assert corrected.needs == ("policy", "value")
    assert (corrected.passes, corrected.minibatches) == (3, 4)
    assert corrected.initial_state() == method.initial_state()
    once = Corrected(Reinforce())
    assert (once.passes, once.minibatches) == (1, 1)
