"""Penalties, rewards of steps and the adaptive coefficient, by hand."""

import pytest
import torch
from torch.testing import assert_close

from tutelage.functional.shaping import adapted_coefficient, missing_end, soft_overlong, step_advantages


def test_soft_overlong_by_hand():
    """Limit 20, buffer 4: free up to 16, a quarter a token from there, -1 at the limit."""
    lengths = torch.tensor([1, 16, 17, 18, 20, 25])
    assert soft_overlong(lengths, 20, 4).tolist() == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]
    assert soft_overlong(lengths, 20, 0).tolist() == [0.0] * 6


def test_missing_end_by_hand():
    assert missing_end(torch.tensor([True, False]), 1.5).tolist() == [0.0, -1.5]


# Prompt 0: answers of 4 and 3 tokens with steps ending at tokens 2 4 and 3; prompt 1: one answer, its second token a user's.
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 1, 1]]).bool()
STEPS = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 0], [1, 0, 0, 1]]).bool()
REWARDS = torch.tensor([[9.0, 1.0, 9.0, 2.0], [9.0, 9.0, 6.0, 9.0], [0.0, 9.0, 9.0, 4.0]])
PROMPT_OF = torch.tensor([0, 0, 5])


def test_step_advantages_by_hand():
    """Group (1, 2, 6): mean 3, so -2, -1, 3; the first answer's first two tokens still have both of its steps to end."""
    centered = step_advantages(REWARDS, STEPS, MASK, PROMPT_OF, None)
    assert_close(centered, torch.tensor([[-3.0, -3, -1, -1], [3, 3, 3, 0], [0, 0, 2, 2]]))
    scaled = step_advantages(REWARDS, STEPS, MASK, PROMPT_OF, 0.5)
    # standard deviations with n - 1: sqrt((4 + 1 + 9) / 2) and sqrt((4 + 4) / 1)
    by_group = torch.tensor([7**0.5 + 0.5, 7**0.5 + 0.5, 8**0.5 + 0.5])
    assert_close(scaled, centered / by_group[:, None])


def test_the_same_with_one_step_an_answer_is_outcome_supervision():
    from tutelage.functional.advantages import standardize

    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, generator=generator, dtype=torch.float64)
    mask = torch.ones(6, 3, dtype=torch.bool)
    steps = torch.zeros_like(mask)
    steps[:, -1] = True
    rewards = torch.zeros(6, 3, dtype=torch.float64)
    rewards[:, -1] = scores
    found = step_advantages(rewards, steps, mask, torch.tensor([0, 1, 0, 1, 0, 1]), 1e-4)
    expected = standardize(scores.view(3, 2).T, 1e-4).T.reshape(-1)
    assert_close(found, expected[:, None].expand(6, 3))


@pytest.mark.parametrize("reward", [0.1, 0.7, 1 / 3])
def test_equal_steps_teach_exactly_nothing(reward):
    equal = torch.full((3, 4), reward)
    assert not step_advantages(equal, STEPS, MASK, PROMPT_OF, 1e-4).any()
    assert not step_advantages(equal, torch.zeros_like(STEPS), MASK, PROMPT_OF, 1e-4).any()  # no step at all


def test_a_step_must_end_on_an_own_token():
    with pytest.raises(AssertionError, match="a step ends on a token"):
        step_advantages(REWARDS, torch.ones_like(STEPS), MASK, PROMPT_OF, None)


def test_adapted_coefficient_by_hand():
    assert adapted_coefficient(0.05, 6.0, 6.0, 0.1) == 0.05
    assert adapted_coefficient(0.05, 6.6, 6.0, 0.1) == pytest.approx(0.05 * 1.01)  # 10 % above: error 0.1
    assert adapted_coefficient(0.05, 60.0, 6.0, 0.1) == pytest.approx(0.05 * 1.02)  # clipped at 0.2
    assert adapted_coefficient(0.05, 0.0, 6.0, 0.1) == pytest.approx(0.05 * 0.98)
