"""PPO's settings and the entropy bonus of all three methods, against numbers worked by hand."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tutelage.algorithms.base import Models
from tutelage.algorithms.grpo import GRPO
from tutelage.algorithms.ppo import PPO, KLState
from tutelage.algorithms.reinforce import Reinforce
from tutelage.data.batch import ActorCriticBatch, PolicyBatch, Rollouts, Sequences, sequences

ROWS = sequences([(1,)], [0, 0, 0], [[10, 0], [11], [13, 9, 0]], [[True, True], [True], [True, False, True]])
POLICY = torch.tensor([[-1.0, -2, 0], [-0.5, 0, 0], [-2, 0, -1]])
REFERENCE = torch.tensor([[-1.5, -2.0, 0], [-1.5, 0, 0], [-2, 0, -3]])
"""log pi - log ref: (.5 0) (1) (0 . 2): 3.5 nats in three answers."""


@dataclass(frozen=True)
class Table:
    """Log-probs, entropies and values that are given; the values also after the last token, plus 5."""

    logp: Tensor
    entropy: Tensor | None = None

    def logprobs(self, answers: Sequences) -> Tensor:
        return self.logp

    def logprobs_and_entropy(self, answers: Sequences) -> tuple[Tensor, Tensor]:
        return self.logp, torch.full_like(self.logp, 0.5) if self.entropy is None else self.entropy

    def values(self, answers: Sequences) -> Tensor:
        return self.logp

    def scores(self, answers: Sequences) -> Tensor:
        return self.logp[:, 0] + 5


MODELS = Models(policy=Table(POLICY), reference=Table(REFERENCE), value=Table(torch.zeros(3, 3)))
ROLLOUTS = Rollouts(ROWS, torch.tensor([1.0, 0.0, 4.0]), POLICY, torch.tensor([True, False, False]))
PLAIN = {"whiten_advantages": False, "gae_lambda": 1.0}


def close(actual: Tensor, expected: list) -> None:
    assert_close(actual, torch.tensor(expected, dtype=actual.dtype))


def test_the_missing_end_penalty_is_paid_at_the_last_own_token():
    """Answers 1 and 2 did not end: 0 - 1.5 and 4 - 1.5, whatever was said in between."""
    method = PPO(kl_coefficient=0.0, missing_end_penalty=1.5, **PLAIN)
    prepared, _, measured = method.prepare(MODELS, ROLLOUTS, method.initial_state())
    close(prepared.returns, [[1, 1, 0], [-1.5, 0, 0], [2.5, 0, 2.5]])
    assert measured["reward/mean"] == pytest.approx(5 / 3), "the task's reward is reported"


def test_the_adaptive_coefficient_moves_towards_its_target_after_the_step():
    """KL 3.5 / 3 nats an answer. beta .2 pays for this step; target 1: error 1/6, so beta grows by rate / 6 for the next."""
    method = PPO(kl_coefficient=0.2, kl_target=1.0, kl_rate=0.3, **PLAIN)
    prepared, state, measured = method.prepare(MODELS, ROLLOUTS, method.initial_state())
    close(prepared.returns[0], [1 - 0.1, 1, 0])
    assert measured["policy/kl_coefficient"] == 0.2
    assert state.coefficient == pytest.approx(0.2 * (1 + 0.3 / 6))
    later, after, _ = method.prepare(MODELS, ROLLOUTS, KLState(0.4))
    close(later.returns[0], [1 - 0.2, 1, 0])
    assert after.coefficient == pytest.approx(0.4 * (1 + 0.3 / 6))
    low = PPO(kl_coefficient=0.2, kl_target=100.0, **PLAIN)
    assert low.prepare(MODELS, ROLLOUTS, KLState(0.2))[1].coefficient == pytest.approx(0.2 * 0.98)


def test_the_fixed_coefficient_stays_and_the_state_survives_a_checkpoint():
    method = PPO(kl_coefficient=0.2)
    _, state, measured = method.prepare(MODELS, ROLLOUTS, method.initial_state())
    assert state == KLState(0.2)
    assert "policy/kl_coefficient" not in measured
    assert KLState(**asdict(KLState(0.123))) == KLState(0.123)


def test_value_clipping_by_hand():
    """V .9, old .5, return 2, clip .1: V_clip .6, the larger error (.6 - 2)^2; within the clip, the plain one."""
    value = torch.tensor([[0.9, 0.55, 0], [0.5, 0, 0], [0.5, 0, 0.5]]).requires_grad_()
    models = Models(policy=Table(POLICY), value=Table(value))
    zeros, twos = torch.zeros(3, 3), torch.full((3, 3), 2.0)
    batch = ActorCriticBatch(ROWS, zeros, POLICY, POLICY, twos, torch.full((3, 3), 0.5))
    losses, _ = PPO(value_clip=0.1, value_coefficient=0.3).losses(models, batch)
    close(losses[0, :2], [0.3 * 1.4**2 / 2, 0.3 * 1.45**2 / 2])
    losses.sum().backward()
    assert value.grad is not None
    close(value.grad[0], [0, 0.3 * (0.55 - 2), 0])
    free, _ = PPO(value_clip=None, value_coefficient=0.3).losses(models, batch)
    assert free[0, 0].item() == pytest.approx(0.3 * 1.1**2 / 2)


@pytest.mark.parametrize("method", [PPO, GRPO, Reinforce], ids=["ppo", "grpo", "reinforce"])
def test_the_entropy_bonus_is_the_same_in_every_method(method):
    """-c H on every own token and nothing under the mask, in value and in gradient."""
    entropy = torch.tensor([[0.1, 0.2, 9], [0.3, 9, 9], [0.4, 9, 0.5]]).requires_grad_()
    models = Models(policy=Table(POLICY, entropy), value=Table(torch.zeros(3, 3)))
    zeros = torch.zeros(3, 3)
    fields = (ROWS, zeros, POLICY, POLICY)
    batch = ActorCriticBatch(*fields, zeros, zeros) if method is PPO else PolicyBatch(*fields)
    without, with_bonus = (
        method(entropy_coefficient=c, kl_coefficient=0.0).losses(models, batch)[0] for c in (0.0, 0.25)
    )
    close(with_bonus - without, [[-0.025, -0.05, 0], [-0.075, 0, 0], [-0.1, 0, -0.125]])
    with_bonus.sum().backward()
    assert entropy.grad is not None
    close(entropy.grad, [[-0.25, -0.25, 0], [-0.25, 0, 0], [-0.25, 0, -0.25]])
