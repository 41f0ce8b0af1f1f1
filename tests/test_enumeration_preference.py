"""Preference methods, exact by enumeration: where each of them ends when it sees every pair of answers at its probability.

Every answer to a prompt is listed, so the expected step over labelled pairs is one step on all of them, weighted. The shipped
`prepare`, `weights` and `losses` have gradient 0 at the policy that the theorem names, and training reaches it from the start;
at the start, and for each named mutant, the gradient is not 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tabular import Table, World, make_world, state_number, step_loss
from tutelage.algorithms import preference
from tutelage.algorithms.base import Models
from tutelage.algorithms.preference import DPO, IPO
from tutelage.algorithms.reward_model import BradleyTerry
from tutelage.data.batch import Pairs, Sequences
from tutelage.functional.preference import dpo, ipo
from tutelage.functional.weights import weighted_sum

ZERO, ALIVE = 1e-10, 1e-3
BETA, TAU, NU = 0.5, 0.4, 1.7


@lru_cache
def world() -> World:
    """Seven answers of one and two tokens; a policy, another reference, rewards without symmetry."""
    return make_world(3, 2, seed=11)


@lru_cache
def leads() -> Tensor:
    """r(i) - r(j).  [N, N]"""
    return world().rewards[:, None] - world().rewards[None, :]


@lru_cache
def beats() -> Tensor:
    """P(i beats j), with cycles: no reward explains it.  [N, N]"""
    noise = torch.randn(7, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return torch.sigmoid(1.5 * (noise - noise.T))


@lru_cache
def drawn() -> Tensor:
    """mu: what the answers of IPO's data are drawn from; neither uniform nor the reference.  [N]"""
    noise = torch.randn(7, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    return noise.softmax(0)


def pairs(first: Tensor, second: Tensor, weight: Tensor, **fields: Tensor) -> Pairs:
    """Answers by number against each other; labels are sure and margins 0 unless given."""
    batch, ones = world().batch, torch.ones(len(first), dtype=torch.float64)
    values = {"preference": ones, "margin": 0 * ones, **fields}
    return Pairs(batch[first], batch[second], weight=weight, **values)


def ordered(weight: Tensor) -> Pairs:
    """Every ordered pair of different answers, the first one chosen, with its weight from [N, N]."""
    first, second = (~torch.eye(7, dtype=torch.bool)).nonzero().T
    return pairs(first, second, weight[first, second])


def unordered(weight: Tensor, p: Tensor, margin: Tensor | None = None) -> Pairs:
    """Every pair once, with the label P(first wins) from [N, N]."""
    first, second = torch.triu_indices(7, 7, 1)
    more = {} if margin is None else {"margin": margin[first, second]}
    return pairs(first, second, weight[first, second], preference=p[first, second], **more)


def with_ties(nu: float) -> Pairs:
    """Wins and ties as often as Davidson's model says: e^(d/2) : e^(-d/2) : nu."""
    d = leads()
    total = (d / 2).exp() + (-d / 2).exp() + nu
    won, tied = ordered((d / 2).exp() / total), unordered(nu / total, torch.full_like(d, 0.5))
    return Pairs(
        joined(won.chosen, tied.chosen),
        joined(won.rejected, tied.rejected),
        *(torch.cat([getattr(won, n), getattr(tied, n)]) for n in ("preference", "weight", "margin")),
    )


def joined(one: Sequences, other: Sequences) -> Sequences:
    rows = {n: torch.cat([getattr(one, n), getattr(other, n)]) for n in ("tokens", "mask", "lengths", "prompt_of")}
    return replace(one, **rows)


def tilted(scores: Tensor) -> Tensor:
    """pi_ref exp(scores) / Z.  [N]"""
    p = world().probabilities(world().reference).detach() * scores.exp()
    return p / p.sum()


def placed_at(p: Tensor) -> World:
    """The world with its policy at these probabilities of the answers: p(token | said) is a ratio of sums over answers."""
    logits = torch.zeros_like(world().logits)
    for probability, answer in zip(p.tolist(), world().answers, strict=True):
        for t, token in enumerate(answer):
            logits[state_number(answer[:t], 3), token] += probability
    logits[~logits.any(-1)] = 1.0  # what follows an end is never read
    return replace(world(), policy=replace(world().policy, logits=logits.log().requires_grad_()))


def steepness(method: Any, at: World, data: Pairs) -> float:
    """The largest entry of the expected step's gradient."""
    return float(torch.autograd.grad(step_loss(method, at, data), at.logits)[0].abs().max())


def trained(method: Any, data: Pairs) -> Tensor:
    """Probabilities of the answers where training ends that begins at the world's policy.  [N]"""
    start = world()
    logits = start.logits.detach().clone().requires_grad_()
    here = replace(start, policy=replace(start.policy, logits=logits))
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = step_loss(method, here, data)
        loss.backward()
        return loss

    optimizer.step(closure)
    return here.probabilities().detach()


@dataclass(frozen=True)
class Theorem:
    """A method on all pairs at their probabilities, and the scores whose tilt of the reference it ends at."""

    method: Any
    data: Callable[[], Pairs]
    scores: Callable[[], Tensor]


SHIFT = torch.tensor([0.3, -0.2, 0.0, 0.5, -0.4, 0.1, 0.2], dtype=torch.float64)
FULL = torch.tensor([[1.0 + i + 2 * j for j in range(7)] for i in range(7)], dtype=torch.float64)
"""Weights without symmetry: with soft labels any of full support has the same end."""

THEOREMS = {
    "dpo": Theorem(DPO(beta=BETA), lambda: ordered(torch.sigmoid(leads())), lambda: world().rewards / BETA),
    "dpo on soft labels": Theorem(
        DPO(beta=BETA), lambda: unordered(FULL, torch.sigmoid(leads())), lambda: world().rewards / BETA
    ),
    "dpo with an offset": Theorem(
        DPO(beta=BETA, margin_scale=2.0),
        lambda: unordered(FULL, torch.sigmoid(leads()), SHIFT[:, None] - SHIFT),
        lambda: (world().rewards + 2 * SHIFT) / BETA,
    ),
    "dpo with Davidson's ties": Theorem(DPO(beta=BETA, nu=NU), lambda: with_ties(NU), lambda: world().rewards / BETA),
    "ipo": Theorem(
        IPO(tau=TAU), lambda: ordered(drawn()[:, None] * drawn() * beats()), lambda: beats() @ drawn() / TAU
    ),
    "ipo on soft labels": Theorem(
        IPO(tau=TAU), lambda: unordered(drawn()[:, None] * drawn(), beats()), lambda: beats() @ drawn() / TAU
    ),
}


@pytest.mark.parametrize("name", THEOREMS)
def test_the_theorem(name: str) -> None:
    """The gradient is 0 at pi_ref exp(scores) / Z and training gets there; at the start it is not, and the start is elsewhere."""
    theorem = THEOREMS[name]
    data, target = theorem.data(), tilted(theorem.scores())
    assert steepness(theorem.method, placed_at(target), data) < ZERO
    assert steepness(theorem.method, world(), data) > ALIVE
    start = world().probabilities().detach()
    assert (start - target).abs().sum() > 0.1
    assert (trained(theorem.method, data) - target).abs().max() < 1e-6


def swapped(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda chosen, rejected, *rest: loss(rejected, chosen, *rest)


def blind(models: Models, batch: Any) -> tuple[Tensor, Tensor]:
    """log pi in place of log pi/ref."""
    assert models.policy is not None
    return preference.sequence_logprobs(models.policy, batch)


def soft_ipo_of(target: Callable[[float], float]) -> Callable[..., Tensor]:
    """IPO with another lead than 1 / (2 tau)."""
    return lambda h, g, tau, p: p * (h - g - target(tau)) ** 2 + (1 - p) * (g - h - target(tau)) ** 2


MUTANTS: dict[str, tuple[str, str, Any]] = {
    "dpo: sign": ("dpo", "dpo", swapped(dpo)),
    "dpo: no reference": ("dpo", "log_ratios", blind),
    "dpo: no beta": ("dpo", "dpo", lambda h, g, beta, *rest: dpo(h, g, 1.0, *rest)),
    "dpo: all pairs count the same": ("dpo", "row_weights", lambda weight: torch.full_like(weight, 1 / len(weight))),
    "dpo: ipo's loss": ("dpo", "dpo", lambda h, g, beta, *rest: ipo(h, g, beta)),
    "soft labels taken as sure": ("dpo on soft labels", "dpo", lambda h, g, beta, *rest: dpo(h, g, beta)),
    "the offset forgotten": ("dpo with an offset", "dpo", lambda h, g, beta, smooth, margin: dpo(h, g, beta, smooth)),
    "ties as half a win": ("dpo with Davidson's ties", "davidson", lambda r, s, p, nu, m: dpo(r, s, 1.0, 1 - p)),
    "ipo: sign": ("ipo", "soft_ipo", lambda h, g, tau, p: ipo(g, h, tau)),
    "ipo: no reference": ("ipo", "log_ratios", blind),
    "ipo: a lead of 1 / tau": ("ipo", "soft_ipo", soft_ipo_of(lambda tau: 1 / tau)),
    "ipo: mu forgotten": ("ipo", "row_weights", lambda weight: torch.full_like(weight, 1 / len(weight))),
    "ipo: soft labels taken as sure": ("ipo on soft labels", "soft_ipo", lambda h, g, tau, p: ipo(h, g, tau)),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_mutant_does_not_end_there(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, function, replacement = MUTANTS[mutant]
    theorem = THEOREMS[name]
    monkeypatch.setattr(preference, function, replacement)
    assert steepness(theorem.method, placed_at(tilted(theorem.scores())), theorem.data()) > ALIVE


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("ipo", IPO(tau=TAU, length="mean")),  # TRL's setting is another method
        ("ipo", DPO(beta=TAU)),  # no reward explains these preferences, so Bradley-Terry's fit is another point
        ("dpo", DPO(beta=BETA, label_smoothing=0.1)),
        ("dpo with Davidson's ties", DPO(beta=BETA)),
        ("dpo with Davidson's ties", DPO(beta=BETA, nu=2 * NU)),
    ],
    ids=["ipo per token", "dpo on cycles", "dpo smoothed", "ties as half", "another nu"],
)
def test_another_setting_ends_elsewhere(name: str, changed: Any) -> None:
    theorem = THEOREMS[name]
    assert steepness(changed, placed_at(tilted(theorem.scores())), theorem.data()) > ALIVE


def test_dpo_on_hard_labels_has_no_finite_end() -> None:
    """The better answer always wins: along exp(c r) the loss falls without end, whatever beta is."""
    data = ordered((leads() > 0).double())
    places = [placed_at(tilted(c * world().rewards)) for c in (1, 4, 16, 64)]
    losses = [step_loss(DPO(beta=BETA), place, data).item() for place in places]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.05 * losses[0]
    bounded = [step_loss(IPO(tau=TAU), place, data).item() for place in places]
    assert bounded[-1] > bounded[0], "IPO's squares have an end"


@dataclass(frozen=True)
class Scores:
    """A reward model that is a list: a number for every answer of the world."""

    numbers: Tensor

    def scores(self, answers: Sequences) -> Tensor:
        every = [tuple(t[:n]) for t, n in zip(answers.tokens.tolist(), answers.lengths.tolist(), strict=True)]
        return self.numbers[[world().answers.index(answer) for answer in every]]

    def values(self, answers: Sequences) -> Tensor:
        raise AssertionError("a reward model is read at the last token")


def reward_gradient(method: BradleyTerry, numbers: Tensor, data: Pairs) -> Tensor:
    numbers = numbers.clone().requires_grad_()
    models = Models(reward=Scores(numbers))
    prepared, _, _ = method.prepare(models, data, method.initial_state())
    loss = weighted_sum(method.losses(models, prepared)[0], method.weights(prepared))
    return torch.autograd.grad(loss, numbers)[0]


@pytest.mark.parametrize(
    ("method", "data"),
    [
        (BradleyTerry(centering=0.0), lambda: ordered(torch.sigmoid(leads()))),
        (BradleyTerry(centering=0.0), lambda: unordered(FULL, torch.sigmoid(leads()))),
        (BradleyTerry(centering=0.0, nu=NU), lambda: with_ties(NU)),
    ],
    ids=["sampled wins", "soft labels", "Davidson's ties"],
)
def test_the_reward_model_finds_the_rewards(method: BradleyTerry, data: Callable[[], Pairs]) -> None:
    """Up to a constant, which no comparison shows."""
    rewards = world().rewards
    assert reward_gradient(method, rewards + 3.0, data()).abs().max() < ZERO
    assert reward_gradient(method, torch.zeros_like(rewards), data()).abs().max() > ALIVE
    assert reward_gradient(method, -rewards, data()).abs().max() > ALIVE


@pytest.mark.parametrize("nu", [None, NU / 2], ids=["ties as half a win", "another nu"])
def test_ties_need_their_own_model(nu: float | None) -> None:
    """Davidson's data under Bradley-Terry with half wins, or under another nu: the rewards are no stationary point."""
    assert reward_gradient(BradleyTerry(centering=0.0, nu=nu), world().rewards, with_ties(NU)).abs().max() > ALIVE


def test_the_expected_share_of_ties_tells_whether_nu_fits() -> None:
    """At the true rewards the metric that is logged equals the observed share for the right nu only."""
    data, models = with_ties(NU), Models(reward=Scores(world().rewards))
    for nu, fits in ((NU, True), (NU / 2, False), (2 * NU, False)):
        method = BradleyTerry(centering=0.0, nu=nu)
        _, metrics = method.losses(models, data)
        weights = method.weights(data)
        observed, expected = (float((metrics[f"ties/{n}"] * weights).sum()) for n in ("observed", "expected"))
        assert (abs(observed - expected) < 1e-9) is fits
        assert 0.2 < observed < 0.6


def test_the_table_reads_back_what_was_placed() -> None:
    p = tilted(world().rewards)
    assert torch.allclose(placed_at(p).probabilities(), p, atol=1e-14)
    assert isinstance(world().policy, Table)
