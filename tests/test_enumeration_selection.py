"""Best-of-N and online DPO, exact by enumeration: the expected step of the shipped methods over every group of answers."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import product
from math import prod

import pytest
import torch
from torch import Tensor

from tabular import World, ascent, make_world, step_loss
from tutelage.algorithms.best_of_n import BestOfN, best_of_n_curve, kl_bound
from tutelage.algorithms.online_dpo import OnlineDPO

EXACT, APART = 1e-10, 1e-2
GROUPS = (2, 3)
BETA = 0.5


@lru_cache
def world(levels: int = 0) -> World:
    """Seven answers of one and two tokens; with `levels`, rewards are so many whole numbers, so that answers tie."""
    made = make_world(3, 2, seed=21)
    return replace(made, rewards=torch.arange(7).double() % levels) if levels else made


def best_of_n_policy(one: World, n: int) -> Tensor:
    """P(y is the best of n), equals drawn by lot: p(y)/P(r = r_y) of what F(r_y)^n leaves of the lower rewards.  [N]"""
    p, r = one.probabilities().detach(), one.rewards
    at_most = torch.stack([p[r <= level].sum() for level in r])
    below = torch.stack([p[r < level].sum() for level in r])
    return p * (at_most**n - below**n) / (at_most - below)


def towards(one: World, target: Tensor) -> Tensor:
    """grad of sum_y target(y) log pi(y)."""
    return torch.autograd.grad((target * one.probabilities().log()).sum(), one.logits)[0]


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize("levels", [0, 2, 3])
@pytest.mark.parametrize("n", GROUPS)
def test_the_expected_step_goes_to_the_best_of_n_policy(n: int, levels: int):
    one = world(levels)
    target = best_of_n_policy(one, n)
    assert float(target.sum()) == pytest.approx(1)
    step = ascent(BestOfN(average="sum", equal_groups="share"), one, n)
    assert apart(step, towards(one, target)) < EXACT
    worst = replace(one, rewards=-one.rewards)
    assert apart(ascent(BestOfN(average="sum", equal_groups="share"), worst, n), towards(one, target)) > APART
    assert apart(step, towards(one, best_of_n_policy(one, n + 1))) > APART, "another n"
    assert apart(step, 0 * step) > APART


@pytest.mark.parametrize("n", GROUPS)
def test_skipping_takes_out_what_equal_groups_would_teach(n: int):
    """A group is all at level r with P(r)^n; its part of the step is P(r)^n grad E[log pi(y) | r]."""
    one = world(2)
    p = one.probabilities().detach()
    equal = torch.zeros_like(p)
    for level in one.rewards.unique():
        at = one.rewards == level
        equal += torch.where(at, p, 0.0) * p[at].sum() ** (n - 1)
    step = ascent(BestOfN(average="sum"), one, n)
    assert apart(step, towards(one, best_of_n_policy(one, n) - equal)) < EXACT
    assert apart(step, towards(one, best_of_n_policy(one, n))) > APART


def test_the_better_half_of_four():
    """fraction 1/2 of 4: the kept answers are distributed as the mean of the first and the second order statistic."""
    one = world()
    p, r = one.probabilities().detach(), one.rewards
    beaten = torch.stack([p[r <= level].sum() for level in r])
    below = torch.stack([p[r < level].sum() for level in r])

    def second_at_most(share: Tensor) -> Tensor:
        return share**4 + 4 * share**3 * (1 - share)

    target = (best_of_n_policy(one, 4) + second_at_most(beaten) - second_at_most(below)) / 2
    step = ascent(BestOfN(fraction=0.5, average="sum", equal_groups="share"), one, 4)
    assert apart(step, towards(one, target)) < EXACT
    assert apart(step, towards(one, best_of_n_policy(one, 4))) > APART


@pytest.mark.parametrize(("average", "power"), [("token", 0), ("sequence", 1)])
def test_averages_have_their_own_value(average: str, power: int):
    """One answer is kept: both averages are grad log pi over its length; they part where a step keeps several."""
    one = world()
    lengths = one.batch.mask.sum(1)
    step = ascent(BestOfN(average=average, equal_groups="share"), one, 2)
    assert apart(step, towards(one, best_of_n_policy(one, 2) / lengths)) < EXACT
    assert apart(step, towards(one, best_of_n_policy(one, 2))) > APART
    method = BestOfN(average=average, equal_groups="share")
    best = (int(one.rewards.argmax()), int(one.rewards.argsort()[-2]))
    groups = tuple((int(i), int(one.rewards.argmin())) for i in best)
    loss = step_loss(method, one, one.rollouts(*groups))
    logp = one.probabilities().log()[list(best)]
    length = lengths[list(best)]
    expected = -logp.sum() / length.sum() if power == 0 else -(logp / length).mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("levels", [0, 2])
def test_the_reported_curve_is_unbiased_and_the_bound_holds(levels: int):
    """E[best_of_n/n] over groups of 3 is the best-of-n policy's reward for n = 1, 2, 3; its KL is under the bound."""
    one = world(levels)
    p = one.probabilities().detach()
    for n in (1, 2, 3):
        target = best_of_n_policy(one, n)
        found = sum(
            weight * best_of_n_curve(one.rewards[list(group)][None])[f"best_of_n/{n}"]
            for weight, group in one.groups(3)
        )
        assert found == pytest.approx(float(target @ one.rewards), abs=1e-12)
        kl = float((target * (target / p).log()).sum())
        assert kl <= kl_bound(n, 1) + 1e-12
        assert n == 1 or kl < 0.9 * kl_bound(n, 1), "seven answers repeat: a bound, not the value"


def online_objective(one: World, size: int) -> Tensor:
    """sum over ordered groups of p(group) * -log sigma(beta (h(best) - h(worst))), p held fixed; rewards all differ."""
    p = one.probabilities().detach()
    h = one.probabilities().log() - one.probabilities(one.reference).log()
    terms = []
    for group in product(range(len(p)), repeat=size):
        best, worst = (f(group, key=lambda i: float(one.rewards[i])) for f in (max, min))
        if best != worst:
            chance = prod(float(p[i]) for i in group)
            terms.append(-chance * torch.nn.functional.logsigmoid(BETA * (h[best] - h[worst])))
    return torch.stack(terms).sum()


@pytest.mark.parametrize("size", GROUPS)
def test_online_dpo_expects_dpo_of_best_against_worst(size: int):
    one = world()
    expected = -torch.autograd.grad(online_objective(one, size), one.logits)[0]
    step = ascent(OnlineDPO(beta=BETA), one, size)
    assert apart(step, expected) < EXACT
    for mutant in (
        replace(one, rewards=-one.rewards),  # the pair swapped
        replace(one, reference=replace(one.policy, logits=one.logits.detach())),  # compared with itself
    ):
        assert apart(ascent(OnlineDPO(beta=BETA), mutant, size), expected) > APART
    assert apart(ascent(OnlineDPO(beta=2 * BETA), one, size), expected) > APART


def test_online_dpo_with_equals_is_the_mean_over_their_lots():
    """Two levels, groups of 3: drawing best and worst by lot among equals has the same expectation as sharing."""
    one = world(2)
    p = one.probabilities().detach()
    h = one.probabilities().log() - one.probabilities(one.reference).log()
    total = torch.zeros((), dtype=torch.float64)
    for group in product(range(7), repeat=3):
        high = [i for i in group if one.rewards[i] == 1]
        low = [i for i in group if one.rewards[i] == 0]
        for i, j in product(high, low):
            chance = prod(float(p[k]) for k in group) / (len(high) * len(low))
            total = total - chance * torch.nn.functional.logsigmoid(BETA * (h[i] - h[j]))
    expected = -torch.autograd.grad(total, one.logits)[0]
    assert apart(ascent(OnlineDPO(beta=BETA), one, 3), expected) < EXACT
    assert apart(expected, 0 * expected) > APART
