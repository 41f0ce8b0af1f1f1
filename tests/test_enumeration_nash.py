"""Nash-MD exactly: every pair of an answer and a rival's answer is listed, through the method's own prepare, weights, losses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tabular import PROMPT, Table, World, every_answer, grad_return, make_world, state_number
from tutelage.algorithms.nash_md import NashMD
from tutelage.data.batch import Rollouts, sequences
from tutelage.functional.nash import exploitability, geometric_mixture, mirror_descent_step
from tutelage.functional.preference import soft_bradley_terry

TAU = 0.1
MU = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
START = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
CYCLE = torch.tensor([[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]], dtype=torch.float64)
"""Each of three answers beats the next one, the last the first."""
SELF_PLAY, MIXED = (0.432, 0.230, 0.338), (0.416, 0.203, 0.381)
"""The fixed points of self-play and of mixing 1/8, to three digits."""


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """Weights such as 1 / 49 in float64 too."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def rock_scissors_paper() -> World:
    """Answers of one token; the reference likes rock, the policy starts elsewhere."""
    policy, reference = (Table(p.log()[None].clone(), torch.zeros(1)) for p in (START, MU))
    policy.logits.requires_grad_()
    return World(every_answer(3, 1), torch.zeros(3, dtype=torch.float64), policy, reference, policy)


def seven_answers() -> tuple[World, Tensor]:
    """Answers of one and two tokens under a random preference that has cycles."""
    world = make_world(3, 2, seed=5)
    noise = torch.randn(7, 7, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    preference = torch.sigmoid(2 * (noise - noise.T))
    beats = preference > 0.5
    assert any(beats[i, j] and beats[j, k] and beats[k, i] for i in range(7) for j in range(7) for k in range(7))
    return world, preference


def mixture_table(world: World, mixing: float) -> Table:
    """The rival as it is sampled: pi^(1 - b) mu^b normalised at every token."""
    own, ref = (table.logits.detach().log_softmax(-1) for table in (world.policy, world.reference))
    return replace(world.policy, logits=geometric_mixture(own, ref, mixing))


def of_pairs(world: World, preference: Tensor, group: int) -> tuple[list[tuple[int, ...]], Rollouts]:
    """All groups of `group` pairs (answer, rival's answer) as one batch, a prompt a group; rewards P(y > y')."""
    count = len(world.answers)
    pairs = torch.cartesian_prod(*[torch.arange(count)] * (2 * group)).tolist()
    numbers = [n for pair in pairs for n in pair[:group]]
    rows = sequences([PROMPT] * len(pairs), [g for g in range(len(pairs)) for _ in range(group)],
                     [world.answers[n] for n in numbers])  # fmt: skip
    won = torch.stack([preference[pair[k], pair[group + k]] for pair in pairs for k in range(group)])
    logp = world.sampler.logprobs(rows).detach()
    return pairs, Rollouts(rows, won, logp, torch.ones(len(numbers), dtype=torch.bool))


def ascent(method: NashMD, world: World, preference: Tensor, rival: Tensor, group: int = 1) -> Tensor:
    """Minus the expected gradient of a step's loss over all groups: `rival` [N] are its answers' probabilities."""
    pairs, batch = of_pairs(world, preference, group)
    prepared, _, _ = method.prepare(world.models, batch, method.initial_state())
    losses, _ = method.losses(world.models, prepared)
    own = world.probabilities().detach()
    chances = torch.tensor([float(own[list(p[:group])].prod() * rival[list(p[group:])].prod()) for p in pairs])
    # The loss of a step of one group has 1 / group on every token, not 1 / (all rows)
    weights = method.weights(prepared) * len(pairs)
    by_row = chances.double().repeat_interleave(group)[:, None]
    return -torch.autograd.grad((losses * weights * by_row).sum(), world.logits)[0]


def objective(world: World, preference: Tensor, rival: Tensor) -> Tensor:
    """grad of P(pi > rival) - tau KL(pi, mu) with the rival held fixed: no sampling, no score function."""
    p, ref = world.probabilities(), world.probabilities(world.reference)
    value = p @ preference @ rival - TAU * (p * (p.log() - ref.log())).sum()
    return torch.autograd.grad(value, world.logits)[0]


def table_of(world: World, p: Tensor) -> Table:
    """The policy that gives the answers these probabilities."""
    vocabulary = world.logits.shape[1]
    mass = torch.zeros_like(world.logits.detach())
    for probability, answer in zip(p, world.answers, strict=True):
        for at, token in enumerate(answer):
            mass[state_number(answer[:at], vocabulary), token] += probability
    return replace(world.policy, logits=mass.clamp(min=1e-300).log().requires_grad_())


def with_policy(world: World, table: Table) -> World:
    return World(world.answers, world.rewards, table, world.reference, table)


def fixed_point(world: World, preference: Tensor, mixing: float, per_token: bool = True) -> World:
    """The world at pi = mu exp(P(y > rival) / tau) / Z, found by damped iteration on the answers' distribution."""
    ref = world.probabilities(world.reference).detach()
    p = world.probabilities().detach()
    for _ in range(3000):
        at = with_policy(world, table_of(world, p))
        whole = geometric_mixture(p.log(), ref.log(), mixing).exp()
        rival = world.probabilities(mixture_table(at, mixing)) if per_token else whole
        target = torch.log_softmax(ref.log() + preference @ rival / TAU, 0)
        before, p = p, torch.softmax(0.97 * p.log() + 0.03 * target, 0)
        if float((p - before).abs().max()) < 1e-15:
            break
    return with_policy(world, table_of(world, p))


def rival_of(world: World, mixing: float) -> Tensor:
    return world.probabilities(mixture_table(world, mixing)).detach()


class Loser(NashMD):
    """Mutant: rewarded for losing."""

    def prepare(self, models, batch, state):
        return super().prepare(models, replace(batch, rewards=1 - batch.rewards), state)


class KLInTheLoss(NashMD):
    """Mutant: k1 as a term of the loss, where its expected gradient is 0."""

    def prepare(self, models, batch, state):
        prepared, state, metrics = NashMD(kl_coefficient=0.0).prepare(models, batch, state)
        return replace(prepared, ref_logprobs=models.reference.logprobs(batch.answers).detach()), state, metrics

    def losses(self, models, batch):
        losses, metrics = super().losses(models, batch)
        term = models.policy.logprobs(batch.answers) - batch.ref_logprobs
        return losses + self.kl_coefficient * torch.where(batch.answers.mask, term, 0.0), metrics


METHOD = NashMD(kl_coefficient=TAU)
MUTANTS = [
    Loser(kl_coefficient=TAU),
    NashMD(kl_coefficient=0.0),
    KLInTheLoss(kl_coefficient=TAU),
    NashMD(kl_coefficient=0.2),
]


def close(one: Tensor, other: Tensor) -> bool:
    return bool(torch.allclose(one, other, atol=1e-10, rtol=1e-8))


@pytest.mark.parametrize("mixing", [0.0, 0.125, 1.0])
def test_the_expected_step_climbs_the_regularised_game(mixing):
    """E[step] = grad [P(pi > rival) - tau KL(pi, mu)], the rival held fixed; with leave-one-out groups too."""
    world, preference = seven_answers()
    rival = rival_of(world, mixing)
    expected = objective(world, preference, rival)
    assert float(expected.abs().max()) > 1e-2
    assert close(ascent(METHOD, world, preference, rival), expected)
    for mutant in MUTANTS:
        assert not close(ascent(mutant, world, preference, rival), expected), mutant


def test_leave_one_out_is_unbiased_too_and_a_mean_that_counts_the_answer_itself_is_not():
    world, preference = seven_answers()
    rival = rival_of(world, 0.125)
    expected = objective(world, preference, rival)
    assert close(ascent(NashMD(kl_coefficient=TAU, baseline="leave_one_out"), world, preference, rival, 2), expected)
    assert close(ascent(METHOD, world, preference, rival, 2), expected)

    class GroupMean(NashMD):
        """Mutant: the answer's own return is part of its baseline."""

        def _baseline(self, returns, batch):
            return returns.view(-1, 2).mean(1).repeat_interleave(2)

    biased = ascent(GroupMean(kl_coefficient=TAU), world, preference, rival, 2)
    assert not close(biased, expected)
    assert close(biased, expected / 2), "the group mean shrinks the gradient by 1 - 1/G"


def test_listing_pairs_in_one_batch_is_the_sum_over_steps_of_one_pair():
    """The same expectation, pair by pair: nothing in a step depends on the other pairs of the list."""
    world = rock_scissors_paper()
    rival = rival_of(world, 0.125)
    own, total = world.probabilities().detach(), torch.zeros_like(world.logits)
    for i in range(3):
        for j in range(3):
            rollouts = replace(world.rollouts((i,)), rewards=CYCLE[i, j][None])
            prepared, _, _ = METHOD.prepare(world.models, rollouts, METHOD.initial_state())
            loss = (METHOD.losses(world.models, prepared)[0] * METHOD.weights(prepared)).sum()
            total -= own[i] * rival[j] * torch.autograd.grad(loss, world.logits)[0]
    assert close(ascent(METHOD, world, CYCLE, rival), total)


@pytest.mark.slow
@pytest.mark.parametrize(("mixing", "reached"), [(0.0, SELF_PLAY), (0.125, MIXED)])
def test_training_reaches_the_fixed_point_of_its_rival(mixing, reached):
    """Self-play reaches mu exp(P(y > pi) / tau) / Z, a constant mixture mu exp(P(y > mixture) / tau) / Z."""
    expected = torch.tensor(reached, dtype=torch.float64)

    def trained(method: NashMD, steps: int = 800) -> Tensor:
        world = rock_scissors_paper()
        for _ in range(steps):
            up = ascent(method, world, CYCLE, rival_of(world, mixing))
            world.logits.data += 2.0 * up
        return world.probabilities().detach()

    assert_close(trained(METHOD), expected, atol=1e-3, rtol=0)
    assert float((START - expected).abs().max()) > 0.2, "the untrained start is elsewhere"
    assert float((trained(Loser(kl_coefficient=TAU)) - expected).abs().max()) > 0.05
    other = MIXED if mixing == 0 else SELF_PLAY
    assert float((torch.tensor(other) - expected).abs().max()) > 0.015, "the two fixed points differ"


@pytest.mark.parametrize("mixing", [0.0, 0.25])
def test_with_longer_answers_the_fixed_point_is_that_of_the_mixture_that_is_sampled(mixing):
    """No gradient at mu exp(P(y > rival) / tau) / Z, with the rival normalised token by token; one at the start."""
    start, preference = seven_answers()
    world = fixed_point(start, preference, mixing)
    assert float(ascent(METHOD, world, preference, rival_of(world, mixing)).abs().max()) < 1e-9
    assert float(ascent(METHOD, start, preference, rival_of(start, mixing)).abs().max()) > 1e-2
    for mutant in MUTANTS:
        assert float(ascent(mutant, world, preference, rival_of(world, mixing)).abs().max()) > 1e-4, mutant
    whole = fixed_point(start, preference, mixing, per_token=False)
    left = float(ascent(METHOD, whole, preference, rival_of(whole, mixing)).abs().max())
    assert left < 1e-9 if mixing == 0 else left > 1e-5, "mixing whole answers has another fixed point"


def test_self_play_ends_at_the_equilibrium_of_mirror_descent_and_a_bradley_terry_fit_does_not():
    """The tabular reference, and RL against the best scores for the same labels: another policy, which can be exploited."""
    world = fixed_point(rock_scissors_paper(), CYCLE, 0.0)
    policy = START.log()
    for _ in range(6000):
        policy = mirror_descent_step(policy, MU.log(), CYCLE, TAU, 0.1)
    assert_close(world.probabilities().detach(), policy.exp(), atol=1e-8, rtol=0)
    assert float(exploitability(CYCLE, policy, MU.log(), TAU)) < 1e-9
    scores = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scores], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")
    pair_weights = MU[:, None] * MU[None]

    def closure():
        optimizer.zero_grad()
        first, second = scores[:, None].expand(3, 3).reshape(-1), scores[None].expand(3, 3).reshape(-1)
        loss = (pair_weights.reshape(-1) * soft_bradley_terry(first, second, CYCLE.reshape(-1))).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    fitted = torch.log_softmax(MU.log() + scores.detach() / TAU, 0)
    assert float((fitted.exp() - policy.exp()).abs().max()) > 0.1
    assert float(exploitability(CYCLE, fitted, MU.log(), TAU)) > 0.05


def test_grad_return_is_what_nash_climbs_where_the_preference_is_a_reward():
    """A rival of one answer makes P(y > y') a reward of y alone: without KL the step is that of REINFORCE."""
    world, preference = seven_answers()
    rival = torch.from_numpy(np.eye(7)[2])
    plain = replace(world, rewards=preference[:, 2])
    assert close(ascent(NashMD(kl_coefficient=0.0), world, preference, rival), grad_return(plain))
