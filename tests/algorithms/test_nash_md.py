"""Nash-MD against numbers worked by hand, on models that are tables."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch.testing import assert_close

from tutelage.algorithms.base import Models
from tutelage.algorithms.nash_md import NashMD, PastPolicies
from tutelage.config import build, config
from tutelage.data.batch import Rollouts, sequences


@dataclass(frozen=True)
class Table:
    """A model that says `cells[first token of the row]` in column t."""

    cells: dict[int, list[float]]

    def logprobs(self, answers):
        rows = [self.cells[int(first)] for first in answers.tokens[:, 0]]
        return torch.tensor([(row + [99.0] * 9)[: answers.tokens.shape[1]] for row in rows])

    def logprobs_and_entropy(self, answers):
        return self.logprobs(answers), torch.zeros(answers.tokens.shape)


POLICY = Table({10: [-1.0, -2.0], 11: [-0.5], 12: [-1.0, -1.0], 13: [-2.0, 99.0, -1.0]})
REFERENCE = Table({10: [-1.5, -2.0], 11: [-1.5], 12: [-1.0, -0.5], 13: [-2.0, 99.0, -3.0]})
MODELS = Models(policy=POLICY, reference=REFERENCE)
ROWS = sequences(
    [(1,), (1,)], [0, 0, 1, 1], [[10, 0], [11], [12, 0], [13, 9, 0]],
    [[True, True], [True], [True, True], [True, False, True]],
)  # fmt: skip
ROLLOUTS = Rollouts(ROWS, torch.tensor([0.9, 0.2, 0.5, 0.7]), POLICY.logprobs(ROWS), torch.tensor([True] * 4))
"""P(y > y') of each answer; log pi - log mu is (.5 0) (1) (0 -.5) (0 . 2): with tau = 0.2 it costs .1, .2, -.1 and .4."""


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        # P less KL, to go: (.8 .9) (.0) (.6 .6) (.3 . .3); minus 1/2
        ("half", [[0.3, 0.4, 0.0], [-0.5, 0.0, 0.0], [0.1, 0.1, 0.0], [-0.2, 0.0, -0.2]]),
        # minus the other answer's return: .0, .8, .3, .6
        ("leave_one_out", [[0.8, 0.9, 0.0], [-0.8, 0.0, 0.0], [0.3, 0.3, 0.0], [-0.3, 0.0, -0.3]]),
    ],
)
def test_advantages_by_hand(baseline, expected):
    method = NashMD(kl_coefficient=0.2, baseline=baseline)
    prepared, state, metrics = method.prepare(MODELS, ROLLOUTS, method.initial_state())
    assert_close(prepared.advantages, torch.tensor(expected))
    assert state == PastPolicies(1, [])
    assert metrics["reward/mean"] == pytest.approx(0.575)
    assert metrics["policy/kl"] == pytest.approx((0.5 + 1.0 - 0.5 + 2.0) / 4)
    losses, _ = method.losses(MODELS, prepared)
    weights = method.weights(prepared)
    by_hand = -sum(a * logp for a, logp in zip(expected[0][:2], [-1.0, -2.0], strict=True))
    assert float(losses[0].sum()) == pytest.approx(by_hand)
    assert_close(weights[3], torch.tensor([0.25, 0.0, 0.25]))


def test_a_tie_everywhere_and_no_kl_teaches_nothing():
    method = NashMD(kl_coefficient=0.0)
    even = replace(ROLLOUTS, rewards=torch.full((4,), 0.5))
    assert not method.prepare(MODELS, even, method.initial_state())[0].advantages.any()
    assert method.needs == ("policy",)
    assert NashMD().needs == ("policy", "reference")


def test_empty_and_lonely_answers_are_defined():
    rows = sequences([(1,), (1,)], [0, 1], [[], [11]])
    batch = Rollouts(rows, torch.tensor([0.1, 0.9]), torch.full((2, 1), -0.5), torch.tensor([False, True]))
    for baseline in ("half", "leave_one_out"):
        method = NashMD(kl_coefficient=0.0, baseline=baseline)
        prepared = method.prepare(Models(policy=POLICY), batch, method.initial_state())[0]
        assert prepared.advantages.isfinite().all()
        assert prepared.advantages[0].tolist() == [0.0]
        assert float(prepared.advantages[1, 0]) == pytest.approx(0.4 if baseline == "half" else 0.9)


def test_the_named_settings():
    @config
    class Holder:
        algorithm: NashMD

    def named(name):
        return build(Holder, {"algorithm": name}, "test").algorithm

    assert named("self_play").mixing == 0.0
    assert (named("best_response").mixing, named("best_response").kl_coefficient) == (1.0, 0.0)
    assert named("past_policies").pool_every == 10
    with pytest.raises(ValueError, match=r"algorithm\.mixing.*less than or equal to 1"):
        build(Holder, {"algorithm": {"name": "nash_md", "mixing": 1.5}}, "test")
