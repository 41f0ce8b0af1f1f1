"""Each method against numbers worked by hand, on models that are tables."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tutelage.algorithms.base import Models
from tutelage.algorithms.grpo import GRPO
from tutelage.algorithms.policy_gradient import RunningMean
from tutelage.algorithms.ppo import PPO
from tutelage.algorithms.preference import DPO
from tutelage.algorithms.reinforce import Reinforce
from tutelage.algorithms.reward_model import BradleyTerry
from tutelage.algorithms.sft import SFT
from tutelage.data.batch import Pairs, PolicyBatch, Rollouts, Sequences, sequences


@dataclass(frozen=True)
class Table:
    """A model that says `cells[first token of the row]` in column t, whatever it is asked for."""

    cells: dict[int, list[float]]
    end: float = 0.0

    def logprobs(self, answers: Sequences) -> Tensor:
        rows = [self.cells[int(first)] for first in answers.tokens[:, 0]]
        width = answers.tokens.shape[1]
        return torch.tensor([row[:width] + [99.0] * (width - len(row)) for row in rows])

    def logprobs_and_entropy(self, answers: Sequences) -> tuple[Tensor, Tensor]:
        logp = self.logprobs(answers)
        return logp, torch.full_like(logp, 0.5)

    def values(self, answers: Sequences) -> Tensor:
        return self.logprobs(answers)

    def scores(self, answers: Sequences) -> Tensor:
        return self.logprobs(answers)[:, 0] + self.end


def answers(*rows: list[int], prompt_of=None, masks=None) -> Sequences:
    prompt_of = prompt_of or [0] * len(rows)
    return sequences([(1,)] * (max(prompt_of) + 1), prompt_of, rows, masks)


def close(actual: Tensor, expected: list) -> None:
    assert_close(actual, torch.tensor(expected, dtype=actual.dtype))


# Two prompts, two answers each, of 2, 1, 2 and 3 tokens; the last one has a user's turn as its second token.
ROWS = answers(
    [10, 0], [11], [12, 0], [13, 9, 0], prompt_of=[0, 0, 1, 1],
    masks=[[True, True], [True], [True, True], [True, False, True]],
)  # fmt: skip
POLICY = {10: [-1.0, -2.0], 11: [-0.5], 12: [-1.0, -1.0], 13: [-2.0, 99.0, -1.0]}
REFERENCE = {10: [-1.5, -2.0], 11: [-1.5], 12: [-1.0, -0.5], 13: [-2.0, 99.0, -3.0]}
MODELS = Models(policy=Table(POLICY), reference=Table(REFERENCE))
ROLLOUTS = Rollouts(
    ROWS,
    torch.tensor([1.0, 0.0, 2.0, 4.0]),
    Table(POLICY).logprobs(ROWS),
    torch.tensor([True, True, True, False]),
)
"""log pi - log ref: (.5 0) (1) (0 -.5) (0 . 2): with beta = 0.2 the KL costs .1, .2, -.1 and .4 of reward."""


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        # totals: .9 -.2 2.1 3.6; to go: (.9 1) (-.2) (2.1 2.1) (3.6 . 3.6)
        ("none", [[0.9, 1.0, 0.0], [-0.2, 0.0, 0.0], [2.1, 2.1, 0.0], [3.6, 0.0, 3.6]]),
        ("running_mean", [[0.4, 0.5, 0.0], [-0.7, 0.0, 0.0], [1.6, 1.6, 0.0], [3.1, 0.0, 3.1]]),
        ("group_mean", [[0.55, 0.65, 0.0], [-0.55, 0.0, 0.0], [-0.75, -0.75, 0.0], [0.75, 0.0, 0.75]]),
        ("leave_one_out", [[1.1, 1.2, 0.0], [-1.1, 0.0, 0.0], [-1.5, -1.5, 0.0], [1.5, 0.0, 1.5]]),
    ],
)
def test_reinforce(baseline, expected):
    method = Reinforce(baseline=baseline, kl_coefficient=0.2)
    prepared, state, measured = method.prepare(MODELS, ROLLOUTS, RunningMean(0.5, 6))
    close(prepared.advantages, expected)
    # the state that the next step sees: (6 * .5 + 6.4) / 10
    assert (state.mean, state.count) == (pytest.approx(0.94), 10)
    close(method.weights(prepared), [[0.25, 0.25, 0], [0.25, 0, 0], [0.25, 0.25, 0], [0.25, 0, 0.25]])
    losses, metrics = method.losses(MODELS, prepared)
    assert losses[0, 1] == pytest.approx(2 * expected[0][1])
    assert losses[3, 1] == 0
    assert metrics["policy/entropy"].tolist()[0] == [0.5] * 3
    assert measured["policy/kl"] == pytest.approx((0.5 + 1.0 - 0.5 + 2.0) / 4)
    assert measured["policy/kl_per_token"] == pytest.approx(3.0 / 7)
    assert measured["policy/logprob"] == pytest.approx((-3 - 0.5 - 2 - 3) / 7)
    assert measured["answer/length"] == pytest.approx(7 / 4)
    assert measured["answer/finished"] == 0.75
    assert measured["reward/mean"] == 1.75
    assert measured["reward/std"] == pytest.approx(math.sqrt((0.75**2 + 1.75**2 + 0.25**2 + 2.25**2) / 4))


def test_the_running_mean_is_of_earlier_steps():
    """The baseline of the first step is 0, so it may not depend on the answers it is subtracted from."""
    method = Reinforce(kl_coefficient=0.0)
    first, state, _ = method.prepare(MODELS, ROLLOUTS, method.initial_state())
    close(first.advantages[:, 0], [1.0, 0.0, 2.0, 4.0])
    second, state, _ = method.prepare(MODELS, ROLLOUTS, state)
    close(second.advantages[:, 0], [-0.75, -1.75, 0.25, 2.25])
    assert (state.mean, state.count) == (1.75, 8)


def test_discount_reaches_back_over_action_tokens_only():
    """Reward 4 at the end of the row with a hole: one action later, not two columns."""
    method = Reinforce(baseline="none", kl_coefficient=0.0, discount=0.5)
    close(method.prepare(MODELS, ROLLOUTS, RunningMean())[0].advantages[3], [2.0, 0.0, 4.0])


def test_grpo_advantages():
    """Groups (1 0) and (2 4): means .5 and 3, standard deviations (with G - 1) sqrt(.5) and sqrt(2)."""
    center = GRPO(advantage="center").prepare(MODELS, ROLLOUTS, GRPO().initial_state())[0].advantages
    close(center, [[0.5, 0.5, 0], [-0.5, 0, 0], [-1, -1, 0], [1, 0, 1]])
    unit = 0.5 / (math.sqrt(0.5) + 0.5)
    other = 1 / (math.sqrt(2) + 0.5)
    scaled = GRPO(epsilon=0.5).prepare(MODELS, ROLLOUTS, GRPO().initial_state())[0].advantages
    close(scaled, [[unit, unit, 0], [-unit, 0, 0], [-other, -other, 0], [other, 0, other]])


@pytest.mark.parametrize(
    ("average", "expected"),
    [
        ("token", [[1 / 7, 1 / 7, 0], [1 / 7, 0, 0], [1 / 7, 1 / 7, 0], [1 / 7, 0, 1 / 7]]),
        ("sequence", [[1 / 8, 1 / 8, 0], [1 / 4, 0, 0], [1 / 8, 1 / 8, 0], [1 / 8, 0, 1 / 8]]),
        ("constant", [[1 / 40, 1 / 40, 0], [1 / 40, 0, 0], [1 / 40, 1 / 40, 0], [1 / 40, 0, 1 / 40]]),
    ],
)
def test_grpo_averages(average, expected):
    prepared = GRPO().prepare(MODELS, ROLLOUTS, GRPO().initial_state())[0]
    close(GRPO(average=average, max_length=10).weights(prepared), expected)


@pytest.mark.parametrize(
    ("kl", "value"), [("k3", math.exp(-1) - 1 + 1), ("k2", 0.5), ("ratio_k3", math.exp(0.1) * math.exp(-1))]
)
def test_grpo_loss(kl, value):
    """One token, log pi -.5, old -.6, ref -1.5: ratio e^.1 = 1.105; A = 2 is clipped at 1.05, A = -2 is not."""
    row = answers([11], [11])
    method = GRPO(clip_low=0.3, clip_high=0.05, kl=kl, kl_coefficient=0.1, passes=2)
    batch = PolicyBatch(row, torch.tensor([[2.0], [-2.0]]), torch.full((2, 1), -0.6), torch.full((2, 1), -1.5))
    losses, metrics = method.losses(MODELS, batch)
    close(losses[:, 0], [-1.05 * 2 + 0.1 * value, math.exp(0.1) * 2 + 0.1 * value])
    assert metrics["policy/clipped"].tolist() == [[1.0], [0.0]]


def test_grpo_used_once_has_ratio_one_whatever_the_sampler_rounded():
    batch = PolicyBatch(answers([11]), torch.tensor([[2.0]]), torch.full((1, 1), -0.9), torch.full((1, 1), -1.5))
    once, reused = GRPO(kl_coefficient=0.0), GRPO(kl_coefficient=0.0, passes=2)
    assert once.losses(MODELS, batch)[0].item() == -2.0
    assert reused.losses(MODELS, batch)[0].item() == pytest.approx(-2 * 1.2)


def ppo_models(values: dict[int, list[float]], end: float = 0.0) -> Models:
    return Models(policy=Table(POLICY), reference=Table(REFERENCE), value=Table(values, end))


VALUES = {10: [0.5, 1.0], 11: [0.25], 12: [1.0, 2.0], 13: [1.0, 99.0, 3.0]}


def test_ppo_advantages_and_returns():
    """lambda = .5: row 0 has rewards (-.1, 1), deltas (-.1 + 1 - .5, 1 - 1) = (.4, 0); row 3 (0, . , 3.6), (2, . , .6)."""
    method = PPO(kl_coefficient=0.2, gae_lambda=0.5, whiten_advantages=False)
    prepared, _, measured = method.prepare(ppo_models(VALUES), ROLLOUTS, method.initial_state())
    close(prepared.advantages, [[0.4, 0, 0], [-0.45, 0, 0], [1.05, 0.1, 0], [2.3, 0, 0.6]])
    close(prepared.returns, [[0.9, 1.0, 0], [-0.2, 0, 0], [2.05, 2.1, 0], [3.3, 0, 3.6]])
    assert measured["value/mean"] == pytest.approx(8.75 / 7)
    returns = torch.tensor([0.9, 1.0, -0.2, 2.05, 2.1, 3.3, 3.6])
    error = returns - torch.tensor([0.5, 1.0, 0.25, 1.0, 2.0, 1.0, 3.0])
    assert measured["value/explained"] == pytest.approx(1 - float(error.var() / returns.var()))


def test_ppo_bootstraps_behind_the_cut():
    """Row 3 was cut: V after its last token (scores: 1 + 5 = 6) follows it; the others ended and are followed by 0."""
    method = PPO(kl_coefficient=0.0, gae_lambda=0.0, whiten_advantages=False, bootstrap_truncated=True, discount=0.5)
    prepared, _, _ = method.prepare(ppo_models(VALUES, end=5.0), ROLLOUTS, method.initial_state())
    close(prepared.advantages[3], [0.5 * 3 - 1, 0, 4 + 0.5 * 6 - 3])
    close(prepared.advantages[0], [0.5 * 1 - 0.5, 1 - 1, 0])


def test_ppo_whitens_over_the_step():
    method = PPO(kl_coefficient=0.2, gae_lambda=0.5)
    prepared, _, _ = method.prepare(ppo_models(VALUES), ROLLOUTS, method.initial_state())
    raw = torch.tensor([0.4, 0.0, -0.45, 1.05, 0.1, 2.3, 0.6])
    assert_close(prepared.advantages[ROWS.mask], (raw - raw.mean()) / raw.std())
    close(prepared.returns[0], [0.9, 1.0, 0])


def test_ppo_loss():
    """Ratio 1, A = .4: policy -.4; V .5, old V .9, R .9, clip .1: V_clip .8, the larger square .16 / 2, times .5."""
    method = PPO(value_clip=0.1)
    prepared, _, _ = method.prepare(ppo_models(VALUES), ROLLOUTS, method.initial_state())
    ones = torch.ones_like(prepared.advantages)
    changed = type(prepared)(
        prepared.answers, 0.4 * ones, prepared.old_logprobs, prepared.ref_logprobs, 0.9 * ones, 0.9 * ones
    )
    losses, metrics = method.losses(ppo_models(VALUES), changed)
    assert losses[0, 0].item() == pytest.approx(-0.4 + 0.5 * 0.08)
    assert metrics["value/loss"][0, 0].item() == pytest.approx(0.08)
    assert not metrics["policy/moved"][ROWS.mask].any()


def pairs(preference, weight=None, margin=None) -> Pairs:
    """10 against 11 and 12 against 13, and again."""
    n = len(preference)
    chosen = answers(*[[10, 0], [12, 0]][:n], prompt_of=[0, 1][:n])
    rejected = answers(*[[11], [13, 9, 0]][:n], prompt_of=[0, 1][:n], masks=[[True], [True, False, True]][:n])
    ones = torch.ones(n)
    return Pairs(
        chosen, rejected, torch.tensor(preference), ones if weight is None else torch.tensor(weight),
        torch.zeros(n) if margin is None else torch.tensor(margin),
    )  # fmt: skip


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_dpo():
    """h: 10 +.5, 11 +1, 12 -.5, 13 +2 (its masked cell says 0 nats more): differences -.5 and -2.5, times beta 2."""
    method = DPO(beta=2.0)
    prepared, _, _ = method.prepare(MODELS, pairs([1.0, 0.25], weight=[3.0, 1.0]), method.initial_state())
    losses, metrics = method.losses(MODELS, prepared)
    close(losses, [-log_sigmoid(-1.0), -0.25 * log_sigmoid(-5.0) - 0.75 * log_sigmoid(5.0)])
    close(method.weights(prepared), [0.75, 0.25])
    close(metrics["reward/margin"], [-1.0, -5.0])
    close(metrics["reward/chosen"], [1.0, -1.0])
    assert metrics["accuracy/implicit"].tolist() == [0.0, 1.0]
    smoothed = DPO(beta=2.0, label_smoothing=0.1).losses(MODELS, prepared)[0]
    close(smoothed[:1], [-0.9 * log_sigmoid(-1.0) - 0.1 * log_sigmoid(1.0)])
    # a label of 1/4 that may be flipped one time in ten: .25 * .9 + .75 * .1 = .3
    close(smoothed[1:], [-0.3 * log_sigmoid(-5.0) - 0.7 * log_sigmoid(5.0)])


def test_bradley_terry():
    """Scores are the first cells: -1 against -.5 (margin .5) and -1 against -2, a tie."""
    models = Models(reward=Table(POLICY))
    batch = pairs([1.0, 0.5], margin=[0.5, 0.0])
    losses, metrics = BradleyTerry(centering=0.1).losses(models, batch)
    close(losses, [-log_sigmoid(-1.0) + 0.1 * 2.25, -0.5 * log_sigmoid(1.0) - 0.5 * log_sigmoid(-1.0) + 0.1 * 9])
    assert metrics["accuracy/comparison"].tolist() == [0.0, 0.5]
    assert metrics["reward/margin"].tolist() == [-0.5, 0.0]


def test_sft():
    """-log p of the trained tokens; `likely` is a probability above one half."""
    models = Models(policy=Table({10: [math.log(0.51), math.log(0.49)], 13: [-2.0, -0.1, -1.0]}))
    batch = answers([10, 0], [13, 9, 0], masks=[[True, True], [True, False, True]])
    losses, metrics = SFT().losses(models, batch)
    close(losses, [[-math.log(0.51), -math.log(0.49), 0], [2, 0, 1]])
    assert metrics["accuracy/likely"][batch.mask].tolist() == [1.0, 0.0, 0.0, 0.0]
    close(SFT().weights(batch), [[0.25, 0.25, 0], [0.25, 0, 0.25]])
    lone = batch[[0]]
    close(SFT(average="sequence").weights(lone), [[0.5, 0.5, 0]])
