"""Whitening: numbers worked by hand, degenerate masks, and the law that ranks together are one batch."""

import torch
from torch import Tensor
from torch.testing import assert_close

from tutelage.functional.advantages import whiten

NAN = float("nan")


def test_whiten_by_hand():
    # The cells 1, 3, 5: mean 3, sample variance 4. Whitened -1, 0, 1; with the mean added back 2, 3, 4.
    x, mask = torch.tensor([[1.0, 3.0, 100.0], [5.0, NAN, NAN]]), torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert_close(whiten(x, mask), torch.tensor([[-1.0, 0, 0], [1, 0, 0]]))
    assert_close(whiten(x, mask, shift_mean=False), torch.tensor([[2.0, 3, 0], [4, 0, 0]]))
    # Epsilon is added to the variance: 4 + 5 = 9.
    assert_close(whiten(x, mask, epsilon=5.0), torch.tensor([[-2 / 3, 0, 0], [2 / 3, 0, 0]]))


def test_whiten_is_defined_for_equal_single_and_no_cells():
    assert torch.equal(whiten(torch.zeros(2, 2), torch.ones(2, 2)), torch.zeros(2, 2))
    assert torch.equal(whiten(torch.full((2, 2), 2.0), torch.ones(2, 2)), torch.zeros(2, 2))
    assert torch.equal(whiten(torch.tensor([[5.0]]), torch.ones(1, 1)), torch.zeros(1, 1))
    assert torch.equal(whiten(torch.full((2, 2), NAN), torch.zeros(2, 2)), torch.zeros(2, 2))


def test_whiten_over_ranks_is_whiten_over_all_rows():
    """Two ranks of unequal size, played one after the other until each sum over ranks is known to both."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(9, 37, dtype=torch.float64, generator=generator)
    mask = torch.rand(9, 37, generator=generator) < 0.6
    parts = [(x[:2], mask[:2]), (x[2:], mask[2:])]
    known: list[Tensor] = []
    for _ in range(3):  # count, mean, variance: each needs the sums before it
        asked = [first_unknown(part, known) for part in parts]
        known.append(asked[0] + asked[1])
    answers = [iter(known), iter(known)]
    got = [whiten(*part, total=lambda _, mine=mine: next(mine)) for part, mine in zip(parts, answers, strict=True)]
    assert_close(torch.cat(got), whiten(x, mask))
    assert (whiten(*parts[0]) - got[0]).abs().max() > 0.01  # a rank on its own would give something else


def first_unknown(part: tuple[Tensor, Tensor], known: list[Tensor]) -> Tensor:
    """What a rank passes to `total` once the sums in `known` have been answered."""
    asked: list[Tensor] = []

    def total(local: Tensor) -> Tensor:
        asked.append(local)
        return known[len(asked) - 1] if len(asked) <= len(known) else local

    whiten(*part, total=total)
    return asked[len(known)]
