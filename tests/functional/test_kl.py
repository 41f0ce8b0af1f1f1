"""KL estimators: values and gradients, exact by enumeration of a vocabulary of four.

An expectation under pi is the sum over the four tokens of pi(a) * (...), so that no statement here is statistical.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tutelage.functional.kl import estimate, k1, k2, k3, ratio_k3
from tutelage.functional.weights import keep

LOGITS = torch.tensor([0.3, -1.1, 0.8, 0.2], dtype=torch.float64)
REF = torch.tensor([0.45, 0.30, 0.15, 0.10], dtype=torch.float64).log()
OLD = torch.tensor([0.10, 0.40, 0.30, 0.20], dtype=torch.float64).log()

Estimator = Callable[[Tensor, Tensor], Tensor]


def policy() -> tuple[Tensor, Tensor]:
    logits = LOGITS.clone().requires_grad_()
    return logits, logits.log_softmax(dim=0)


def gradient_in_the_loss(estimator: Estimator, sampled_from: Tensor | None = None) -> Tensor:
    """sum_a p(a) * grad estimator(a), p being the policy that sampled: a constant for the gradient."""
    logits, logp = policy()
    p = (logp if sampled_from is None else sampled_from).detach().exp()
    return torch.autograd.grad((p * estimator(logp, REF)).sum(), logits)[0]


def gradient_in_the_reward(estimator: Estimator) -> Tensor:
    """sum_a pi(a) * estimator(a) * grad log pi(a): the score-function gradient, the estimator being a constant cost."""
    logits, logp = policy()
    return torch.autograd.grad((logp.detach().exp() * estimator(logp, REF).detach() * logp).sum(), logits)[0]


def gradient_of(closed_form: Callable[[Tensor], Tensor]) -> Tensor:
    logits, logp = policy()
    return torch.autograd.grad(closed_form(logp), logits)[0]


def reverse_kl(logp: Tensor) -> Tensor:
    return (logp.exp() * (logp - REF)).sum()


def forward_kl(logp: Tensor) -> Tensor:
    return (REF.exp() * (REF - logp)).sum()


GRAD_REVERSE = gradient_of(reverse_kl)
GRAD_FORWARD = gradient_of(forward_kl)


def assert_same_gradient(got: Tensor, expected: Tensor) -> None:
    assert_close(got, expected, rtol=0, atol=1e-14)


def test_the_instance_tells_the_gradients_apart():
    assert (GRAD_REVERSE - GRAD_FORWARD).norm() > 0.1
    assert GRAD_REVERSE.norm() > 0.1
    assert GRAD_FORWARD.norm() > 0.1


def test_values_by_hand():
    # pi = 1/2, ref = 1/4: r = 1/2. k1 = log 2, k2 = (log 2)^2 / 2, k3 = 1/2 - 1 + log 2.
    logp, ref = torch.tensor(0.5).log(), torch.tensor(0.25).log()
    assert_close(k1(logp, ref), torch.tensor(0.693147))
    assert_close(k2(logp, ref), torch.tensor(0.240227))
    assert_close(k3(logp, ref), torch.tensor(math.log(2) - 0.5))
    assert_close(ratio_k3(logp, ref), torch.tensor(math.log(2) - 0.5))
    # Sampled by an old policy with probability 1/5: weighted by (1/2) / (1/5) = 2.5.
    assert_close(ratio_k3(logp, ref, torch.tensor(0.2).log()), torch.tensor(2.5 * (math.log(2) - 0.5)))


def test_estimators_by_name():
    _, logp = policy()
    for name, estimator in (("k1", k1), ("k2", k2), ("k3", k3), ("ratio_k3", ratio_k3)):
        assert torch.equal(estimate(name, logp, REF), estimator(logp, REF))
    assert torch.equal(estimate("ratio_k3", logp, REF, OLD), ratio_k3(logp, REF, OLD))
    assert torch.equal(estimate("k2", logp, REF, OLD), k2(logp, REF)), "only ratio_k3 asks who sampled"


@pytest.mark.parametrize("estimator", [k1, k3, ratio_k3])
def test_unbiased_as_values(estimator: Estimator):
    _, logp = policy()
    assert_close((logp.exp() * estimator(logp, REF)).sum(), reverse_kl(logp), rtol=0, atol=1e-14)


def test_k2_is_biased_as_a_value():
    _, logp = policy()
    assert ((logp.exp() * k2(logp, REF)).sum() - reverse_kl(logp)).abs() > 0.01


def test_k3_is_never_negative_and_accurate_near_zero():
    gaps = torch.tensor([-3.0, -1e-4, 0.0, 1e-4, 3.0])
    values = k3(gaps, torch.zeros(5))
    assert (values >= 0).all()
    assert values[2] == 0
    # k3 = gap^2 / 2 to second order; exp(x) - 1 - x in place of expm1 would lose every digit of 5e-9 in fp32.
    assert_close(values[3], torch.tensor(5e-9), rtol=0.02, atol=0)


def test_in_the_loss_k1_has_no_expected_gradient():
    assert_same_gradient(gradient_in_the_loss(k1), torch.zeros(4, dtype=torch.float64))


def test_in_the_loss_k2_gives_the_reverse_kl():
    assert_same_gradient(gradient_in_the_loss(k2), GRAD_REVERSE)


def test_in_the_loss_plain_k3_gives_the_forward_kl():
    assert_same_gradient(gradient_in_the_loss(k3), GRAD_FORWARD)


def test_in_the_loss_ratio_k3_gives_the_reverse_kl():
    assert_same_gradient(gradient_in_the_loss(ratio_k3), GRAD_REVERSE)


def test_in_the_loss_ratio_k3_gives_the_reverse_kl_for_samples_of_an_old_policy():
    got = gradient_in_the_loss(lambda logp, ref: ratio_k3(logp, ref, OLD), sampled_from=OLD)
    assert_same_gradient(got, GRAD_REVERSE)
    # Without the old log-probabilities the same samples give something else.
    assert (gradient_in_the_loss(ratio_k3, sampled_from=OLD) - GRAD_REVERSE).norm() > 0.01


def test_in_the_reward_k1_gives_the_reverse_kl():
    assert_same_gradient(gradient_in_the_reward(k1), GRAD_REVERSE)


def test_in_the_reward_k2_gives_its_own_mean_less_the_reverse_kl():
    grad_mean_k2 = gradient_of(lambda logp: (logp.exp() * k2(logp, REF)).sum())
    assert_same_gradient(gradient_in_the_reward(k2), grad_mean_k2 - GRAD_REVERSE)


@pytest.mark.parametrize("estimator", [k3, ratio_k3])
def test_in_the_reward_k3_gives_reverse_less_forward(estimator: Estimator):
    assert_same_gradient(gradient_in_the_reward(estimator), GRAD_REVERSE - GRAD_FORWARD)


def test_only_k1_in_the_reward_with_reward_to_go_gives_the_kl_between_sequences():
    """Two tokens: the loss form leaves out how the first token decides which state the second one is in."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(2, generator=generator, dtype=torch.float64, requires_grad=True)
    second = torch.randn(2, 2, generator=generator, dtype=torch.float64)  # given the first token; no parameter of ours
    ref_first, ref_second = REF[:2].log_softmax(0), torch.stack([REF[:2], OLD[:2]]).log_softmax(1)
    logp_first, logp_second = first.log_softmax(0), second.log_softmax(1)

    logp = logp_first[:, None] + logp_second  # of all 2 x 2 sequences
    p = logp.exp().detach()
    sequence_kl = (logp.exp() * (logp - ref_first[:, None] - ref_second)).sum()
    truth = torch.autograd.grad(sequence_kl, first, retain_graph=True)[0]

    costs = k1(logp_first, ref_first)[:, None] + k1(logp_second, ref_second)  # reward-to-go of the first token
    reward_form = torch.autograd.grad((p * costs.detach() * logp_first[:, None]).sum(), first, retain_graph=True)[0]
    assert_same_gradient(reward_form, truth)

    terms = ratio_k3(logp_first, ref_first)[:, None] + ratio_k3(logp_second, ref_second)
    loss_form = torch.autograd.grad((p * terms).sum(), first, retain_graph=True)[0]
    kl_at_first_state = (logp_first.exp() * (logp_first - ref_first)).sum()
    assert_same_gradient(loss_form, torch.autograd.grad(kl_at_first_state, first)[0])
    assert (loss_form - truth).norm() > 0.01


@pytest.mark.parametrize("estimator", [k1, k2, k3, ratio_k3])
def test_zero_and_without_gradient_of_its_own_at_the_reference(estimator: Estimator):
    logits = REF.clone().requires_grad_()
    logp = logits.log_softmax(dim=0)
    terms = estimator(logp, logp.detach())
    assert torch.equal(terms, torch.zeros_like(terms))
    expected = torch.autograd.grad((REF.exp() * terms).sum(), logits)[0]
    assert_same_gradient(expected, torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("estimator", [k1, k2, k3, ratio_k3])
def test_masked_cells_change_no_gradient(estimator: Estimator):
    mask = torch.tensor([True, False, True, False])
    clean, planted = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    keep(estimator(keep(clean, mask), REF), mask).sum().backward()
    ref = REF.masked_fill(~mask, float("nan"))
    keep(estimator(keep(planted, mask), ref), mask).sum().backward()
    assert clean.grad is not None
    assert planted.grad is not None
    assert clean.grad[0] != 0
    assert torch.equal(planted.grad, clean.grad)
