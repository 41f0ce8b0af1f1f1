"""Policy losses: numbers worked by hand, and where the clip leaves no gradient."""

import pytest
import torch
from torch.testing import assert_close

from tutelage.functional.policy import (
    cispo,
    clipped_surrogate,
    clipped_value_loss,
    importance_weight,
    mean_log_ratio,
    ratio,
    reinforce,
)


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


def test_mean_log_ratio_by_hand():
    """Ratios 2 and 8 have the geometric mean 4; a masked token counts for nothing, an empty row has the ratio 1."""
    logp = torch.tensor([[2.0, 8.0, 100.0], [5.0, 5.0, 5.0]]).log().requires_grad_()
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    found = mean_log_ratio(logp, torch.zeros(2, 3), mask)
    assert_close(found.exp(), torch.tensor([[4.0, 4.0, 1.0], [1.0] * 3]))
    found[0, 0].backward()
    assert_close(logp.grad, torch.tensor([[0.5, 0.5, 0], [0, 0, 0]]))


def test_gspo_by_hand():
    """Ratio 4 of the answer, clipped at 1.5 for A = 2; with A = -2 it is not, and every token has A s / |y| of gradient."""
    logp = torch.tensor([[2.0, 8.0], [2.0, 8.0]], dtype=torch.float64).log().requires_grad_()
    advantages = torch.tensor([[2.0, 2.0], [-2.0, -2.0]], dtype=torch.float64)
    log_ratio = mean_log_ratio(logp, torch.zeros_like(logp), torch.ones(2, 2))
    losses, clipped = clipped_surrogate(log_ratio, torch.zeros_like(logp), advantages, 0.5, 0.5)
    assert_close(losses, torch.tensor([[-3.0, -3], [8, 8]], dtype=torch.float64))
    assert clipped.tolist() == [[1, 1], [0, 0]]
    (losses / 2).sum().backward()  # sequence_mean: 1 / |y| on each token of an answer
    assert_close(logp.grad, torch.tensor([[0.0, 0], [4, 4]], dtype=torch.float64))


def test_cispo_by_hand():
    """Ratios 0.1, 2 and 5, weight at most 3, none clipped below: no token loses its gradient."""
    logp = torch.tensor([0.1, 2.0, 5.0], dtype=torch.float64).log().requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)
    losses, clipped = cispo(logp, torch.zeros_like(logp), advantages, 1.0, 2.0)
    assert_close(losses, -torch.tensor([0.1, -2.0, 6.0], dtype=torch.float64) * logp.detach())
    assert clipped.tolist() == [0, 0, 1]
    losses.sum().backward()
    assert_close(logp.grad, torch.tensor([-0.1, 2.0, -6.0], dtype=torch.float64))
    # bounded below too, a ratio of 0.1 counts as 0.8
    assert cispo(logp, torch.zeros_like(logp), advantages, 0.2, 2.0)[0][0].item() == pytest.approx(
        -0.8 * logp[0].item()
    )
