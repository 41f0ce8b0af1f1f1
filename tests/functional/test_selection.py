"""Shares of answers among equals, by hand."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from tutelage.functional.selection import best_against_worst, differ, top_shares

REWARDS = torch.tensor([[3.0, 1.0, 2.0, 0.0], [1.0, 0.0, 1.0, 1.0], [5.0, 5.0, 5.0, 5.0]])


def test_the_best_share_their_place():
    third, quarter = 1 / 3, 1 / 4
    best = [[1.0, 0.0, 0.0, 0.0], [third, 0.0, third, third], [quarter] * 4]
    assert_close(top_shares(REWARDS, 1), torch.tensor(best))


def test_two_places_for_three_equals_are_two_thirds_each():
    two = [[1.0, 0.0, 1.0, 0.0], [2 / 3, 0.0, 2 / 3, 2 / 3], [0.5] * 4]
    assert_close(top_shares(REWARDS, 2), torch.tensor(two))


def test_one_above_and_one_place_for_two_equals():
    assert_close(top_shares(torch.tensor([[2.0, 7.0, 2.0, 1.0]]), 2), torch.tensor([[0.5, 1.0, 0.5, 0.0]]))


def test_every_best_meets_every_worst():
    cells = best_against_worst(REWARDS)
    assert cells[0].nonzero().tolist() == [[0, 3]]
    assert cells[0, 0, 3] == 1.0
    assert cells[1].nonzero().tolist() == [[0, 1], [2, 1], [3, 1]]
    assert_close(cells[1, :, 1], torch.tensor([1 / 3, 0.0, 1 / 3, 1 / 3]))
    assert_close(cells[2], torch.full((4, 4), 1 / 16))


def test_equal_rewards_do_not_differ():
    assert differ(REWARDS).tolist() == [True, True, False]
    assert differ(torch.tensor([[1.0]])).tolist() == [False]
