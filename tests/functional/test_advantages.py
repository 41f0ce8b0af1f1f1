"""Advantages: numbers worked by hand, an independent loop, and masks with holes."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.testing import assert_close

from tutelage.functional.advantages import (
    at_last_token,
    center,
    first_token,
    gae,
    leave_one_out,
    reward_to_go,
    standardize,
    whiten,
)

NAN = float("nan")
BASELINES = [center, leave_one_out, lambda rewards: standardize(rewards, 1e-4)]


def test_leave_one_out_by_hand():
    # Means of the others: 1/3, 2/3, 2/3, 1/3.
    assert_close(leave_one_out(torch.tensor([[1.0, 0.0, 0.0, 1.0]])), torch.tensor([[2 / 3, -2 / 3, -2 / 3, 2 / 3]]))


def test_leave_one_out_of_one_answer_is_its_reward():
    assert_close(leave_one_out(torch.tensor([[0.7], [-2.0]])), torch.tensor([[0.7], [-2.0]]))


def test_center_by_hand():
    # Means 2 and 0.
    got = center(torch.tensor([[1.0, 3.0, 2.0], [-1.0, 0.5, 0.5]]))
    assert_close(got, torch.tensor([[-1.0, 1.0, 0.0], [-1.0, 0.5, 0.5]]))


def test_standardize_by_hand():
    # Mean 2, deviations -2, 0, 0, 2: sample variance 8 / 3.
    got = standardize(torch.tensor([[0.0, 2.0, 2.0, 4.0]]), 0.0)
    assert_close(got, torch.tensor([[-2.0, 0.0, 0.0, 2.0]]) / (8 / 3) ** 0.5)
    # Epsilon is added to the standard deviation: deviations -1, 1, variance 2.
    got = standardize(torch.tensor([[0.0, 2.0]]), 0.5)
    assert_close(got, torch.tensor([[-1.0, 1.0]]) / (2**0.5 + 0.5))


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("reward", [0.1, 1 / 3, -7.7, 123456.78])
def test_equal_rewards_give_exactly_zero(baseline, reward: float):
    """For group sizes at which the mean of equal floats misses them by a rounding error."""
    for group in (2, 3, 5, 7, 16, 33):
        assert torch.equal(baseline(torch.full((1, group), reward)), torch.zeros(1, group))


def test_standardize_without_epsilon_is_defined_for_equal_rewards_and_for_one_answer():
    assert torch.equal(standardize(torch.full((2, 3), 0.1), 0.0), torch.zeros(2, 3))
    assert torch.equal(standardize(torch.tensor([[5.0]]), 1e-4), torch.zeros(1, 1))


@pytest.mark.parametrize("baseline", BASELINES)
def test_groups_do_not_see_each_other_and_order_does_not_matter(baseline):
    rewards = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = baseline(rewards)
    assert torch.equal(baseline(rewards[2:3]), together[2:3])
    order = [4, 1, 0, 5, 3, 2]
    assert_close(baseline(rewards[:, order]), together[:, order])
    assert_close(baseline(rewards + 100), together)  # a constant added to every reward changes nothing


def test_at_last_token_by_hand():
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    got = at_last_token(torch.tensor([1.0, 2.0, NAN, 4.0]), mask)
    # On the last action, not on the pad after it nor on the last column; a hole is stepped over; an empty row is 0.
    hand = torch.tensor([[0.0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0], [0, 0, 0, 4]])
    assert torch.equal(got, hand)


def test_first_token_by_hand():
    """The first cell that is on, though the row may begin with a hole; nothing in an empty row."""
    mask = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
    assert first_token(mask).int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


def test_reward_to_go_by_hand():
    rewards = torch.tensor([[1.0, 2.0, NAN, 4.0, 1e9]])
    mask = torch.tensor([[1, 1, 0, 1, 0]])
    # Actions with rewards 1, 2, 4. With discount 1/2: 4, then 2 + 4/2 = 4, then 1 + 4/2 = 3.
    assert torch.equal(reward_to_go(rewards, mask, 0.5), torch.tensor([[3.0, 4, 0, 4, 0]]))
    assert torch.equal(reward_to_go(rewards, mask), torch.tensor([[7.0, 6, 0, 4, 0]]))
    assert torch.equal(reward_to_go(rewards, mask, 0.0), torch.tensor([[1.0, 2, 0, 4, 0]]))


def test_gae_by_hand():
    """discount = lam = 1/2; actions at columns 0, 1 and 3 with rewards 0, 1, 2 and values 1, 2, 4.

    delta = 0 + 2/2 - 1 = 0;  1 + 4/2 - 2 = 1;  2 + 0 - 4 = -2, V being 0 after the end.
    A = -2;  1 + (-2)/4 = 1/2;  0 + (1/2)/4 = 1/8.   R = A + V = 9/8, 5/2, 2.
    """
    rewards, values = torch.tensor([[0.0, 1, NAN, 2, 1e9]]), torch.tensor([[1.0, 2, NAN, 4, 1e9]])
    mask = torch.tensor([[1, 1, 0, 1, 0]])
    advantages, returns = gae(rewards, values, mask, 0.5, 0.5)
    assert torch.equal(advantages, torch.tensor([[0.125, 0.5, 0, -2, 0]]))
    assert torch.equal(returns, torch.tensor([[1.125, 2.5, 0, 2, 0]]))

    # Cut off in a state of value 8: the last delta is 2 + 8/2 - 4 = 2; then 1 + 2/4 = 3/2; then 0 + (3/2)/4 = 3/8.
    advantages, returns = gae(rewards, values, mask, 0.5, 0.5, bootstrap=torch.tensor([8.0]))
    assert torch.equal(advantages, torch.tensor([[0.375, 1.5, 0, 2, 0]]))
    assert torch.equal(returns, torch.tensor([[1.375, 3.5, 0, 6, 0]]))


def loop_gae(rewards: list[float], values: list[float], discount: float, lam: float, after: float) -> list[float]:
    """Advantages of one row without holes, term by term from the sum of eq. 16: sum_l (discount lam)^l delta_{t+l}."""
    steps = len(rewards)
    following = [*values[1:], after]
    deltas = [rewards[t] + discount * following[t] - values[t] for t in range(steps)]
    return [sum((discount * lam) ** (k - t) * deltas[k] for k in range(t, steps)) for t in range(steps)]


@pytest.mark.parametrize(("discount", "lam"), [(1.0, 0.95), (0.99, 0.9), (0.7, 0.0), (1.0, 1.0), (0.0, 0.5)])
@pytest.mark.parametrize("truncated", [False, True])
def test_gae_equals_the_sum_on_the_compressed_row(discount: float, lam: float, truncated: bool):
    rewards, values, mask = ragged(rows=9, tokens=37)
    bootstrap = torch.linspace(-1, 2, 9, dtype=torch.float64) if truncated else None
    advantages, returns = gae(rewards, values, mask, discount, lam, bootstrap=bootstrap)
    assert torch.equal(advantages[~mask], torch.zeros_like(advantages[~mask]))
    assert torch.equal(returns[~mask], torch.zeros_like(returns[~mask]))
    for row in range(9):
        on = mask[row]
        after = 0.0 if bootstrap is None else bootstrap[row].item()
        hand = loop_gae(rewards[row][on].tolist(), values[row][on].tolist(), discount, lam, after)
        hand = torch.tensor(hand, dtype=torch.float64)
        assert_close(advantages[row][on], hand, rtol=0, atol=1e-12)
        assert_close(returns[row][on], hand + values[row][on], rtol=0, atol=1e-12)


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_reward_to_go_equals_the_sum_on_the_compressed_row(discount: float):
    rewards, _, mask = ragged(rows=9, tokens=37)
    got = reward_to_go(rewards, mask, discount)
    for row in range(9):
        kept = rewards[row][mask[row]].tolist()
        hand = [sum(discount**k * r for k, r in enumerate(kept[t:])) for t in range(len(kept))]
        assert_close(got[row][mask[row]], torch.tensor(hand, dtype=torch.float64), rtol=0, atol=1e-12)


def test_gae_without_discount_and_with_lam_one_is_return_minus_value():
    rewards, values, mask = ragged(rows=9, tokens=37)
    advantages, returns = gae(rewards, values, mask, 1.0, 1.0)
    to_go = reward_to_go(rewards, mask)
    assert_close(advantages[mask], (to_go - values)[mask])
    assert_close(returns[mask], to_go[mask])


def test_gae_of_a_perfect_value_model_is_zero():
    """Where V is the return itself there is nothing to be surprised by, at any lam."""
    rewards, _, mask = ragged(rows=9, tokens=37)
    values = reward_to_go(rewards, mask, 0.9)
    for lam in (0.0, 0.5, 1.0):
        advantages, _ = gae(rewards, values, mask, 0.9, lam)
        assert_close(advantages, torch.zeros_like(advantages), rtol=0, atol=1e-12)


def test_padding_changes_nothing():
    rewards, values, mask = ragged(rows=9, tokens=37)
    wider_rewards, wider_values = pad(rewards, (0, 27), value=NAN), pad(values, (0, 27), value=NAN)
    padded = gae(wider_rewards, wider_values, pad(mask, (0, 27)), 0.9, 0.8)
    for got, hand in zip(padded, gae(rewards, values, mask, 0.9, 0.8), strict=True):
        assert_close(got[:, :37], hand)
        assert not got[:, 37:].any()


@pytest.mark.parametrize("planted", [NAN, float("inf"), 1e9])
def test_masked_cells_are_never_read(planted: float):
    rewards, values, mask = ragged(rows=9, tokens=37)
    dirty_rewards, dirty_values = rewards.masked_fill(~mask, planted), values.masked_fill(~mask, planted)
    for got, clean in zip(gae(dirty_rewards, dirty_values, mask, 0.9, 0.8), gae(rewards, values, mask, 0.9, 0.8)):
        assert torch.equal(got, clean)
    assert torch.equal(reward_to_go(dirty_rewards, mask, 0.9), reward_to_go(rewards, mask, 0.9))
    for shift_mean in (True, False):
        got = whiten(dirty_rewards, mask, shift_mean=shift_mean)
        assert torch.equal(got, whiten(rewards, mask, shift_mean=shift_mean))


@pytest.mark.parametrize("planted", [NAN, 1e9])
def test_masked_cells_have_no_gradient(planted: float):
    rewards, values, mask = ragged(rows=9, tokens=37)
    values = values.masked_fill(~mask, planted).requires_grad_()
    rewards = rewards.masked_fill(~mask, planted).requires_grad_()
    advantages, _ = gae(rewards, values, mask, 0.9, 0.8)
    (advantages.square().sum() + reward_to_go(rewards, mask).square().sum() + whiten(values, mask)[0].sum()).backward()
    for x in (rewards, values):
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert x.grad[mask].any()
        assert not x.grad[~mask].any()


def test_answers_of_no_and_of_one_token():
    mask = torch.tensor([[False, False], [True, False]])
    advantages, returns = gae(torch.full((2, 2), 3.0), torch.full((2, 2), 1.0), mask, 1.0, 0.95)
    assert torch.equal(advantages, torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
    assert torch.equal(returns, torch.tensor([[0.0, 0.0], [3.0, 0.0]]))
    nothing = torch.zeros(2, 0)
    assert gae(nothing, nothing, nothing.bool(), 1.0, 0.95)[0].shape == (2, 0)
    assert reward_to_go(nothing, nothing.bool()).shape == (2, 0)


def ragged(rows: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, values and a mask with holes and tails; row 3 is empty, row 4 full, row 5 has one action."""
    generator = torch.Generator().manual_seed(7)
    rewards = torch.randn(rows, tokens, dtype=torch.float64, generator=generator)
    values = torch.randn(rows, tokens, dtype=torch.float64, generator=generator)
    mask = torch.rand(rows, tokens, generator=generator) < 0.7
    lengths = torch.randint(1, tokens + 1, (rows, 1), generator=generator)
    mask &= torch.arange(tokens) < lengths
    mask[3], mask[4], mask[5] = False, True, False
    mask[5, 11] = True
    return rewards, values, mask
