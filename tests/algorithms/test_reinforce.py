"""REINFORCE's views, baselines, normalisation and KL places against numbers worked by hand, on models that are tables."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tutelage.algorithms.base import Models
from tutelage.algorithms.policy_gradient import RunningMean
from tutelage.algorithms.reinforce import Reinforce
from tutelage.data.batch import ActorCriticBatch, Rollouts, Sequences, sequences
from tutelage.data.sampled import StepRollouts


@dataclass(frozen=True)
class Said:
    """A model that says the same cells whatever it is asked."""

    cells: Tensor

    def logprobs(self, answers: Sequences) -> Tensor:
        return self.cells[: len(answers)]

    def logprobs_and_entropy(self, answers: Sequences) -> tuple[Tensor, Tensor]:
        return self.logprobs(answers), torch.zeros_like(self.logprobs(answers))

    def values(self, answers: Sequences) -> Tensor:
        return self.logprobs(answers)

    def scores(self, answers: Sequences) -> Tensor:
        return self.logprobs(answers)[:, 0]


# Two answers to one prompt: three tokens, the second of them a user's; and one token.
ANSWERS = sequences([(1,)], [0, 0], [[5, 6, 7], [8]], [[True, False, True], [True]])
POLICY = Said(torch.tensor([[-1.0, 50.0, -2.0], [-0.5, 9.0, 9.0]]))
REFERENCE = Said(torch.tensor([[-1.5, 77.0, -1.0], [-1.5, 9.0, 9.0]]))
VALUES = Said(torch.tensor([[0.5, 33.0, 2.0], [1.0, 9.0, 9.0]]))
MODELS = Models(policy=POLICY, reference=REFERENCE, value=VALUES)
ROLLOUTS = Rollouts(ANSWERS, torch.tensor([2.0, 0.0]), POLICY.cells, torch.tensor([True, True]))
"""log pi/ref: (.5 . -1) and (1): of the whole answers -.5 and 1."""


def advantages(method: Reinforce, rollouts: Rollouts = ROLLOUTS, state: RunningMean | None = None) -> Tensor:
    return method.prepare(MODELS, rollouts, state or RunningMean())[0].advantages


def close(actual: Tensor, expected: list) -> None:
    assert_close(actual, torch.tensor(expected, dtype=actual.dtype))


def k3(gap: float) -> float:
    return math.exp(-gap) - 1 + gap


def test_a_token_earns_what_comes_after_it_an_answer_earns_it_all():
    """beta .1, k1: tokens pay .05 and -.1, the answer -.05; the second token's return is 2.1 or 2.05."""
    token = Reinforce(baseline="none", kl_coefficient=0.1)
    close(advantages(token), [[2.05, 0, 2.1], [-0.1, 0, 0]])
    close(advantages(replace(token, credit="answer")), [[2.05, 0, 2.05], [-0.1, 0, 0]])


def test_k3_in_the_reward_of_tokens_and_of_answers():
    token = Reinforce(baseline="none", kl_coefficient=1.0, kl="k3")
    close(advantages(token), [[2 - k3(0.5) - k3(-1), 0, 2 - k3(-1)], [-k3(1), 0, 0]])
    whole = 2 - k3(-0.5)
    close(advantages(replace(token, credit="answer")), [[whole, 0, whole], [-k3(1), 0, 0]])


@pytest.mark.parametrize(("credit", "cells"), [("token", [0.125, 0, 0.5]), ("answer", [0, 0, 0.125])])
def test_k2_in_the_loss(credit, cells):
    """Half the squares of .5 and -1; of the whole answer, half the square of -.5, once, on its last token."""
    method = Reinforce(baseline="none", credit=credit, kl="k2", kl_in="loss", kl_coefficient=2.0)
    prepared, _, _ = method.prepare(MODELS, ROLLOUTS, RunningMean())
    close(prepared.advantages, [[2, 0, 2], [0, 0, 0]])
    close(method.losses(MODELS, prepared)[0], [[2 + 2 * cells[0], 0, 4 + 2 * cells[2]], [1.0, 0, 0]])


def test_a_learned_value_is_subtracted_and_learns_the_returns():
    """Tokens: 2 - .5, 2 - 2, 0 - 1; the value loss is half of 1.5^2, 0 and 1, times a quarter."""
    method = Reinforce(baseline="value", kl_coefficient=0.0, value_coefficient=0.25)
    prepared, _, measured = method.prepare(MODELS, ROLLOUTS, RunningMean())
    assert isinstance(prepared, ActorCriticBatch)
    assert method.needs == ("policy", "value")
    close(prepared.advantages, [[1.5, 0, 0], [-1, 0, 0]])
    close(prepared.returns, [[2, 0, 2], [0, 0, 0]])
    losses, metrics = method.losses(MODELS, prepared)
    close(metrics["value/loss"], [[1.125, 0, 0], [0.5, 0, 0]])
    close(losses, [[1.5 + 0.25 * 1.125, 0, 0], [-0.5 + 0.25 * 0.5, 0, 0]])
    assert measured["value/mean"] == pytest.approx(3.5 / 3)


def test_one_action_has_the_value_of_the_prompt():
    """V before the first token, .5 and 1, for every token; only there is it learned."""
    method = Reinforce(baseline="value", credit="answer", kl_coefficient=0.0)
    prepared, _, measured = method.prepare(MODELS, ROLLOUTS, RunningMean())
    close(prepared.advantages, [[1.5, 0, 1.5], [-1, 0, 0]])
    close(method.losses(MODELS, prepared)[1]["value/loss"], [[1.125, 0, 0], [0.5, 0, 0]])
    assert measured["value/mean"] == pytest.approx(0.75)


def test_rewards_normalised_by_the_step():
    """2 and 0: mean 1, standard deviation sqrt(2)."""
    method = Reinforce(baseline="none", kl_coefficient=0.0, normalize="step")
    unit = 1 / math.sqrt(2)
    close(advantages(method), [[unit, 0, unit], [-unit, 0, 0]])
    equal = replace(ROLLOUTS, rewards=torch.full((2,), 0.7))
    assert not advantages(method, equal).any()


def test_rewards_normalised_by_earlier_steps():
    """Nothing is known before the first step; then mean 1 and deviation sqrt(2); of all four, mean 2.5."""
    method = Reinforce(baseline="none", kl_coefficient=0.0, normalize="running")
    first, state, _ = method.prepare(MODELS, ROLLOUTS, method.initial_state())
    close(first.advantages[:, 0], [2, 0])
    assert (state.reward_mean, state.reward_std) == (1.0, pytest.approx(math.sqrt(2)))
    later = replace(ROLLOUTS, rewards=torch.tensor([3.0, 5.0]))
    second, state, _ = method.prepare(MODELS, later, state)
    close(second.advantages[:, 0], [2 / math.sqrt(2), 4 / math.sqrt(2)])
    assert state.reward_mean == pytest.approx(2.5)
    assert state.reward_std == pytest.approx(math.sqrt((2.5**2 + 0.5**2 + 0.5**2 + 2.5**2) / 3))
    assert state.count == 4


def test_the_running_mean_is_of_returns_and_the_moments_of_task_rewards():
    """With the KL the returns are 1.5 and 1 more than the rewards' 2 and 0 say: 2.5 and -1 for beta 1."""
    _, state, _ = Reinforce(kl_coefficient=1.0).prepare(MODELS, ROLLOUTS, RunningMean())
    assert state.mean == pytest.approx((2.5 - 1.0) / 2)
    assert state.reward_mean == pytest.approx(1.0)


def test_whitened_over_tokens():
    """2, 2 and 0: mean 4/3, variance 4/3."""
    method = Reinforce(baseline="none", kl_coefficient=0.0, whiten_advantages=True)
    unit = (2 / 3) / math.sqrt(4 / 3)
    close(advantages(method), [[unit, 0, unit], [-2 * unit, 0, 0]])


def test_process_rewards_stand_where_they_are_earned():
    """Steps end on both of the first answer's own tokens, worth .25 and 1: the first token earns both."""
    steps = torch.tensor([[True, False, True], [True, False, False]])
    scored = torch.tensor([[0.25, 44.0, 1.0], [-0.5, 44.0, 44.0]])
    batch = StepRollouts(ROLLOUTS.answers, ROLLOUTS.rewards, POLICY.cells, ROLLOUTS.finished, scored, steps)
    close(advantages(Reinforce(baseline="none", kl_coefficient=0.0), batch), [[1.25, 0, 1], [-0.5, 0, 0]])
    half = Reinforce(baseline="none", kl_coefficient=0.0, discount=0.5)
    close(advantages(half, batch), [[0.75, 0, 1], [-0.5, 0, 0]])
    one = Reinforce(baseline="leave_one_out", credit="answer", kl_coefficient=0.0)
    close(advantages(one, batch), [[1.75, 0, 1.75], [-1.75, 0, 0]])
    with pytest.raises(ValueError, match="normalize: 'step' is for one reward an answer"):
        advantages(Reinforce(normalize="step", kl_coefficient=0.0), batch)


def test_what_is_masked_has_no_say_in_any_setting():
    garbage = Said(torch.where(ANSWERS.mask, POLICY.cells, float("nan")))
    spoiled = replace(ROLLOUTS, sampler_logprobs=garbage.cells)
    for credit in ("token", "answer"):
        for kl_in in ("reward", "loss"):
            for name in ("k1", "k2", "k3", "ratio_k3"):
                method = Reinforce(baseline="value", credit=credit, kl=name, kl_in=kl_in, normalize="step")
                clean = method.prepare(MODELS, ROLLOUTS, RunningMean())[0]
                dirty = method.prepare(MODELS, spoiled, RunningMean())[0]
                assert torch.equal(clean.advantages, dirty.advantages)
                noisy = replace(MODELS, policy=garbage)
                assert torch.equal(method.losses(MODELS, clean)[0], method.losses(noisy, dirty)[0])


def test_discounting_one_action_is_refused_with_its_reason():
    with pytest.raises(ValueError, match=r"nothing to discount; got 0\.9"):
        Reinforce(credit="answer", discount=0.9)


@pytest.mark.parametrize("credit", ["token", "answer"])
@pytest.mark.parametrize("normalize", ["none", "running", "step"])
@pytest.mark.parametrize("lengths", [(0, 2), (1, 1), (3,)], ids=str)
def test_odd_groups_are_finite(credit, normalize, lengths):
    """An empty answer, answers of one token, a group of one; the empty row has no say."""
    rows = sequences([(1,)], [0] * len(lengths), [[5] * n for n in lengths])
    cells = Said(torch.full(rows.tokens.shape, -1.0))
    batch = Rollouts(rows, torch.arange(len(lengths)).float(), cells.cells, torch.ones(len(lengths), dtype=torch.bool))
    models = Models(policy=cells, reference=Said(cells.cells - 0.5), value=cells)
    method = Reinforce(baseline="value", credit=credit, normalize=normalize, whiten_advantages=True, kl="k3")
    prepared, state, measured = method.prepare(models, batch, RunningMean())
    figures = [*measured.values(), state.mean, state.reward_std, float(method.losses(models, prepared)[0].sum())]
    assert all(math.isfinite(figure) for figure in figures), measured
    assert not prepared.advantages[~rows.mask].any()
