"""Pair losses: numbers worked by hand, and what minimises each of them."""

import math

import pytest
import torch
from torch.testing import assert_close

from tutelage.functional.preference import (
    bradley_terry,
    davidson,
    davidson_log_probs,
    dpo,
    hinge,
    implicit_reward,
    ipo,
    kto,
    orpo,
    simpo,
    soft_bradley_terry,
    soft_ipo,
)

LOG2, LOG3 = math.log(2), math.log(3)


def test_bradley_terry_by_hand():
    # sigma(log 3) = 3/4, sigma(0) = 1/2, sigma(-log 3) = 1/4.
    losses = bradley_terry(torch.tensor([LOG3, 1.0, 0.0]), torch.tensor([0.0, 1.0, LOG3]))
    assert_close(losses, torch.tensor([math.log(4 / 3), LOG2, math.log(4)]))


def test_bradley_terry_margin_by_hand():
    # A lead of log 3 less a margin of log 3 is no lead; a margin per pair works alike.
    assert_close(bradley_terry(torch.tensor([LOG3]), torch.zeros(1), LOG3), torch.tensor([LOG2]))
    per_pair = bradley_terry(torch.tensor([LOG3, LOG3]), torch.zeros(2), torch.tensor([LOG3, 0.0]))
    assert_close(per_pair, torch.tensor([LOG2, math.log(4 / 3)]))


def test_bradley_terry_gradient_by_hand():
    # d/dr+ of -log sigma(r+ - r-) is -(1 - sigma) = -1/4 at a lead of log 3.
    r_chosen, r_rejected = torch.tensor([LOG3], requires_grad=True), torch.zeros(1, requires_grad=True)
    bradley_terry(r_chosen, r_rejected).sum().backward()
    assert_close(r_chosen.grad, torch.tensor([-0.25]))
    assert_close(r_rejected.grad, torch.tensor([0.25]))


def test_bradley_terry_is_finite_far_out():
    losses = bradley_terry(torch.tensor([1e4, -1e4]), torch.zeros(2))
    assert losses.tolist() == [0.0, 1e4]


def test_soft_bradley_terry_by_hand():
    first, second = torch.full((4,), LOG3), torch.zeros(4)
    losses = soft_bradley_terry(first, second, torch.tensor([1.0, 0.0, 0.5, 0.75]))
    win, lose = math.log(4 / 3), math.log(4)
    assert_close(losses, torch.tensor([win, lose, (win + lose) / 2, 0.75 * win + 0.25 * lose]))


def test_soft_bradley_terry_margin_by_hand():
    # A lead of log 3 less a margin of log 3 is a draw in both directions; a sure label is `bradley_terry`.
    lead, none = torch.tensor([LOG3]), torch.zeros(1)
    assert_close(soft_bradley_terry(lead, none, 0.3, LOG3), torch.tensor([LOG2]))
    assert torch.equal(soft_bradley_terry(lead, none, 1.0, 0.4), bradley_terry(lead, none, 0.4))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.75])
def test_soft_bradley_terry_is_smallest_where_the_model_agrees_with_the_labels(p: float):
    # sigma(lead) = p, so the lead is log(p / (1 - p)): 0 for a tie, finite for every soft label.
    lead = torch.tensor([math.log(p / (1 - p))], dtype=torch.float64, requires_grad=True)
    soft_bradley_terry(lead, torch.zeros(1, dtype=torch.float64), p).sum().backward()
    assert_close(lead.grad, torch.zeros(1, dtype=torch.float64), rtol=0, atol=1e-12)


def test_swapping_the_answers_swaps_the_label():
    r, s, p = torch.tensor([0.3, -2.0]), torch.tensor([1.0, 0.5]), torch.tensor([0.8, 0.25])
    assert_close(soft_bradley_terry(r, s, p), soft_bradley_terry(s, r, 1 - p))


def test_implicit_reward_by_hand():
    assert_close(implicit_reward(torch.tensor([3.0, -1.0]), 0.1), torch.tensor([0.3, -0.1]))


def test_dpo_by_hand():
    # beta * (h+ - h-) = 0.5 * 2 log 3 = log 3.
    h_chosen, h_rejected = torch.tensor([LOG3]), torch.tensor([-LOG3])
    assert_close(dpo(h_chosen, h_rejected, 0.5), torch.tensor([math.log(4 / 3)]))
    # One label in four flipped: 3/4 log(4/3) + 1/4 log 4.
    smoothed = dpo(h_chosen, h_rejected, 0.5, label_smoothing=0.25)
    assert_close(smoothed, torch.tensor([0.75 * math.log(4 / 3) + 0.25 * math.log(4)]))
    per_pair = dpo(h_chosen.repeat(2), h_rejected.repeat(2), 0.5, label_smoothing=torch.tensor([0.0, 0.25]))
    assert_close(per_pair, torch.tensor([math.log(4 / 3), smoothed.item()]))


def test_dpo_starts_at_log_two_with_half_of_beta_as_gradient():
    h_chosen, h_rejected = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    losses = dpo(h_chosen, h_rejected, 0.1)
    assert_close(losses, torch.tensor([LOG2]))
    losses.sum().backward()
    assert_close(h_chosen.grad, torch.tensor([-0.05]))
    assert_close(h_rejected.grad, torch.tensor([0.05]))


def test_ipo_by_hand():
    # tau = 0.25: the target of h+ - h- is 2. Leads of 0, 2 and 5 miss it by 2, 0 and 3.
    losses = ipo(torch.tensor([0.0, 1.0, 4.0]), torch.tensor([0.0, -1.0, -1.0]), 0.25)
    assert_close(losses, torch.tensor([4.0, 0.0, 9.0]))


def test_pairs_that_would_broadcast_are_refused():
    for loss in (
        bradley_terry,
        lambda a, b: dpo(a, b, 0.1),
        lambda a, b: ipo(a, b, 0.1),
        lambda a, b: hinge(a, b, 0.1),
    ):
        with pytest.raises(AssertionError):
            loss(torch.zeros(3), torch.zeros(3, 1))


def test_davidson_by_hand():
    # d = 2 log 2: e^(d/2) : e^(-d/2) : nu = 2 : 1/2 : 1.5, of 4.
    probabilities = davidson_log_probs(torch.tensor([2 * LOG2]), 1.5).exp()
    assert_close(probabilities, torch.tensor([[0.5, 0.125, 0.375]]))
    r, s = torch.full((4,), 2 * LOG2), torch.zeros(4)
    losses = davidson(r, s, torch.tensor([1.0, 0.0, 0.5, 0.75]), 1.5)
    assert_close(losses, torch.tensor([LOG2, 3 * LOG2, math.log(8 / 3), 0.75 * LOG2 + 0.25 * 3 * LOG2]))


def test_davidson_of_equals_and_without_ties():
    # Equals tie with nu / (2 + nu); given no tie, the first wins with sigma(d) = 3/4 at a lead of log 3.
    assert_close(davidson_log_probs(torch.zeros(1), 2.0).exp(), torch.tensor([[0.25, 0.25, 0.5]]))
    first, second, _ = davidson_log_probs(torch.tensor([LOG3]), 0.8).exp().unbind(-1)
    assert_close(first / (first + second), torch.tensor([0.75]))


def test_davidson_margin_by_hand():
    # A lead of log 3 less a margin of log 3 is none: 1 : 1 : 2.
    losses = davidson(torch.tensor([LOG3, LOG3]), torch.zeros(2), torch.tensor([1.0, 0.5]), 2.0, LOG3)
    assert_close(losses, torch.tensor([math.log(4), LOG2]))


def test_dpo_with_an_offset_by_hand():
    # beta (h+ - h-) = log 3, of which a margin of log 3 leaves nothing; swapped labels ask for the opposite lead.
    h_chosen, h_rejected = torch.tensor([LOG3]), torch.tensor([-LOG3])
    assert_close(dpo(h_chosen, h_rejected, 0.5, 0.0, LOG3), torch.tensor([LOG2]))
    assert_close(dpo(h_rejected, h_chosen, 0.5, 1.0, -LOG3), torch.tensor([LOG2]))


def test_soft_ipo_by_hand():
    # tau = 0.25: a sure label asks for a lead of 2. At 1: (1 - 2)^2 = 1 if the first won, (-1 - 2)^2 = 9 if the second did.
    losses = soft_ipo(torch.ones(4), torch.zeros(4), 0.25, torch.tensor([1.0, 0.0, 0.5, 0.75]))
    assert_close(losses, torch.tensor([1.0, 9.0, 5.0, 3.0]))
    lead = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    soft_ipo(lead, torch.zeros(1, dtype=torch.float64), 0.25, 0.75).sum().backward()
    assert_close(lead.grad, torch.zeros(1, dtype=torch.float64), rtol=0, atol=1e-12)  # (2 * 0.75 - 1) / (2 * 0.25) = 1


def test_kto_by_hand():
    # beta (h - z0) = 0.5 (2 log 3 - 0) = log 3 and 0.5 (3 log 3 - log 3): sigma = 3/4, so 1/4 desirable, 3/4 undesirable.
    h, desirable = torch.tensor([2 * LOG3, 2 * LOG3, 0.0]), torch.tensor([True, False, True])
    assert_close(kto(h, desirable, 0.0, 0.5), torch.tensor([0.25, 0.75, 0.5]))
    weighted = kto(h + LOG3, desirable, torch.full((3,), LOG3), 0.5, desirable_weight=2.0, undesirable_weight=4.0)
    assert_close(weighted, torch.tensor([0.5, 3.0, 1.0]))


def test_kto_gradient_by_hand():
    # d/dh of lambda sigma(-beta (h - z0)) is -lambda beta sigma (1 - sigma) = -0.5 * 3/16 at sigma = 3/4.
    h = torch.tensor([2 * LOG3, 2 * LOG3], requires_grad=True)
    kto(h, torch.tensor([True, False]), 0.0, 0.5, undesirable_weight=2.0).sum().backward()
    assert_close(h.grad, torch.tensor([-3 / 32, 3 / 16]))


def test_hinge_by_hand():
    # beta = 0.5 asks for a lead of 2: leads of 0, 2 and 5 lack 1, 0 and nothing; beyond it there is no gradient.
    h = torch.tensor([0.0, 2.0, 5.0, 1.0], requires_grad=True)
    losses = hinge(h, torch.zeros(4), 0.5)
    assert_close(losses, torch.tensor([1.0, 0.0, 0.0, 0.5]))
    losses[2:].sum().backward()
    assert h.grad[2:].tolist() == [0.0, -0.5]


def test_simpo_by_hand():
    # beta = 2: 2 (-0.5) - 2 (-0.5 - log 3) - gamma = 2 log 3 - gamma.
    chosen, rejected = torch.tensor([-0.5]), torch.tensor([-0.5 - LOG3])
    assert_close(simpo(chosen, rejected, 2.0, LOG3), torch.tensor([math.log(4 / 3)]))
    assert_close(simpo(chosen, rejected, 2.0, 2 * LOG3), torch.tensor([LOG2]))


def test_orpo_by_hand():
    # Probabilities 3/4 and 1/2 have odds 3 and 1: -log(3/4) - 0.5 log sigma(log 3).
    losses = orpo(torch.tensor([0.75]).log(), torch.tensor([0.5]).log(), 0.5)
    assert_close(losses, torch.tensor([1.5 * math.log(4 / 3)]))
    near_one = orpo(torch.tensor([-1e-6], dtype=torch.float64), torch.tensor([-1e-6], dtype=torch.float64), 1.0)
    assert_close(near_one, torch.tensor([1e-6 + LOG2], dtype=torch.float64))
