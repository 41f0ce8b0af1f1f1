"""Shares of answers among equals, by hand; the most unlike answers, against every subset; which prompts are skipped."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tutelage.functional.selection import (
    adjusted_exploration,
    best_against_worst,
    differ,
    max_variance_subset,
    skip_chance,
    top_shares,
)

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


def test_the_most_unlike_answers_by_hand():
    """Of 0 1 5 6 9 three: {0, 1, 9} varies by 16.2, {0, 6, 9} by 14, {0, 5, 9} by 13.6: two low ones and a high one."""
    assert max_variance_subset(torch.tensor([[5.0, 9.0, 0.0, 6.0, 1.0]]), 3).tolist() == [[1, 2, 4]]
    # a single right answer among wrong ones stays, with the first wrong one; equal rewards leave the first answers
    assert max_variance_subset(torch.tensor([[0.0, 0.0, 1.0, 0.0], [2.0, 2.0, 2.0, 2.0]]), 2).tolist() == [
        [0, 2],
        [0, 1],
    ]
    assert max_variance_subset(torch.tensor([[3.0, 1.0, 2.0]]), 3).tolist() == [[0, 1, 2]]


@given(
    st.lists(st.lists(st.integers(-4, 4), min_size=6, max_size=6), min_size=1, max_size=4),
    st.integers(1, 6),
    st.sampled_from([1.0, 0.1, 1e4]),
)
def test_no_subset_varies_more(groups, kept, scale):
    """All subsets of every group, listed."""
    rewards = torch.tensor(groups, dtype=torch.float32) * scale
    chosen = max_variance_subset(rewards, kept)
    assert chosen.shape == (len(groups), kept)
    for row, places in zip(rewards.double(), chosen, strict=True):
        assert places.tolist() == sorted(set(places.tolist()))
        best = max(float(row[list(subset)].var(correction=0)) for subset in combinations(range(6), kept))
        assert float(row[places].var(correction=0)) == pytest.approx(best, rel=1e-6, abs=1e-9 * scale**2)


def test_a_prompt_is_skipped_the_more_surely_the_longer_it_taught_nothing():
    """p_e = 1/2: never without a history, then 1/2, 3/4, 7/8."""
    assert [skip_chance(z, 0.5) for z in range(4)] == [0.0, 0.5, 0.75, 0.875]
    assert skip_chance(2, 0.9) == pytest.approx(0.19)


def test_exploration_falls_where_too_many_prompts_teach_nothing():
    assert adjusted_exploration(0.5, share=0.3, target=0.25) == pytest.approx(0.49)
    assert adjusted_exploration(0.5, share=0.25, target=0.25) == pytest.approx(0.49)
    assert adjusted_exploration(0.5, share=0.2, target=0.25) == pytest.approx(0.51)
    assert adjusted_exploration(0.055, share=1.0, target=0.25) == 0.05
    assert adjusted_exploration(0.945, share=0.0, target=0.25) == 0.95
