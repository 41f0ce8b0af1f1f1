"""Classifier, regression and outcome values by hand, and what the last one converges to: E[reward | prefix], enumerated."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tutelage.algorithms.assessment import Classifier, Regression
from tutelage.algorithms.base import Models
from tutelage.algorithms.outcome_value import OutcomeValue
from tutelage.data.batch import Sequences, sequences
from tutelage.data.labelled import Labelled
from tutelage.functional.prefixes import intermediate_rewards, prefix_mask
from tutelage.functional.weights import sequence_mean, weighted_sum

END, LENGTH, VOCABULARY = 0, 3, 3


@dataclass(frozen=True)
class Scores:
    """A scoring model that is a list of numbers, a row each."""

    scored: Tensor

    def scores(self, answers: Sequences) -> Tensor:
        return self.scored


def labelled(labels, weight=None) -> Labelled:
    rows = sequences([(1,)], [0] * len(labels), [[2, 3]] * len(labels))
    return Labelled(rows, torch.tensor(labels), torch.tensor(weight or [1.0] * len(labels)))


def test_classifier_by_hand():
    """Scores ln 3, ln 3, 0: a yes, a no and an undecided label; a row of weight 2 counts twice."""
    batch = labelled([1.0, 0.0, 0.5], [1.0, 2.0, 1.0])
    models = Models(reward=Scores(torch.tensor([math.log(3), math.log(3), 0.0])))
    losses, metrics = Classifier().losses(models, batch)
    assert_close(losses, torch.tensor([math.log(4 / 3), math.log(4), math.log(2)]))
    assert metrics["accuracy/label"].tolist() == [1.0, 0.0, 0.5]
    assert_close(Classifier().weights(batch), torch.tensor([0.25, 0.5, 0.25]))


def test_regression_by_hand():
    batch = labelled([5.0, 2.0], [1.0, 3.0])
    losses, metrics = Regression().losses(Models(reward=Scores(torch.tensor([3.5, 2.5]))), batch)
    assert_close(losses, torch.tensor([2.25, 0.25]))
    assert_close(metrics["error/absolute"], torch.tensor([1.5, 0.5]))
    assert_close(Regression().weights(batch), torch.tensor([0.25, 0.75]))


def states() -> list[tuple[int, ...]]:
    """Every prefix of every answer of at most LENGTH tokens (token 0 ends one)."""
    open_ends = [s for n in range(LENGTH + 1) for s in itertools.product(range(1, VOCABULARY), repeat=n)]
    return open_ends + [(*s, END) for s in open_ends if len(s) < LENGTH]


def answers_all() -> list[tuple[int, ...]]:
    """The whole answers among them: ended, or cut at LENGTH tokens."""
    return [s for s in states() if (s and s[-1] == END) or len(s) == LENGTH]


@dataclass(frozen=True)
class TabularValues:
    """One free number for every prefix."""

    cells: Tensor

    def prefix_values(self, answers: Sequences) -> Tensor:
        index = {state: i for i, state in enumerate(states())}
        rows = [
            [index[tuple(row[: min(t, n)])] for t in range(len(row) + 1)]
            for row, n in zip(answers.tokens.tolist(), answers.lengths.tolist(), strict=True)
        ]
        return self.cells[torch.tensor(rows)]


def instance() -> tuple[Labelled, dict[tuple[int, ...], float]]:
    """Every answer, weighted by a policy's probability of it, with a 0/1 reward; and E[reward | prefix] by summing."""
    generator = torch.Generator().manual_seed(0)
    policy = {s: torch.rand(VOCABULARY, generator=generator).double() + 0.2 for s in states()}
    answers = answers_all()
    probability = [math.prod(float(policy[a[:t]][a[t]] / policy[a[:t]].sum()) for t in range(len(a))) for a in answers]
    assert sum(probability) == pytest.approx(1.0)
    rewards = (torch.rand(len(answers), generator=generator) < 0.5).double()
    expected = {}
    for state in states():
        inside = [i for i, a in enumerate(answers) if a[: len(state)] == state]
        mass = sum(probability[i] for i in inside)
        expected[state] = sum(probability[i] * float(rewards[i]) for i in inside) / mass
    rows = sequences([(9,)], [0] * len(answers), answers)
    return Labelled(rows, rewards, torch.tensor(probability, dtype=torch.float64)), expected


def converged(method: OutcomeValue, batch: Labelled, weights: Tensor) -> dict[tuple[int, ...], float]:
    """The table that minimises the method's own weighted loss."""
    model = TabularValues(torch.zeros(len(states()), dtype=torch.float64, requires_grad=True))
    optimizer = torch.optim.LBFGS(
        [model.cells], lr=1, max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses, _ = method.losses(Models(reward=model), batch)
        loss = weighted_sum(losses, weights)
        loss.backward()
        return loss

    optimizer.step(closure)
    values = model.cells.detach()
    seen = values.sigmoid() if method.output == "probability" else values
    return dict(zip(states(), seen.tolist(), strict=True))


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
def test_outcome_value_is_the_expected_reward_of_every_prefix(loss):
    """By full enumeration, through the shipped weights and losses. Whole answers' values are their rewards."""
    batch, expected = instance()
    method = OutcomeValue(loss=loss)
    found = converged(method, batch, method.weights(batch))
    assert max(abs(found[s] - expected[s]) for s in states()) < 1e-3
    assert max(abs(0.5 - value) for value in expected.values()) > 0.2, "the untrained table is wrong"
    unequal = [s for s in states() if len(s) == 1 and s[0] != END]
    assert min(min(expected[s], 1 - expected[s]) for s in unequal) > 0.05, "prefixes that leave it open"


def test_a_mean_per_answer_would_lean_to_short_answers():
    """The mutant that the docstring warns of: 1 / length as weight has its minimum elsewhere."""
    batch, expected = instance()
    prefixes = prefix_mask(batch.answers.mask, batch.answers.lengths)
    weights = sequence_mean(prefixes).double() * batch.weight[:, None]
    found = converged(OutcomeValue(), batch, weights)
    assert max(abs(found[s] - expected[s]) for s in states()) > 0.02


def test_outcome_value_by_hand():
    """Two answers of 2 and 1 tokens: 3 + 2 prefixes, the first row of weight 3: 9 + 2 shares in all."""
    rows = sequences([(9,)], [0, 0], [[1, END], [END]])
    batch = Labelled(rows, torch.tensor([1.0, 0.0]), torch.tensor([3.0, 1.0]))
    cells = torch.zeros(len(states()))
    index = {state: i for i, state in enumerate(states())}
    cells[index[()]], cells[index[(1,)]], cells[index[(1, END)]], cells[index[(END,)]] = 0.5, 0.75, 1.0, 0.25
    losses, metrics = OutcomeValue().losses(Models(reward=TabularValues(cells)), batch)
    assert_close(losses, torch.tensor([[0.25, 0.0625, 0.0], [0.25, 0.0625, 0.0]]))
    assert_close(metrics["value/mean"], torch.tensor([[0.5, 0.75, 1.0], [0.5, 0.25, 0.0]]))
    assert_close(OutcomeValue().weights(batch), torch.tensor([[3.0, 3.0, 3.0], [1.0, 1.0, 0.0]]) / 11)
    prefixes = prefix_mask(rows.mask, rows.lengths)
    gains = intermediate_rewards(metrics["value/mean"], prefixes)
    assert_close(gains, torch.tensor([[0.25, 0.25], [-0.25, 0.0]]))


def test_rows_of_no_weight_have_no_say():
    batch, _ = instance()
    silent = replace(batch, weight=torch.zeros_like(batch.weight))
    assert not OutcomeValue().weights(silent).any()
