"""Prefixes of an answer by hand: which count, and what each token changed in the expected reward."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from tutelage.functional.prefixes import intermediate_rewards, prefix_mask

MASK = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.bool)
LENGTHS = torch.tensor([2, 4, 0, 3])
"""Two tokens; a user's turn of two in the middle; no token at all; a user's first, and a tool's last."""
PREFIXES = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 1, 1], [1, 0, 0, 0, 0], [0, 1, 0, 1, 0]], dtype=torch.bool)


def test_which_prefixes_count():
    assert torch.equal(prefix_mask(MASK, LENGTHS), PREFIXES)


def test_intermediate_rewards():
    """V .2 .5 .9: the tokens changed it by .3 and .4. Over a user's turn the next prefix is the one after it."""
    nan = float("nan")
    values = torch.tensor(
        [[0.2, 0.5, 0.9, nan, nan], [0.1, nan, nan, 0.6, 0.4], [0.7] + [nan] * 4, [nan, 0.3, nan, 1.0, nan]]
    )
    expected = torch.tensor([[0.3, 0.4, 0, 0], [0.5, 0, 0, -0.2], [0, 0, 0, 0], [0, 0.7, 0, 0]])
    assert_close(intermediate_rewards(values, PREFIXES), expected)


def test_they_sum_to_the_whole():
    """Last value minus first, on random masks."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(50, 6, generator=generator) < 0.6
    lengths = torch.randint(1, 7, (50,), generator=generator)
    mask &= torch.arange(6) < lengths[:, None]
    prefixes = prefix_mask(mask, lengths)
    values = torch.randn(50, 7, generator=generator)
    first = prefixes.int().argmax(1)
    change = values.gather(1, lengths[:, None])[:, 0] - values.gather(1, first[:, None])[:, 0]
    rewards = intermediate_rewards(values, prefixes)
    assert_close(rewards.sum(1), change)
    assert not rewards[~mask].any()
