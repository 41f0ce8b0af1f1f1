"""Divergences between two distributions by hand, at their limits, and their gradients against the closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from tutelage.functional.distill import forward_kl, jensen_shannon, reverse_kl

P = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
Q = torch.tensor([0.25, 0.75], dtype=torch.float64).log()


def number(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def random_pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, 3, 5, generator=generator, dtype=torch.float64).mul(2).log_softmax(-1))  # type: ignore[return-value]


def test_by_hand():
    """P = (1/2, 1/2), Q = (1/4, 3/4): ln(4/3)/2; (ln 1/2)/4 + 3 (ln 3/2)/4; the mixture at 1/2 is (3/8, 5/8)."""
    assert_close(forward_kl(P, Q), number(0.5 * math.log(4 / 3)))
    assert_close(reverse_kl(P, Q), number(0.25 * math.log(0.5) + 0.75 * math.log(1.5)))
    to_p = 0.5 * math.log(4 / 3) + 0.5 * math.log(4 / 5)
    to_q = 0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5)
    assert_close(jensen_shannon(P, Q, 0.5), number(0.5 * to_p + 0.5 * to_q))
    # beta = 1/4: M = P/4 + 3Q/4 = (5/16, 11/16)
    to_p = 0.5 * math.log(8 / 5) + 0.5 * math.log(8 / 11)
    to_q = 0.25 * math.log(4 / 5) + 0.75 * math.log(12 / 11)
    assert_close(jensen_shannon(P, Q, 0.25), number(0.25 * to_p + 0.75 * to_q))


def test_limits_of_the_jensen_shannon_divergence():
    """/ beta -> KL(P, Q) as beta -> 0, / (1 - beta) -> KL(Q, P) as beta -> 1; turned round, beta is 1 - beta."""
    p, q = random_pair()
    assert_close(jensen_shannon(p, q, 1e-6) / 1e-6, forward_kl(p, q), atol=1e-3, rtol=0)
    assert_close(jensen_shannon(p, q, 1 - 1e-6) / 1e-6, reverse_kl(p, q), atol=1e-3, rtol=0)
    assert_close(jensen_shannon(p, q, 0.3), jensen_shannon(q, p, 0.7))
    far = torch.tensor([0.0, -200.0]), torch.tensor([-200.0, 0.0])
    assert_close(jensen_shannon(*far, 0.3), torch.tensor(-0.3 * math.log(0.3) - 0.7 * math.log(0.7)))


def test_zero_where_equal_and_positive_elsewhere():
    p, q = random_pair()
    for distance in (forward_kl, reverse_kl, lambda a, b: jensen_shannon(a, b, 0.4)):
        assert_close(distance(p, p), torch.zeros(3, dtype=torch.float64), atol=1e-15, rtol=0)
        assert bool((distance(p, q) > 1e-3).all())


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8])
def test_gradients_in_the_students_logits(beta):
    """Q - P; Q (f - E_Q f) with f = log Q/P; and (1 - beta) of the same with f = log Q/M."""
    p, q = random_pair(1)

    def gradient(distance):
        logits = q.clone().requires_grad_()
        distance(p, logits.log_softmax(-1)).sum().backward()
        return logits.grad

    def centred(f):
        return q.exp() * (f - (q.exp() * f).sum(-1, keepdim=True))

    assert_close(gradient(forward_kl), q.exp() - p.exp())
    assert_close(gradient(reverse_kl), centred(q - p))
    mixture = (beta * p.exp() + (1 - beta) * q.exp()).log()
    assert_close(gradient(lambda a, b: jensen_shannon(a, b, beta)), (1 - beta) * centred(q - mixture))


def test_a_token_that_the_teacher_never_says():
    """P = (1, 0): the forward KL is -log q_1 with the gradient Q - P, finite; the reverse one is infinite."""
    p = torch.tensor([0.0, -math.inf], dtype=torch.float64)
    logits = torch.tensor([0.0, math.log(3)], dtype=torch.float64, requires_grad=True)
    loss = forward_kl(p, logits.log_softmax(-1))
    loss.backward()
    assert_close(loss.detach(), number(math.log(4)))
    assert_close(logits.grad, torch.tensor([-0.75, 0.75], dtype=torch.float64))
    assert reverse_kl(p, logits.detach().log_softmax(-1)) == math.inf
    mixed = jensen_shannon(p, logits.log_softmax(-1), 0.5)
    mixed.backward()
    assert bool(logits.grad.isfinite().all())
