"""Distillation by hand, by enumeration on a tabular student, and the mixture of its own answers with the data's."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tutelage.algorithms.base import Models
from tutelage.algorithms.distill import Distill, DistillBatch
from tutelage.algorithms.sft import SFT
from tutelage.data.batch import Rollouts, Sequences, sequences
from tutelage.functional.kl import ratio_k3
from tutelage.functional.weights import sequence_sum, weighted_sum

END, LENGTH, VOCABULARY = 0, 3, 3


def states() -> list[tuple[int, ...]]:
    """What can have been said before an answer token: nothing, or up to LENGTH - 1 tokens without the end."""
    return [s for n in range(LENGTH) for s in itertools.product(range(1, VOCABULARY), repeat=n)]


def answers_all() -> list[tuple[int, ...]]:
    """Every answer: ended, or cut at LENGTH tokens."""
    ended = [(*s, END) for s in states()]
    return ended + list(itertools.product(range(1, VOCABULARY), repeat=LENGTH))


BATCH = sequences([(9,)], [0] * len(answers_all()), answers_all())


@dataclass(frozen=True)
class Tabular:
    """A policy that is a table of logits: a line a state."""

    logits: Tensor

    def _cells(self, answers: Sequences) -> Tensor:
        index = {state: i for i, state in enumerate(states())}
        rows = [[index.get(tuple(row[:t]), 0) for t in range(len(row))] for row in answers.tokens.tolist()]
        return torch.tensor(rows)

    def states(self, answers: Sequences) -> Tensor:
        return self.logits[self._cells(answers)]

    def readout(self, answers: Sequences, states: Tensor):
        at_mask = states[answers.mask]
        return lambda piece: at_mask[piece]

    def logprobs(self, answers: Sequences) -> Tensor:
        logp = self.states(answers).log_softmax(-1).gather(-1, answers.tokens[..., None])[..., 0]
        return torch.where(answers.mask, logp, 0.0)

    def logprobs_and_entropy(self, answers: Sequences) -> tuple[Tensor, Tensor]:
        logp = self.states(answers).log_softmax(-1)
        return self.logprobs(answers), -(logp.exp() * logp).sum(-1)


def table(seed: int, grad: bool = False) -> Tabular:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(states()), VOCABULARY, generator=generator, dtype=torch.float64)
    return Tabular(logits.requires_grad_(grad))


def visits(policy: Tabular) -> Tensor:
    """The probability that each state is reached.  [S]"""
    p = policy.logits.detach().softmax(-1)
    index = {state: i for i, state in enumerate(states())}
    return torch.stack(
        [math.prod((p[index[s[:t]], s[t]] for t in range(len(s))), start=torch.tensor(1.0)) for s in states()]
    ).double()


def expected_gradient(method: Distill, student: Tabular, teacher: Tabular) -> Tensor:
    """E over the student's own answers of the gradient that prepare / losses give, sum over tokens: every answer listed."""
    models = Models(policy=student, teacher=teacher)
    prepared, _, _ = method.prepare(models, BATCH, method.initial_state())
    losses, _ = method.losses(models, prepared)
    probability = student.logprobs(BATCH).detach().sum(-1).exp()
    assert float(probability.sum()) == pytest.approx(1.0)
    (gradient,) = torch.autograd.grad((probability * losses.sum(-1)).sum(), student.logits)
    return gradient


def closed_form(divergence: str, student: Tabular, teacher: Tabular, beta: float = 0.5) -> Tensor:
    """sum over states of d(s) grad D(s), with the gradients of the closed forms.  [S, V]"""
    p, q = teacher.logits.softmax(-1), student.logits.detach().softmax(-1)
    f = {"reverse_kl": (q / p).log(), "jensen_shannon": (1 - beta) * (q / (beta * p + (1 - beta) * q)).log()}
    if divergence == "forward_kl":
        return visits(student)[:, None] * (q - p)
    return visits(student)[:, None] * q * (f[divergence] - (q * f[divergence]).sum(-1, keepdim=True))


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_on_policy_gradient_by_enumeration(divergence):
    """Visited states held fixed: sum_s d(s) grad D(P(s), Q(s)). The two arguments swapped would give another gradient."""
    student, teacher = table(1, grad=True), table(2)
    found = expected_gradient(Distill(divergence=divergence), student, teacher)
    assert_close(found, closed_form(divergence, student, teacher), atol=1e-12, rtol=0)
    swapped = {"forward_kl": "reverse_kl", "reverse_kl": "forward_kl", "jensen_shannon": "reverse_kl"}[divergence]
    assert (found - closed_form(swapped, student, teacher)).abs().max() > 1e-2


def test_reverse_kl_on_own_answers_is_the_kl_term_of_rl():
    """The same expected gradient as ratio * k3 in the loss (correctness box): distilling is RL's KL without its noise."""
    student, teacher = table(3, grad=True), table(4)
    logp, ref = student.logprobs(BATCH), teacher.logprobs(BATCH)
    probability = logp.detach().sum(-1).exp()
    losses = torch.where(BATCH.mask, ratio_k3(logp, ref), 0.0).sum(-1)
    (rl,) = torch.autograd.grad((probability * losses).sum(), student.logits)
    assert_close(expected_gradient(Distill(divergence="reverse_kl"), student, teacher), rl, atol=1e-12, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_the_student_becomes_the_teacher(divergence):
    """Gradient descent on answers that the student gives reaches the teacher in every state that can be visited."""
    student, teacher = table(5, grad=True), table(6)
    method = Distill(divergence=divergence)
    assert (student.logits.softmax(-1) - teacher.logits.softmax(-1)).abs().max() > 0.3
    optimizer = torch.optim.Adam([student.logits], lr=0.05)
    for _ in range(1000):
        optimizer.zero_grad()
        student.logits.grad = expected_gradient(method, student, teacher)
        optimizer.step()
    assert_close(student.logits.softmax(-1), teacher.logits.softmax(-1), atol=1e-3, rtol=0)


@pytest.mark.slow
def test_sequence_level_becomes_the_teacher_too():
    """-log p of answers weighted as the teacher gives them: cross-entropy, least where the student is the teacher."""
    student, teacher = table(7, grad=True), table(8)
    method = Distill(level="sequence")
    probability = teacher.logprobs(BATCH).sum(-1).exp()

    def loss() -> Tensor:
        losses, _ = method.losses(Models(policy=student), BATCH)
        return (probability * losses.sum(-1)).sum()

    optimizer = torch.optim.Adam([student.logits], lr=0.05)
    for _ in range(1000):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert_close(student.logits.softmax(-1), teacher.logits.softmax(-1), atol=1e-3, rtol=0)


def test_by_hand():
    """One state, P = (1/2, 1/4, 1/4), Q = (1/4, 1/2, 1/4): ln 2 / 4 either way; likeliest tokens 0 and 1 disagree."""
    teacher, student = (
        Tabular(torch.tensor([p] * len(states()), dtype=torch.float64).log())
        for p in ([0.5, 0.25, 0.25], [0.25, 0.5, 0.25])
    )
    rows = sequences([(9,)], [0, 0], [[1, END], [2, 1, END]], [[True, True], [True, False, True]])
    models = Models(policy=student, teacher=teacher)
    for divergence, value in (("forward_kl", math.log(2) / 4), ("reverse_kl", math.log(2) / 4)):
        method = Distill(divergence=divergence)
        prepared, _, measured = method.prepare(models, rows, method.initial_state())
        assert isinstance(prepared, DistillBatch)
        losses, metrics = method.losses(models, prepared)
        expected = torch.tensor([[value, value, 0], [value, 0, value]], dtype=torch.float64)
        assert_close(losses, expected)
        assert not metrics["accuracy/teacher"].any()
        entropy = 0.5 * math.log(2) + 2 * 0.25 * math.log(4)
        assert_close(metrics["policy/entropy"], expected / value * entropy)
        assert measured == {"answer/length": 2.0}
        assert_close(method.weights(prepared), torch.tensor([[0.25, 0.25, 0], [0.25, 0, 0.25]]))
    weights = Distill(average="sequence").weights(prepared)
    assert_close(weights, torch.tensor([[0.25, 0.25, 0], [0.25, 0, 0.25]]))


def test_sequence_level_is_sft():
    """On the same rows the loss, weights and metrics are those of SFT; no teacher is needed any more."""
    student, method = table(9, grad=True), Distill(level="sequence", average="sequence")
    assert method.needs == ("policy",)
    assert Distill().needs == ("policy", "teacher")
    prepared, _, _ = method.prepare(Models(policy=student), BATCH, method.initial_state())
    losses, metrics = method.losses(Models(policy=student), prepared)
    expected, same = SFT().losses(Models(policy=student), BATCH)
    assert_close(losses, expected)
    assert_close(metrics["accuracy/likely"], same["accuracy/likely"])
    assert_close(method.weights(prepared), SFT(average="sequence").weights(BATCH))


def test_rewards_are_not_looked_at():
    """Rollouts with any rewards, NaN too, give the batch that their answers alone give."""
    student, teacher = table(1), table(2)
    rewards = torch.full((len(BATCH),), math.nan)
    rollouts = Rollouts(BATCH, rewards, torch.zeros(BATCH.tokens.shape), torch.arange(len(BATCH)) % 2 == 0)
    method = Distill()
    models = Models(policy=student, teacher=teacher)
    from_rollouts, _, measured = method.prepare(models, rollouts, method.initial_state())
    plain, _, _ = method.prepare(models, BATCH, method.initial_state())
    assert torch.equal(from_rollouts.teacher_states, plain.teacher_states)
    assert measured["answer/finished"] == pytest.approx(0.5, abs=0.1)
    losses, _ = method.losses(models, from_rollouts)
    assert bool(weighted_sum(losses, sequence_sum(BATCH.mask)).isfinite())


def test_masked_rows_alone_have_a_gradient_of_zero():
    student, teacher = table(1, grad=True), table(2)
    nothing = sequences([(9,)], [0], [[1, END]], [[False, False]])
    models, method = Models(policy=student, teacher=teacher), Distill()
    losses, _ = method.losses(models, method.prepare(models, nothing, method.initial_state())[0])
    losses.sum().backward()
    assert losses.shape == nothing.tokens.shape
    assert not student.logits.grad.any()
