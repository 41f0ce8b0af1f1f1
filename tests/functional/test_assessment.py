"""Losses of answers judged alone, by hand, and where they are least."""

from __future__ import annotations

import math

import torch
from torch.testing import assert_close

from tutelage.functional.assessment import cross_entropy, squared_error


def test_by_hand():
    """s = ln 3: P(yes) = 3/4. A yes costs ln 4/3, a no ln 4, a label of 1/2 their mean."""
    scores = torch.full((3,), math.log(3))
    labels = torch.tensor([1.0, 0.0, 0.5])
    expected = [math.log(4 / 3), math.log(4), (math.log(4 / 3) + math.log(4)) / 2]
    assert_close(cross_entropy(scores, labels), torch.tensor(expected))
    assert_close(squared_error(torch.tensor([3.5, 1.0]), torch.tensor([5.0, 1.0])), torch.tensor([2.25, 0.0]))


def test_gradients():
    """sigma(s) - y, so 0 at the log-odds of E[y]; 2 (s - y)."""
    scores = torch.tensor([2.0, -1.0], requires_grad=True)
    labels = torch.tensor([1.0, 0.25])
    cross_entropy(scores, labels).sum().backward()
    assert_close(scores.grad, scores.detach().sigmoid() - labels)
    ratings = torch.tensor([3.5], requires_grad=True)
    squared_error(ratings, torch.tensor([5.0])).sum().backward()
    assert_close(ratings.grad, torch.tensor([-3.0]))


def test_extreme_scores_stay_finite():
    losses = cross_entropy(torch.tensor([200.0, -200.0]), torch.tensor([0.0, 1.0]))
    assert_close(losses, torch.tensor([200.0, 200.0]))
