"""Best-of-N and online DPO by hand: what is kept, what it weighs, what it costs, and steps that teach nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from tutelage.algorithms.base import Models
from tutelage.algorithms.best_of_n import BestOfN, kl_bound
from tutelage.algorithms.online_dpo import OnlineDPO
from tutelage.data.batch import Rollouts, Sequences, sequences
from tutelage.data.sampled import Sampled, at_temperature
from tutelage.training.update import accumulate


class Said:
    """A policy whose log-prob of token v is a trained number of its own; it remembers the rows that it was asked about."""

    def __init__(self, vocabulary: int = 10) -> None:
        self.table = torch.linspace(-1.0, -2.0, vocabulary, dtype=torch.float64).requires_grad_()
        self.asked: list[Sequences] = []

    def logprobs(self, answers: Sequences) -> torch.Tensor:
        self.asked.append(answers)
        return self.table[answers.tokens]


def rollouts(rows: list[list[int]], rewards: list[float], group: int) -> Rollouts:
    """Rows in prompt order, `group` to each prompt; the sampler said every token at -1."""
    prompt_of = [row // group for row in range(len(rows))]
    answers = sequences([(1, p + 1) for p in range(len(rows) // group)], prompt_of, rows)
    logprobs = -torch.ones(answers.tokens.shape, dtype=torch.float64)
    return Rollouts(answers, torch.tensor(rewards).double(), logprobs, torch.ones(len(rows), dtype=torch.bool))


ROWS = [[1, 2], [3], [4, 5, 6], [7], [8, 9], [2, 2]]
REWARDS = [0.0, 2.0, 1.0, 1.0, 0.0, 1.0]
"""The best: answer 1 of prompt 0; of prompt 1 answers 3 and 5, which are equal."""


def prepared(method: BestOfN, rewards: list[float] = REWARDS, group: int = 3):
    return method.prepare(Models(policy=Said()), rollouts(ROWS, rewards, group), method.initial_state())


def test_only_the_best_are_kept_and_equals_share():
    kept, _, metrics = prepared(BestOfN())
    assert kept.answers.tokens.tolist() == [[3, 0, 0], [7, 0, 0], [2, 2, 0]]
    assert kept.share.tolist() == [1.0, 0.5, 0.5]
    # tokens kept, a lot's chance each: 1 + 1/2 + 2/2 = 5/2
    assert_close(BestOfN().weights(kept).sum(1), torch.tensor([2 / 5, 1 / 5, 2 / 5]).double())
    assert_close(BestOfN(average="sequence").weights(kept).sum(1), torch.tensor([1 / 2, 1 / 4, 1 / 4]).double())
    assert_close(BestOfN(average="sum").weights(kept).sum(1), torch.tensor([1 / 2, 1 / 4, 2 / 4]).double())
    assert metrics["best_of_n/groups_used"] == 1.0


def test_the_curve_and_its_bound():
    """Prompt 0 has 0, 2, 1: means of 1 and of the best of two (2 + 2 + 1)/3; prompt 1 has 1, 0, 1: 2/3, 1, 1."""
    _, _, metrics = prepared(BestOfN())
    assert metrics["best_of_n/1"] == pytest.approx((1 + 2 / 3) / 2)
    assert metrics["best_of_n/2"] == pytest.approx((5 / 3 + 1) / 2)
    assert metrics["best_of_n/3"] == pytest.approx((2 + 1) / 2)
    assert metrics["best_of_n/kl_at_most"] == pytest.approx(math.log(3) - 2 / 3)
    assert metrics["reward/mean"] == pytest.approx(5 / 6)


def test_a_fraction_is_rounded_up():
    assert [BestOfN(fraction=f).kept(8) for f in (0.01, 0.125, 0.13, 0.5)] == [1, 1, 2, 4]
    kept, _, metrics = prepared(BestOfN(fraction=0.5))
    assert kept.share.tolist() == [1.0, 1.0, 1.0, 1.0]
    assert kept.answers.tokens[:, 0].tolist() == [3, 4, 7, 2]
    assert metrics["best_of_n/kl_at_most"] == pytest.approx(math.log(3 / 2))
    assert kl_bound(8, 8) == 0.0


def test_a_skipped_group_stays_in_the_denominator_and_costs_nothing():
    rewards = [0.0, 2.0, 1.0, 5.0, 5.0, 5.0]
    method, policy = BestOfN(), Said()
    kept, _, metrics = prepared(method, rewards)
    # kept tokens: 1 of prompt 0, and a third of the five of prompt 1, which is skipped
    assert_close(method.weights(kept).sum(1), torch.tensor([1 / (1 + 5 / 3), 0.0, 0.0, 0.0]).double())
    assert metrics["best_of_n/groups_used"] == 0.5
    accumulate(method, Models(policy=policy), kept, 1000)
    assert [rows.tokens.tolist() for rows in policy.asked] == [[[3, 0, 0]]], "no other row is computed"
    shared = BestOfN(equal_groups="share")
    assert_close(shared.weights(prepared(shared, rewards)[0]).sum(), torch.tensor(1.0).double())


@pytest.mark.parametrize("method", [BestOfN(), OnlineDPO()], ids=lambda m: m.name)
def test_a_step_without_any_difference_rests(method):
    """No error, no gradient, no forward of the policy; everything that is measured is finite."""
    policy = Said()
    models = Models(policy=policy, reference=Said())
    batch, _, metrics = method.prepare(models, rollouts(ROWS, [0.7] * 6, 3), method.initial_state())
    loss, averages = accumulate(method, models, batch, 1000)
    assert (loss, averages.means()) == (0.0, {})
    assert policy.asked == []
    assert policy.table.grad is None
    assert all(math.isfinite(value) for value in metrics.values())


def test_online_dpo_compares_best_with_worst():
    """Prompt 0: answer 1 against 0. Prompt 1: answers 3 and 5 against 4, half each. h by hand; the loss is DPO's."""
    method = OnlineDPO(beta=0.5, group_size=3)
    policy, reference = Said(), Said()
    with torch.no_grad():
        reference.table -= torch.arange(10) / 10
    models = Models(policy=policy, reference=reference)
    batch, _, metrics = method.prepare(models, rollouts(ROWS, REWARDS, 3), method.initial_state())
    assert batch.chosen.tokens[:, :2].tolist() == [[3, 0], [7, 0], [2, 2]]
    assert batch.rejected.tokens[:, :2].tolist() == [[1, 2], [8, 9], [8, 9]]
    assert method.weights(batch).tolist() == [0.5, 0.25, 0.25]
    losses, _ = method.losses(models, batch)
    # log pi/ref of token v is v/10: h of the answers is 0.3 - 0.3, 0.7 - 1.7, 0.4 - 1.7
    expected = [math.log(1 + math.exp(-0.5 * lead)) for lead in (0.0, -1.0, -1.3)]
    assert_close(losses, torch.tensor(expected).double())
    assert metrics["reward/best_minus_worst"] == 1.5
    assert metrics["reward/equal_groups"] == 0.0


def test_equal_groups_are_skipped_but_counted():
    method = OnlineDPO()
    models = Models(policy=Said(), reference=Said())
    batch, _, metrics = method.prepare(
        models, rollouts(ROWS, [0.0, 2.0, 1.0, 5.0, 5.0, 5.0], 3), method.initial_state()
    )
    assert method.weights(batch).tolist() == [0.5, 0.0]
    assert metrics["reward/equal_groups"] == 0.5


def test_both_sides_are_read_at_the_temperature_they_were_drawn_at():
    batch = rollouts(ROWS, REWARDS, 3)
    policy, method = Said(), OnlineDPO()
    models = Models(policy=policy, reference=Said())
    drawn = replace(batch, answers=at_temperature(batch.answers, 0.6))
    pairs, _, _ = method.prepare(models, drawn, method.initial_state())
    method.losses(models, pairs)
    (asked,) = policy.asked
    assert isinstance(asked, Sampled)
    assert asked.temperature == (0.6,) * 5, "five different answers"
