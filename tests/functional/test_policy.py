"""Policy losses: numbers worked by hand, and where the clip leaves no gradient."""

import pytest
import torch
from torch.testing import assert_close

from tutelage.functional.policy import clipped_surrogate, clipped_value_loss, importance_weight, ratio, reinforce


def test_reinforce_by_hand():
    logp = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    losses = reinforce(logp, torch.tensor([0.5, -1.0, 0.0]))
    assert_close(losses, torch.tensor([0.5, -2.0, 0.0]))
    losses.sum().backward()
    assert_close(logp.grad, torch.tensor([-0.5, 1.0, 0.0]))


def test_ratio_by_hand():
    # Probabilities 0.3 now and 0.2 then.
    assert_close(ratio(torch.tensor([0.3]).log(), torch.tensor([0.2]).log()), torch.tensor([1.5]))


def test_clipped_surrogate_by_hand():
    """low = 0.2, high = 0.3, so r is clipped to [0.8, 1.3]; the pessimistic one of r A and clip(r) A counts."""
    r = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.25, 0.9], dtype=torch.float64)
    advantages = torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0, -2.0], dtype=torch.float64)
    old_logp = torch.full_like(r, -1.0)
    logp = (old_logp + r.log()).requires_grad_()

    losses, clipped = clipped_surrogate(logp, old_logp, advantages, 0.2, 0.3)
    # min(3, 2.6); min(-3, -2.6); min(1, 1.6); min(-1, -1.6); unclipped 2.5; unclipped -1.8: each with the sign changed.
    hand = torch.tensor([-2.6, 3.0, -1.0, 1.6, -2.5, 1.8], dtype=torch.float64)
    assert_close(losses, hand)
    assert clipped.tolist() == [1, 0, 0, 1, 0, 0]

    losses.sum().backward()
    # d(-r A) / dlogp = -r A where the clip does not bind, else 0.
    assert_close(logp.grad, torch.tensor([0.0, 3.0, -1.0, 0.0, -2.5, 1.8], dtype=torch.float64))


def test_clipped_surrogate_of_equal_bounds_has_no_gap():
    # high = 0.28 lets r = 1.25 through, low = high = 0.2 does not.
    logp, old_logp, advantage = torch.tensor([1.25]).log(), torch.zeros(1), torch.ones(1)
    assert clipped_surrogate(logp, old_logp, advantage, 0.2, 0.28)[1].item() == 0
    losses, clipped = clipped_surrogate(logp, old_logp, advantage, 0.2, 0.2)
    assert clipped.item() == 1
    assert_close(losses, torch.tensor([-1.2]))


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.28), (0.0, 0.0)])
def test_at_the_first_step_ppo_is_reinforce(low: float, high: float):
    """Ratio exactly 1, nothing clipped, the gradient of REINFORCE, even with no room to move."""
    generator = torch.Generator().manual_seed(0)
    start, advantages = torch.randn(4, 5, generator=generator), torch.randn(4, 5, generator=generator)
    logp = start.clone().requires_grad_()
    losses, clipped = clipped_surrogate(logp, start, advantages, low, high)
    assert torch.equal(ratio(start, start), torch.ones(4, 5))
    assert torch.equal(clipped, torch.zeros(4, 5))
    assert torch.equal(losses, -advantages)
    losses.sum().backward()
    assert_close(logp.grad, -advantages)


def test_zero_advantage_gives_zero_gradient_and_is_never_clipped():
    logp = torch.tensor([2.0, 0.0, -2.0], requires_grad=True)
    losses, clipped = clipped_surrogate(logp, torch.zeros(3), torch.zeros(3), 0.2, 0.2)
    (losses.sum() + reinforce(logp, torch.zeros(3)).sum()).backward()
    assert logp.grad is not None
    assert torch.equal(logp.grad, torch.zeros(3))
    assert torch.equal(clipped, torch.zeros(3))


def test_value_loss_by_hand():
    values = torch.tensor([1.0, 3.0, 0.1], requires_grad=True)
    old_values, returns = torch.zeros(3), torch.tensor([2.0, 2.0, 2.0])
    # Half of (1, 1, 3.61).
    assert_close(clipped_value_loss(values, old_values, returns, None), torch.tensor([0.5, 0.5, 1.805]))
    # Within 0.5 of the old value: V_clip = 0.5, 0.5, 0.1 with errors 2.25, 2.25, 3.61; half of the larger error.
    losses = clipped_value_loss(values, old_values, returns, 0.5)
    assert_close(losses, torch.tensor([1.125, 1.125, 1.805]))
    losses.sum().backward()
    # No gradient where the clip binds; V - R where it does not.
    assert_close(values.grad, torch.tensor([0.0, 0.0, -1.9]))


def test_importance_weight_is_capped_and_detached():
    trainer = torch.tensor([0.2, 0.6, 0.3]).log().requires_grad_()
    sampler = torch.tensor([0.4, 0.1, 0.3]).log()
    weight = importance_weight(trainer, sampler, cap=2.0)
    # 0.5; 6 capped at 2; equal engines give 1.
    assert_close(weight, torch.tensor([0.5, 2.0, 1.0]))
    assert not weight.requires_grad


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(AssertionError):
        reinforce(torch.zeros(3, 3), torch.zeros(3))
    with pytest.raises(AssertionError):
        clipped_surrogate(torch.zeros(3, 3), torch.zeros(3, 3), torch.zeros(3, 1), 0.2, 0.2)
    with pytest.raises(AssertionError):
        clipped_value_loss(torch.zeros(3, 3), torch.zeros(3, 3), torch.zeros(3), None)
