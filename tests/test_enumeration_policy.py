"""Policy gradients, exact by enumeration: what each method's step does in expectation, against what it should do.

The left side of every equation is the sum over all groups of answers of p(group) times the gradient of the shipped step
(`prepare`, `weights`, `losses`); the right side is a derivative of the answers' probabilities, or a sum in plain floats
over all ordered groups. Every equation rejects a standstill and mutants of the shipped code, each named.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from tabular import Words, World, ascent, grad_return, make_world, sampled_by_another, state_number, step_loss
from tutelage.algorithms.grpo import GRPO
from tutelage.algorithms.policy_gradient import RunningMean
from tutelage.algorithms.ppo import PPO
from tutelage.algorithms.reinforce import Reinforce
from tutelage.functional.advantages import center, gae, leave_one_out, reward_to_go
from tutelage.functional.policy import clipped_surrogate, reinforce
from tutelage.functional.weights import keep, sequence_sum, token_mean

small = lru_cache(partial(make_world, 3, 2, 3))
large = lru_cache(partial(make_world, 4, 3, 4))
EARLIER = RunningMean(mean=0.7, count=12, reward_mean=0.3, reward_squares=2.75)
"""Of earlier steps: mean return 0.7; task rewards of mean 0.3 and standard deviation sqrt(2.75 / 11) = 0.5."""

Credits = list[list[float]]
"""For each member of a group, for each of its tokens: what its grad log pi counts for."""


def enumerated(world: World, size: int, credits_of: Callable[[tuple[int, ...]], Credits]) -> Tensor:
    """sum over ordered groups of p(group) * sum over members and tokens of credit * grad log pi, in plain floats."""
    counts = [[0.0] * len(answer) for answer in world.answers]
    for p, group in world.groups(size, ordered=True):
        for member, credits in zip(group, credits_of(group), strict=True):
            for t, credit in enumerate(credits):
                counts[member][t] += p * credit
    width = world.batch.tokens.shape[1]
    padded = torch.tensor([row + [0.0] * (width - len(row)) for row in counts], dtype=torch.float64)
    return torch.einsum("nt,ntsv->sv", padded, world.scores)


def advantages(world: World, group: tuple[int, ...], standardized: bool, epsilon: float = 1e-4) -> list[float]:
    rewards = [world.rewards[i].item() for i in group]
    scale = statistics.stdev(rewards) + epsilon if standardized else 1.0
    return [(r - statistics.mean(rewards)) / scale for r in rewards]


def averaged(world: World, size: int, standardized: bool, average: str) -> Tensor:
    """GRPO on policy: A_i on every token, divided by the answer's tokens times G, or by the tokens of all G."""

    def credits_of(group: tuple[int, ...]) -> Credits:
        lengths = [len(world.answers[i]) for i in group]
        counts = [sum(lengths) if average == "token" else size * n for n in lengths]
        scored = advantages(world, group, standardized)
        return [[a / count] * n for a, count, n in zip(scored, counts, lengths, strict=True)]

    return enumerated(world, size, credits_of)


def covariance_with_own_length(world: World, size: int) -> Tensor:
    """(1 - 1/G) Cov(R, grad log pi(y) / |y|): the mean over an answer's tokens is no longer the gradient of a return."""
    p, per_token = world.probabilities().detach(), world.scores.sum(1)
    mean_score = per_token / world.batch.lengths[:, None, None]
    spread = world.rewards - (p * world.rewards).sum()
    return (1 - 1 / size) * torch.einsum("n,nsv->sv", p * spread, mean_score)


def discounted(world: World, gamma: float) -> Tensor:
    """sum over states of d(s) sum over a of pi(a|s) Q(s, a) grad log pi(a|s), Q by recursion over the tree of states."""
    pi = world.logits.detach().softmax(-1)
    vocabulary = pi.shape[1]
    rewards = dict(zip(world.answers, world.rewards.tolist(), strict=True))
    out = torch.zeros_like(pi)

    def value(said: Words, reached: float) -> float:
        row = pi[state_number(said, vocabulary)]
        ahead = [(*said, a) for a in range(vocabulary)]
        q = [rewards[s] if s in rewards else gamma * value(s, reached * row[a].item()) for a, s in enumerate(ahead)]
        mean = sum(row[a].item() * q[a] for a in range(vocabulary))
        out[state_number(said, vocabulary)] = reached * row * (torch.tensor(q, dtype=pi.dtype) - mean)
        return mean

    value((), 1.0)
    return out


def ratios(world: World, answer: Words) -> list[float]:
    """pi now / pi then of each token."""
    v = world.logits.shape[1]
    now, then = (m.logits.detach().softmax(-1) for m in (world.policy, world.sampler))
    return [
        (now[cell] / then[cell]).item() for cell in ((state_number(answer[:t], v), a) for t, a in enumerate(answer))
    ]


def clipped(r: float, a: float, low: float, high: float) -> float:
    """What a token's score counts for in min(r A, clip(r) A): nothing once the ratio is past its limit in A's direction."""
    return 0.0 if (r > 1 + high and a > 0) or (r < 1 - low and a < 0) else a * r


def ppo_credits(world: World, gamma: float, lam: float, clip: float = math.inf) -> Tensor:
    """PPO's A_t of one answer divided by its tokens: sum over k of (gamma lam)^k delta_{t+k}, delta by eq. 12 of GAE.

    Of an answer of another policy, what its ratio keeps of that.
    """

    def credits_of(group: tuple[int, ...]) -> Credits:
        answer, reward = world.answers[group[0]], world.rewards[group[0]].item()
        n, v = len(answer), world.policy.logits.shape[1]
        values = [world.policy.state_values[state_number(answer[:t], v)].item() for t in range(n)] + [0.0]
        deltas = [(reward if t == n - 1 else 0.0) + gamma * values[t + 1] - values[t] for t in range(n)]
        scored = [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, n)) for t in range(n)]
        return [[clipped(r, a, clip, clip) / n for r, a in zip(ratios(world, answer), scored, strict=True)]]

    return enumerated(world, 1, credits_of)


def reused(world: World, size: int, rule: str, low: float, high: float) -> Tensor:
    """Answers of another policy: how much of A each token's ratio keeps, by `rule`, divided as the method averages."""

    def of_sequence(answer: Words) -> list[float]:
        each = ratios(world, answer)
        return [math.prod(each) ** (1 / len(each))] * len(each) if rule == "sequence" else each

    def counted(r: float, a: float) -> float:
        return a * min(max(r, 1 - low), 1 + high) if rule == "cispo" else clipped(r, a, low, high)

    def credits_of(group: tuple[int, ...]) -> Credits:
        answers = [world.answers[i] for i in group]
        scored = advantages(world, group, standardized=False)
        share = [size * len(y) if rule == "sequence" else size * 5 for y in answers]
        return [[counted(r, a) / n for r in of_sequence(y)] for y, a, n in zip(answers, scored, share, strict=True)]

    return enumerated(world, size, credits_of)


def step_normalised(world: World, size: int) -> Tensor:
    def credits_of(group: tuple[int, ...]) -> Credits:
        scored = advantages(world, group, standardized=True, epsilon=1e-8)
        return [[a / size] * len(world.answers[i]) for a, i in zip(scored, group, strict=True)]

    return enumerated(world, size, credits_of)


def whitened(world: World, size: int) -> Tensor:
    """Over tokens, so that long answers decide the mean: (A - mean) / sqrt(var + 1e-8)."""

    def credits_of(group: tuple[int, ...]) -> Credits:
        rewards, lengths = [world.rewards[i].item() for i in group], [len(world.answers[i]) for i in group]
        cells = [r for r, n in zip(rewards, lengths, strict=True) for _ in range(n)]
        mean, scale = statistics.mean(cells), math.sqrt(statistics.variance(cells) + 1e-8)
        return [[(r - mean) / scale / size] * n for r, n in zip(rewards, lengths, strict=True)]

    return enumerated(world, size, credits_of)


IN_REINFORCE, IN_GRPO, IN_PPO = (f"tutelage.algorithms.{name}." for name in ("reinforce", "grpo", "ppo"))


def on_the_first_token(scores: Tensor, mask: Tensor) -> Tensor:
    return scores[:, None] * (mask.cumsum(1) == 1) * mask


def values_after_the_token(self: Reinforce, models: Any, batch: Any) -> Tensor:
    values = keep(models.value.values(batch.answers), batch.answers.mask)
    return torch.cat([values[:, 1:], values[:, :1]], dim=1)


MUTANTS: dict[str, tuple[str, Any]] = {
    "wrong sign": (IN_REINFORCE + "reinforce", lambda logp, advantages: -reinforce(logp, advantages)),
    "wrong sign in GRPO": (IN_GRPO + "clipped_surrogate", lambda *a: (-clipped_surrogate(*a)[0], a[0] * 0)),
    "wrong sign in PPO": (IN_PPO + "clipped_surrogate", lambda *a: (-clipped_surrogate(*a)[0], a[0] * 0)),
    "missing leave-one-out": (IN_REINFORCE + "leave_one_out", center),
    "leave-one-out where the group mean was asked": (IN_REINFORCE + "center", leave_one_out),
    "leave-one-out in GRPO": (IN_GRPO + "center", leave_one_out),
    "token mean": (IN_REINFORCE + "sequence_sum", token_mean),
    "token mean for the constant": (IN_GRPO + "constant", lambda mask, length: token_mean(mask)),
    "sum for the mean over an answer": (IN_GRPO + "sequence_mean", sequence_sum),
    "sum for the mean over tokens": (IN_GRPO + "token_mean", sequence_sum),
    "sum for PPO's mean": (IN_PPO + "token_mean", sequence_sum),
    "reward on the first token": ("tutelage.algorithms.policy_gradient.at_last_token", on_the_first_token),
    "running mean of this step too": (
        IN_REINFORCE + "Reinforce._baseline",
        lambda self, totals, batch, state: torch.full_like(totals, state.updated(totals, batch.rewards).mean),
    ),
    "value after the token": (IN_REINFORCE + "Reinforce._values", values_after_the_token),
    "normalised by this step too": (
        IN_REINFORCE + "Reinforce._normalized",
        lambda self, batch, state: replace(batch, rewards=(batch.rewards - batch.rewards.mean()) / state.reward_std),
    ),
    "no division by the deviation": (IN_GRPO + "standardize", lambda rewards, epsilon: center(rewards)),
    "not standardised": (IN_REINFORCE + "standardize", lambda rewards, epsilon: center(rewards)),
    "not whitened": (IN_REINFORCE + "whiten", lambda x, mask: x),
    "no discount": (IN_REINFORCE + "reward_to_go", lambda rewards, mask, discount: reward_to_go(rewards, mask)),
    "lambda one": (IN_PPO + "gae", lambda r, v, mask, gamma, lam, bootstrap: gae(r, v, mask, gamma, 1.0)),
    "no clip in PPO": (IN_PPO + "clipped_surrogate", lambda *a: clipped_surrogate(*a[:3], 1.0, 99.0)),
    "old as it is now in PPO": (
        IN_PPO + "clipped_surrogate",
        lambda logp, old, *rest: clipped_surrogate(logp, logp.detach(), *rest),
    ),
    "no clip": (IN_GRPO + "clipped_surrogate", lambda *a: clipped_surrogate(*a[:3], 1.0, 99.0)),
    "clip the other way round": (IN_GRPO + "clipped_surrogate", lambda *a: clipped_surrogate(*a[:3], a[4], a[3])),
    "CISPO without its weight": (IN_GRPO + "cispo", lambda *a: (reinforce(a[0], a[2]), a[0] * 0)),
    "sequence ratio from sums": (
        IN_GRPO + "mean_log_ratio",
        lambda logp, old, mask: keep(logp - old, mask).sum(1, keepdim=True).expand(mask.shape),
    ),
}


@dataclass(frozen=True)
class Theorem:
    """The step of `method` on groups of `size` goes, in expectation, where `truth(world, size)` says."""

    method: Any
    truth: Callable[[World, int], Tensor]
    mutants: tuple[str, ...]
    state: Any = None
    size: int | None = None
    reused: bool = False
    """Whether the answers are of another policy near by."""

    def on(self, world: World) -> World:
        return sampled_by_another(world, 5) if self.reused else world


REINFORCE = partial(Reinforce, kl_coefficient=0.0)
DR_GRPO = partial(GRPO, advantage="center", average="constant", max_length=5, kl_coefficient=0.0)
ON_POLICY = partial(GRPO, kl_coefficient=0.0)
ONE_PASS = partial(PPO, kl_coefficient=0.0, whiten_advantages=False, passes=1, minibatches=1)


def grad_j(world: World, size: int) -> Tensor:
    return grad_return(world)


COMMON = ("wrong sign", "token mean")
THEOREMS = {
    "no baseline": Theorem(REINFORCE(baseline="none"), grad_j, COMMON),
    "no baseline, one action": Theorem(REINFORCE(baseline="none", credit="answer"), grad_j, COMMON),
    "running mean": Theorem(
        REINFORCE(baseline="running_mean"), grad_j,
        (*COMMON, "running mean of this step too", "reward on the first token"), EARLIER,
    ),
    "leave one out": Theorem(REINFORCE(baseline="leave_one_out"), grad_j, (*COMMON, "missing leave-one-out")),
    "leave one out, one action": Theorem(
        REINFORCE(baseline="leave_one_out", credit="answer"), grad_j, (*COMMON, "missing leave-one-out")
    ),
    "value": Theorem(REINFORCE(baseline="value"), grad_j, (*COMMON, "value after the token")),
    "value of the prompt, one action": Theorem(
        REINFORCE(baseline="value", credit="answer"), grad_j, (*COMMON, "value after the token")
    ),
    "normalised by earlier steps": Theorem(
        REINFORCE(baseline="none", normalize="running"), lambda w, g: grad_return(w) / 0.5,
        (*COMMON, "normalised by this step too"), EARLIER,
    ),
    "group mean": Theorem(
        REINFORCE(baseline="group_mean"), lambda w, g: (1 - 1 / g) * grad_return(w),
        (*COMMON, "leave-one-out where the group mean was asked"),
    ),
    "Dr. GRPO": Theorem(
        DR_GRPO(), lambda w, g: (1 - 1 / g) / 5 * grad_return(w),
        ("wrong sign in GRPO", "token mean for the constant", "leave-one-out in GRPO"),
    ),
    "sequence mean": Theorem(
        ON_POLICY(advantage="center", average="sequence"), covariance_with_own_length,
        ("wrong sign in GRPO", "sum for the mean over an answer"),
    ),
    "token mean": Theorem(
        ON_POLICY(advantage="center", average="token"), partial(averaged, standardized=False, average="token"),
        ("wrong sign in GRPO", "sum for the mean over tokens"),
    ),
    "GRPO": Theorem(
        ON_POLICY(average="sequence"), partial(averaged, standardized=True, average="sequence"),
        ("wrong sign in GRPO", "no division by the deviation", "sum for the mean over an answer"),
    ),
    "GRPO by tokens": Theorem(
        ON_POLICY(), partial(averaged, standardized=True, average="token"),
        ("wrong sign in GRPO", "no division by the deviation", "sum for the mean over tokens"),
    ),
    "normalised by the step": Theorem(
        REINFORCE(baseline="none", normalize="step"), step_normalised, (*COMMON, "not standardised")
    ),
    "whitened": Theorem(REINFORCE(baseline="none", whiten_advantages=True), whitened, (*COMMON, "not whitened")),
    "discount": Theorem(
        REINFORCE(baseline="leave_one_out", discount=0.5), lambda w, g: discounted(w, 0.5),
        (*COMMON, "no discount"),
    ),
    "lambda": Theorem(
        ONE_PASS(gae_lambda=0.3, discount=0.9), lambda w, g: ppo_credits(w, 0.9, 0.3),
        ("wrong sign in PPO", "sum for PPO's mean", "lambda one"), size=1,
    ),
    "PPO's clipping": Theorem(
        ONE_PASS(gae_lambda=0.3, discount=0.9, clip=0.1), lambda w, g: ppo_credits(w, 0.9, 0.3, 0.1),
        ("wrong sign in PPO", "no clip in PPO", "old as it is now in PPO", "lambda one"), size=1, reused=True,
    ),
    "clipping": Theorem(
        DR_GRPO(passes=2, clip_low=0.1, clip_high=0.25), partial(reused, rule="token", low=0.1, high=0.25),
        ("wrong sign in GRPO", "no clip", "clip the other way round"), size=2, reused=True,
    ),
    "sequence ratio": Theorem(
        ON_POLICY(advantage="center", average="sequence", ratio="sequence", passes=2, clip_low=0.05, clip_high=0.15),
        partial(reused, rule="sequence", low=0.05, high=0.15),
        ("no clip", "clip the other way round", "sequence ratio from sums"), size=2, reused=True,
    ),
    "clipped weights": Theorem(
        DR_GRPO(objective="cispo", passes=2, clip_low=0.1, clip_high=0.25),
        partial(reused, rule="cispo", low=0.1, high=0.25), ("CISPO without its weight",), size=2, reused=True,
    ),
}  # fmt: skip
EXACT = 1e-7
"""Relative: everything is float64 but the weights, which are float32 numbers such as 1/20."""


def distance(theorem: Theorem, world: World, size: int) -> tuple[float, float]:
    """How far the method's ascent is from the truth, and how long the truth is."""
    truth = theorem.truth(world, size)
    return float((ascent(theorem.method, world, size, theorem.state) - truth).norm()), float(truth.norm())


@pytest.mark.parametrize("name", THEOREMS)
def test_every_group_of_four(name: str) -> None:
    """Vocabulary 3, answers of at most 2 tokens (or groups of 2, or of 1, where the theorem says so)."""
    theorem = THEOREMS[name]
    gap, length = distance(theorem, theorem.on(small()), theorem.size or 4)
    assert length > 0.01, "a standstill would pass"
    assert gap < EXACT * length


@pytest.mark.slow
@pytest.mark.parametrize("name", THEOREMS)
def test_every_pair(name: str) -> None:
    """Vocabulary 4, answers of at most 3 tokens: 40 answers, 820 pairs."""
    theorem = THEOREMS[name]
    gap, length = distance(theorem, theorem.on(large()), theorem.size or 2)
    assert length > 0.01
    assert gap < EXACT * length


@pytest.mark.parametrize(("name", "mutant"), [(n, m) for n, theorem in THEOREMS.items() for m in theorem.mutants])
def test_mutants_are_rejected(name: str, mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theorem = THEOREMS[name]
    monkeypatch.setattr(*MUTANTS[mutant])
    gap, length = distance(theorem, theorem.on(small()), theorem.size or 2)
    assert gap > 1e-3 * length


def test_the_clip_binds_on_some_tokens_only() -> None:
    world = sampled_by_another(small(), 5)
    mask = world.batch.mask
    r = (world.policy.logprobs(world.batch) - world.sampler.logprobs(world.batch)).detach().exp()[mask]
    for outside in (r > 1.25, r < 0.9):
        assert 0 < int(outside.sum()) < int(mask.sum())


@pytest.mark.parametrize("average", ["token", "group"])
def test_two_prompts_in_a_step(average: str) -> None:
    """`token` divides by the tokens of both groups, `group` by each group's own: two different directions."""
    world = make_world(2, 2, 1)
    method = ON_POLICY(advantage="center", average=average)
    pairs = list(product(world.groups(2), repeat=2))
    loss = torch.stack([p * q * step_loss(method, world, world.rollouts(one, two)) for (p, one), (q, two) in pairs])
    got = -torch.autograd.grad(loss.sum(), world.logits)[0]

    def credits_of(four: tuple[int, ...]) -> Credits:
        lengths = [len(world.answers[i]) for i in four]
        scored = advantages(world, four[:2], False) + advantages(world, four[2:], False)
        own = [sum(lengths[:2])] * 2 + [sum(lengths[2:])] * 2
        counts = [sum(lengths)] * 4 if average == "token" else [2 * n for n in own]
        return [[a / count] * n for a, count, n in zip(scored, counts, lengths, strict=True)]

    truth = enumerated(world, 4, credits_of)
    assert float((got - truth).norm()) < EXACT * float(truth.norm())
    alone = averaged(world, 2, standardized=False, average="token")
    assert (float((truth - alone).norm()) < 1e-12) == (average == "group"), (
        "a group's mean knows nothing of other groups"
    )
    assert float(truth.norm()) > 0.01


def variance(method: Any, world: World, size: int) -> tuple[float, Tensor]:
    """Trace of the covariance of one step's gradient, and its mean."""
    groups = list(world.groups(size))
    found = [
        torch.autograd.grad(step_loss(method, world, world.rollouts(group)), world.logits)[0] for _, group in groups
    ]
    mean = sum((p * g for (p, _), g in zip(groups, found, strict=True)), torch.zeros_like(found[0]))
    return sum(p * float((g - mean).square().sum()) for (p, _), g in zip(groups, found, strict=True)), -mean


@pytest.mark.parametrize(("mean_reward", "lower"), [(3.0, True), (0.0, False)])
def test_leave_one_out_lowers_the_variance_only_where_the_mean_reward_is_large(mean_reward: float, lower: bool) -> None:
    """Var(LOO) - Var(none) = {(J^2 + Var R / (G-1)) E|s|^2 - 2 J E[R |s|^2] + |grad J|^2 / (G-1)} / G,  s = grad log pi(y).

    The first three terms are what a baseline of mean J and variance Var R / (G-1) does to one answer's term; the last is
    the correlation of two answers, each standing in the other's baseline.
    """
    world, size = small(), 3
    p = world.probabilities().detach()
    world = replace(world, rewards=world.rewards - (p * world.rewards).sum() + mean_reward)
    without, _ = variance(REINFORCE(baseline="none"), world, size)
    with_it, mean = variance(REINFORCE(baseline="leave_one_out"), world, size)
    s2, r, j = world.scores.sum(1).square().sum((1, 2)), world.rewards, mean_reward
    spread, long, both = (p * (r - j) ** 2).sum(), (p * s2).sum(), (p * r * s2).sum()
    expected = ((j**2 + spread / (size - 1)) * long - 2 * j * both + mean.square().sum() / (size - 1)) / size
    assert with_it - without == pytest.approx(float(expected), rel=1e-6)
    assert (with_it < without) == lower
    assert abs(with_it - without) > 0.05 * without
