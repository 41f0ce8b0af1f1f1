"""GRPO's named settings, against numbers worked by hand: each option changes what it says, by how much it says."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tutelage.algorithms.base import Models, State
from tutelage.algorithms.grpo import GRPO
from tutelage.config import build, config
from tutelage.data.batch import PolicyBatch, Rollouts, Sequences, sequences
from tutelage.data.sampled import StepRollouts
from tutelage.functional.weights import weighted_sum


@dataclass(frozen=True)
class Leaf:
    """A policy whose log-probs are a leaf to differentiate by; its entropies are the same numbers squared."""

    logp: Tensor

    def logprobs(self, answers: Sequences) -> Tensor:
        return self.logp

    def logprobs_and_entropy(self, answers: Sequences) -> tuple[Tensor, Tensor]:
        return self.logp, self.logp**2


# Two prompts, two answers each, of 2 1 2 and 3 tokens, the last with a user's turn as its second token.
ROWS = sequences(
    [(1,), (2,)], [0, 0, 1, 1], [[10, 0], [11], [12, 0], [13, 9, 0]],
    [[True, True], [True], [True, True], [True, False, True]],
)  # fmt: skip
OLD = torch.tensor([[-1.0, -2, 0], [-0.5, 0, 0], [-1, -1, 0], [-2, 0, -1]], dtype=torch.float64)
LOG_RATIO = torch.tensor([[0.1, 0.3, 0], [-0.4, 0, 0], [0.5, -0.1, 0], [-0.2, 0, 0.4]], dtype=torch.float64)
ADVANTAGES = torch.tensor([[1.0], [-1], [2], [-2]], dtype=torch.float64).expand(4, 3) * ROWS.mask


def step(method: GRPO, advantages: Tensor = ADVANTAGES) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Losses, their gradient by the log-probs under the method's own weights, and metrics."""
    logp = (OLD + LOG_RATIO).requires_grad_()
    batch = PolicyBatch(ROWS, advantages, OLD, OLD - 1)
    losses, metrics = method.losses(Models(policy=Leaf(logp)), batch)
    weighted_sum(losses, method.weights(batch)).backward()
    assert logp.grad is not None
    return losses.detach(), logp.grad, dict(metrics)


def close(actual: Tensor, expected: list) -> None:
    assert_close(actual, torch.tensor(expected, dtype=actual.dtype))


def rollouts(rewards: list[float], finished: list[bool] | None = None) -> Rollouts:
    return Rollouts(ROWS, torch.tensor(rewards), OLD.float(), torch.tensor(finished or [True] * 4))


def test_gspo_clips_the_answer_as_one():
    """Mean log-ratios .2 -.4 .2 .1: with [.7, 1.2] answer 2 (A = 2) is clipped at 1.2, answer 1 (A = -1) at .7."""
    method = GRPO(ratio="sequence", average="sequence", clip_low=0.3, clip_high=0.2, kl_coefficient=0.0, minibatches=2)
    losses, gradient, metrics = step(method)
    e = math.exp
    close(losses, [[-1.2, -1.2, 0], [0.7, 0, 0], [-2.4, -2.4, 0], [2 * e(0.1), 0, 2 * e(0.1)]])
    assert metrics["policy/clipped"].sum(1).tolist() == [2, 1, 2, 0]
    # 1 / 4 rows x s A / |y|, where the answer is not clipped
    close(gradient, [[0, 0, 0], [0, 0, 0], [0, 0, 0], [2 * e(0.1) / 8, 0, 2 * e(0.1) / 8]])


def test_cispo_keeps_every_tokens_gradient():
    method = GRPO(objective="cispo", clip_low=1.0, clip_high=0.2, kl_coefficient=0.0, minibatches=2)
    _, gradient, metrics = step(method)
    e = math.exp
    weights = [[e(0.1), 1.2, 0], [e(-0.4), 0, 0], [1.2, e(-0.1), 0], [e(-0.2), 0, 1.2]]
    assert_close(gradient, -torch.tensor(weights, dtype=torch.float64) * ADVANTAGES / 7)
    assert metrics["policy/clipped"].sum().item() == 3


def test_cispo_with_the_answers_ratio():
    method = GRPO(objective="cispo", ratio="sequence", clip_low=1.0, clip_high=0.15, kl_coefficient=0.0, passes=2)
    _, gradient, _ = step(method)
    weights = torch.tensor([1.15, math.exp(-0.4), 1.15, math.exp(0.1)], dtype=torch.float64)
    assert_close(gradient, -weights[:, None] * ADVANTAGES / 7)


def test_clip_higher_lets_a_token_grow():
    """The token with ratio e^.3 = 1.35 and A = 1: at rest with 0.28, on its way with 0.4; nothing changes below."""
    narrow, wide = (GRPO(clip_high=high, kl_coefficient=0.0, passes=2) for high in (0.28, 0.4))
    assert step(narrow)[1][0, 1] == 0
    assert step(wide)[1][0, 1].item() == pytest.approx(-math.exp(0.3) / 7)
    assert torch.equal(step(narrow)[1][1], step(wide)[1][1])


@pytest.mark.parametrize("kl", ["ratio_k3", "k3", "k2"])
def test_the_kl_to_the_old_policy_reads_no_reference(kl):
    method = GRPO(kl_to="old", kl=kl, kl_coefficient=0.5, passes=2)
    assert method.needs == ("policy",)
    losses, _, _ = step(method, torch.zeros_like(ADVANTAGES))
    d = LOG_RATIO
    value = {"k3": torch.exp(-d) - 1 + d, "k2": d**2 / 2, "ratio_k3": d.exp() * (torch.exp(-d) - 1 + d)}[kl]
    assert_close(losses, 0.5 * value)
    once = step(GRPO(kl_to="old", kl=kl, kl_coefficient=0.5), torch.zeros_like(ADVANTAGES))
    assert not torch.stack(once[:2]).any(), "used once, the policy is the one that sampled"


def test_the_entropy_bonus_is_subtracted_from_the_loss_and_its_gradient_counts():
    """The leaf's entropy is logp^2: the bonus's gradient is -c 2 logp on each of 7 tokens."""
    losses, gradient, _ = step(GRPO(entropy_coefficient=0.3, kl_coefficient=0.0), torch.zeros_like(ADVANTAGES))
    logp = (OLD + LOG_RATIO) * ROWS.mask
    assert_close(losses, -0.3 * logp**2)
    assert_close(gradient, -0.6 * logp / 7)


def test_group_average_is_daps_formula():
    """Groups of 3 and 4 tokens: 1 / (2 x 3) and 1 / (2 x 4)."""
    prepared = PolicyBatch(ROWS, ADVANTAGES, OLD, OLD)
    close(
        GRPO(average="group").weights(prepared),
        [[1 / 6, 1 / 6, 0], [1 / 6, 0, 0], [1 / 8, 1 / 8, 0], [1 / 8, 0, 1 / 8]],
    )


def test_the_overlong_penalty_comes_before_the_comparison():
    """Limit 4, a half of it: over 2 tokens. Own tokens 2 1 2 2: none is over; with limit 2 those of two tokens get -1."""
    same = GRPO(advantage="center", overlong=0.5, max_length=4, kl_coefficient=0.0)
    plain = GRPO(advantage="center", kl_coefficient=0.0)
    batch = rollouts([1.0, 0, 1, 0])
    expected = plain.prepare(Models(), batch, State())[0].advantages
    assert torch.equal(same.prepare(Models(), batch, State())[0].advantages, expected)
    short = GRPO(advantage="center", overlong=0.5, max_length=2, kl_coefficient=0.0)
    prepared, _, measured = short.prepare(Models(), batch, State())
    # shaped rewards 0, 0 and 0, -1
    close(prepared.advantages, [[0, 0, 0], [0, 0, 0], [0.5, 0.5, 0], [-0.5, 0, -0.5]])
    assert measured["reward/overlong"] == -0.75
    assert measured["reward/mean"] == 0.5, "the task's reward is reported, not the shaped one"


def test_process_rewards_replace_the_outcome():
    """Steps of (1 and 3) against (2): mean 2, so -1 + 1 = 0 and 1 for the first answer's tokens, 0 for the other's."""
    plain = rollouts([5.0, -5, 5, -5])
    steps = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 0], [1, 0, 1]]).bool()
    scores = torch.tensor([[1.0, 3, 0], [2, 0, 0], [0, 4, 0], [1, 0, 1]])
    batch = StepRollouts(*(getattr(plain, f.name) for f in fields(Rollouts)), scores, steps)
    method = GRPO(advantage="center", kl_coefficient=0.0)
    close(method.prepare(Models(), batch, State())[0].advantages, [[0, 1, 0], [0, 0, 0], [2, 2, 0], [-2, 0, -1]])
    scaled = GRPO(epsilon=0.5, kl_coefficient=0.0).prepare(Models(), batch, State())[0].advantages
    close(scaled[:, 1], [1 / 1.5, 0, 2 / (3**0.5 + 0.5), 0])  # stds with n - 1: 1, and sqrt((4 + 1 + 1) / 2)


def test_a_length_that_is_needed_and_not_said_is_an_error():
    with pytest.raises(ValueError, match=r"algorithm\.max_length"):
        GRPO(average="constant").weights(PolicyBatch(ROWS, ADVANTAGES, OLD, OLD))


@config
class Holder:
    algorithm: GRPO


def test_presets_are_the_papers_settings():
    """DAPO: clip-higher, no KL, no constant groups, length penalty. GSPO, 5.1: 3e-4 and 4e-4. CISPO: bounded above only."""
    found = {name: build(Holder, {"algorithm": name}, "").algorithm for name in GRPO.presets}
    dapo, gspo, cispo, dr = (found[name] for name in ("dapo", "gspo", "cispo", "dr_grpo"))
    assert (dapo.clip_low, dapo.clip_high, dapo.kl_coefficient, dapo.average) == (0.2, 0.28, 0.0, "token")
    assert (dapo.overlong, dapo.attempts > 0, dapo.needs) == (0.2, True, ("policy",))
    assert (gspo.ratio, gspo.average, gspo.clip_low, gspo.clip_high) == ("sequence", "sequence", 3e-4, 4e-4)
    assert (cispo.objective, cispo.clip_low, cispo.ratio) == ("cispo", 1.0, "token")
    assert all(m.passes * m.minibatches > 1 for m in (dapo, gspo, cispo)), "used once, the ratio is 1 and no clip binds"
    assert (dr.advantage, dr.average) == ("center", "constant")
