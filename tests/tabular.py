"""Worlds so small that every answer, and every group of answers, can be listed: expectations are sums.

A policy is a table of logits, a row for every state (what has been said so far). Token 0 ends the answer, and an answer
of the greatest length is cut: answers have different lengths, without which wrong length weights would be invisible.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations_with_replacement, product
from typing import Any

import torch
from torch import Tensor

from tutelage.algorithms.base import Models
from tutelage.data.batch import Rollouts, Sequences, sequences
from tutelage.functional.weights import weighted_sum

END = 0
PROMPT = (1,)
Words = tuple[int, ...]


def every_answer(vocabulary: int, length: int) -> list[Words]:
    """All answers: those that end with END, and those cut at `length`."""
    full = product(range(vocabulary), repeat=length)
    return sorted({answer[: answer.index(END) + 1] if END in answer else answer for answer in full})


def state_number(said: Words, vocabulary: int) -> int:
    """States in order: the empty one, those of one token, those of two; within a length as numbers in base V."""
    shorter = sum(vocabulary**n for n in range(len(said)))
    return shorter + sum(token * vocabulary ** (len(said) - 1 - at) for at, token in enumerate(said))


@dataclass(frozen=True)
class Table:
    """A language model and a value model in one table: logits [S, V] and values [S], a row for every `state_number`."""

    logits: Tensor
    state_values: Tensor

    def logprobs(self, answers: Sequences) -> Tensor:
        return self.logprobs_and_entropy(answers)[0]

    def logprobs_and_entropy(self, answers: Sequences) -> tuple[Tensor, Tensor]:
        logp = self.logits.log_softmax(-1)[self._states(answers.tokens)]
        return logp.gather(-1, answers.tokens[..., None])[..., 0], -(logp.exp() * logp).sum(-1)

    def values(self, answers: Sequences) -> Tensor:
        return self.state_values[self._states(answers.tokens)]

    def scores(self, answers: Sequences) -> Tensor:
        return answers.lengths.double()

    def _states(self, tokens: Tensor) -> Tensor:
        """`state_number` of what was said before each token; some state where nothing is said any more."""
        vocabulary, state = self.logits.shape[1], torch.zeros(len(tokens), dtype=torch.long)
        columns = []
        for column in tokens.T:
            columns.append(state)
            state = vocabulary * state + 1 + column
        return torch.stack(columns, dim=1)


@dataclass(frozen=True)
class World:
    """Answers to one prompt with their rewards, a policy, a reference and the policy that samples (by default the same)."""

    answers: list[Words]
    rewards: Tensor
    policy: Table
    reference: Table
    sampler: Table

    @property
    def models(self) -> Models:
        return Models(policy=self.policy, reference=self.reference, value=replace(self.policy))

    @property
    def logits(self) -> Tensor:
        return self.policy.logits

    @cached_property
    def batch(self) -> Sequences:
        """Every answer once, a row each."""
        return sequences([PROMPT], [0] * len(self.answers), self.answers)

    def probabilities(self, model: Table | None = None) -> Tensor:
        """Of every answer; differentiable."""
        logp = (model or self.policy).logprobs(self.batch)
        return torch.where(self.batch.mask, logp, 0.0).sum(-1).exp()

    @cached_property
    def scores(self) -> Tensor:
        """grad log pi of each token of each answer, [N, T, S, V]: one-hot minus pi in the state's row. No autograd."""
        pi = self.logits.detach().softmax(-1)
        out = torch.zeros(*self.batch.tokens.shape, *pi.shape, dtype=pi.dtype)
        for n, answer in enumerate(self.answers):
            for t, token in enumerate(answer):
                state = state_number(answer[:t], pi.shape[1])
                out[n, t, state] = -pi[state]
                out[n, t, state, token] += 1
        return out

    def groups(self, size: int, ordered: bool = False) -> Iterator[tuple[float, tuple[int, ...]]]:
        """Every group of answers (their numbers) with its probability; unordered ones carry all of their orders'."""
        p = self.probabilities(self.sampler).tolist()
        if ordered:
            yield from ((math.prod(p[i] for i in group), group) for group in product(range(len(p)), repeat=size))
            return
        for group in combinations_with_replacement(range(len(p)), size):
            orders = math.factorial(size) / math.prod(math.factorial(n) for n in Counter(group).values())
            yield orders * math.prod(p[i] for i in group), group

    def rollouts(self, *groups: tuple[int, ...]) -> Rollouts:
        """The batch of a step that sampled these groups, each for a prompt of its own."""
        rows = [answer for group in groups for answer in group]
        prompt_of = torch.tensor([prompt for prompt, group in enumerate(groups) for _ in group])
        answers = replace(self.batch[rows], prompt_of=prompt_of)
        return Rollouts(answers, self.rewards[rows], self._sampled[rows], self._finished[rows])

    @cached_property
    def _sampled(self) -> Tensor:
        return self.sampler.logprobs(self.batch).detach()

    @cached_property
    def _finished(self) -> Tensor:
        return torch.tensor([answer[-1] == END for answer in self.answers])


def make_world(vocabulary: int, length: int, seed: int, spread: float = 0.7) -> World:
    """An asymmetric world: random logits, rewards around 0.4, another reference. Float64."""
    generator = torch.Generator().manual_seed(seed)
    answers = every_answer(vocabulary, length)
    states = state_number((0,) * length, vocabulary)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    policy = Table((spread * normal(states, vocabulary)).requires_grad_(), normal(states))
    reference = Table(2 * spread * normal(states, vocabulary), normal(states))
    return World(answers, 0.4 + normal(len(answers)), policy, reference, policy)


def sampled_by_another(world: World, seed: int) -> World:
    """The same world with answers drawn from a policy near by: ratios that differ from 1 on both sides."""
    noise = torch.randn(world.logits.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return replace(world, sampler=replace(world.policy, logits=world.logits.detach() + 0.4 * noise))


def step_loss(method: Any, world: World, rollouts: Rollouts, state: Any = None) -> Tensor:
    """The loss of one step as the loop makes it: `prepare`, `weights`, `losses`."""
    state = method.initial_state() if state is None else state
    prepared, _, _ = method.prepare(world.models, rollouts, state)
    return weighted_sum(method.losses(world.models, prepared)[0], method.weights(prepared))


def ascent(method: Any, world: World, size: int, state: Any = None) -> Tensor:
    """Where the method goes: minus the expected gradient of its step over all groups of `size`, [S, V]."""
    steps = ((p, world.rollouts(group)) for p, group in world.groups(size))
    losses = torch.stack([p * step_loss(method, world, rollouts, state) for p, rollouts in steps])
    return -torch.autograd.grad(losses.sum(), world.logits)[0]


def gradient(world: World, objective: Callable[[Tensor], Tensor]) -> Tensor:
    """grad of a function of the answers' probabilities: no sampling, no score function."""
    return torch.autograd.grad(objective(world.probabilities()), world.logits)[0]


def grad_return(world: World) -> Tensor:
    """grad J, J = sum over answers of p(y) R(y)."""
    return gradient(world, lambda p: (p * world.rewards).sum())
