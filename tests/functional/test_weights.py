"""Weights: numbers worked by hand, and the law that a step may be cut up in any way."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tutelage.functional.policy import clipped_surrogate, reinforce
from tutelage.functional.weights import (
    constant,
    group_token_mean,
    keep,
    row_mean,
    sequence_mean,
    sequence_sum,
    token_mean,
    weighted_sum,
)

# Rows of 3, 1, 0 and 2 tokens (one with a hole); prompts 7 and 4 have two rows each. 6 tokens in 4 rows in 2 groups.
MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 0, 1]]).bool()
PROMPT_OF = torch.tensor([7, 7, 4, 4])

WEIGHTS = {
    "token_mean": lambda mask, prompt_of, **total: token_mean(mask, **total),
    "sequence_mean": lambda mask, prompt_of, **total: sequence_mean(mask, **total),
    "sequence_sum": lambda mask, prompt_of, **total: sequence_sum(mask, **total),
    "constant": lambda mask, prompt_of, **total: constant(mask, 10, **total),
    "group_token_mean": group_token_mean,
    "row_mean": lambda mask, prompt_of, **total: row_mean(mask.any(dim=1), **total),
    "weighted_row_mean": lambda mask, prompt_of, **total: row_mean(mask.any(dim=1), prompt_of / 3, **total),
}
OVER_ALL_WEIGHTS = pytest.mark.parametrize("name", WEIGHTS)


def test_token_mean_is_one_over_the_tokens_of_the_step():
    assert_close(token_mean(MASK), torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 0, 1]]) / 6)


def test_sequence_mean_counts_the_empty_row():
    # 4 rows, so 1/4 per row, shared among 3, 1 and 2 tokens.
    hand = torch.tensor([[1 / 12, 1 / 12, 1 / 12], [1 / 4, 0, 0], [0, 0, 0], [1 / 8, 0, 1 / 8]])
    assert_close(sequence_mean(MASK), hand)


def test_sequence_sum_is_one_over_rows_on_every_token():
    assert_close(sequence_sum(MASK), torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 0, 1]]) / 4)


def test_constant_divides_by_the_budget_and_not_by_the_length():
    # 4 rows * a budget of 10 tokens.
    assert_close(constant(MASK, 10), torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 0, 1]]) / 40)


def test_group_token_mean_shares_one_half_among_the_tokens_of_each_group():
    # Prompt 7 has 4 tokens, prompt 4 has 2: 1/2 * 1/4 and 1/2 * 1/2.
    hand = torch.tensor([[1 / 8, 1 / 8, 1 / 8], [1 / 8, 0, 0], [0, 0, 0], [1 / 4, 0, 1 / 4]])
    assert_close(group_token_mean(MASK, PROMPT_OF), hand)


def test_group_token_mean_counts_a_group_without_tokens():
    # The rows of prompt 4 are skipped: prompt 7 keeps its half and the other half is lost.
    mask = MASK & (PROMPT_OF == 7)[:, None]
    assert_close(group_token_mean(mask, PROMPT_OF).sum(), torch.tensor(0.5))


def test_row_mean_counts_skipped_rows():
    assert_close(row_mean(torch.tensor([True, False, True, True])), torch.tensor([1.0, 0.0, 1.0, 1.0]) / 4)


def test_row_mean_makes_rankings_count_alike():
    # A ranking of 3 has 3 pairs of weight 1/3, a ranking of 2 has 1 pair of weight 1: half of the total each.
    weights = torch.tensor([1 / 3, 1 / 3, 1 / 3, 1.0])
    assert_close(row_mean(torch.ones(4), weights), torch.tensor([1 / 6, 1 / 6, 1 / 6, 1 / 2]))
    # The skipped ranking of 2 stays in the denominator.
    skipped = torch.tensor([1, 1, 1, 0])
    assert_close(row_mean(skipped, weights), torch.tensor([1 / 6, 1 / 6, 1 / 6, 0.0]))


@OVER_ALL_WEIGHTS
def test_ranks_together_hold_the_weights_of_the_whole_step(name: str):
    """Each rank sees some rows; with denominators summed over ranks it gets exactly its rows of the whole tensor."""
    mask, prompt_of = random_mask(rows=12, tokens=5), torch.arange(12) // 3
    rank_rows = [slice(0, 3), slice(3, 9), slice(9, 12)]  # whole groups, of unequal number

    sums: list[list[Tensor]] = []
    for rows in rank_rows:
        seen: list[Tensor] = []
        WEIGHTS[name](mask[rows], prompt_of[rows], total=lambda x, seen=seen: seen.append(x) or x)
        sums.append(seen)
    over_ranks = [torch.stack(parts).sum(dim=0) for parts in zip(*sums, strict=True)]

    parts = []
    for rows in rank_rows:
        queue = iter(over_ranks)
        parts.append(WEIGHTS[name](mask[rows], prompt_of[rows], total=lambda x, queue=queue: next(queue)))
    assert len(over_ranks) == 1  # one sum over ranks, and not zero of them: else this test would prove nothing
    assert_close(torch.cat(parts), WEIGHTS[name](mask, prompt_of), rtol=0, atol=0)


@OVER_ALL_WEIGHTS
def test_permuting_rows_permutes_weights(name: str):
    mask, prompt_of = random_mask(rows=12, tokens=5), torch.arange(12) // 3
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    assert_close(WEIGHTS[name](mask[order], prompt_of[order]), WEIGHTS[name](mask, prompt_of)[order])


@OVER_ALL_WEIGHTS
def test_all_masked_gives_zeros(name: str):
    weights = WEIGHTS[name](torch.zeros(4, 3).bool(), PROMPT_OF)
    assert torch.equal(weights, torch.zeros_like(weights))


@OVER_ALL_WEIGHTS
def test_a_mask_of_numbers_is_a_mask_of_truths(name: str):
    assert torch.equal(WEIGHTS[name](MASK.float(), PROMPT_OF), WEIGHTS[name](MASK, PROMPT_OF))


def test_zero_weights_on_every_row_give_zeros():
    assert torch.equal(row_mean(torch.ones(3), torch.zeros(3)), torch.zeros(3))


def test_weighted_sum_by_hand():
    # 1 * 0.5 + 2 * 0 + 3 * 0.25
    assert_close(weighted_sum(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.0, 0.25])), torch.tensor(1.25))


def test_micro_batches_add_up_to_the_gradient_of_the_step():
    generator = torch.Generator().manual_seed(0)
    mask = random_mask(rows=8, tokens=6)
    advantages = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    start = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    weights = token_mean(mask)

    def gradient(micro_batches: list[list[int]]) -> Tensor:
        parameter = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        for rows in micro_batches:
            weighted_sum(reinforce(parameter * start[rows], advantages[rows]), weights[rows]).backward()
        assert parameter.grad is not None
        return parameter.grad

    # By definition: minus the mean of advantage * start over the tokens of the step.
    hand = -(advantages * start)[mask].mean()
    assert_close(gradient([[*range(8)]]), hand)
    assert_close(gradient([[5], [0, 7, 2], [1, 3, 4, 6]]), hand)


@pytest.mark.parametrize("planted", [float("nan"), float("inf"), 1e9])
def test_masked_cells_change_neither_loss_nor_gradient(planted: float):
    """`keep` on the log-probabilities and `weighted_sum` on the losses stop whatever stands in a masked cell."""

    def loss_and_gradient(fill: float) -> tuple[Tensor, Tensor]:
        parameter = torch.full(MASK.shape, -0.5, requires_grad=True)
        logp = keep(parameter, MASK)
        old_logp = torch.full(MASK.shape, -0.7).masked_fill(~MASK, fill)
        advantages = torch.tensor([1.0, -2.0, 3.0]).expand(MASK.shape).masked_fill(~MASK, fill)
        losses, _ = clipped_surrogate(logp, old_logp, advantages, 0.1, 0.1)
        loss = weighted_sum(losses, token_mean(MASK))
        loss.backward()
        assert parameter.grad is not None
        return loss.detach(), parameter.grad

    loss, gradient = loss_and_gradient(0.0)
    assert gradient.any()
    planted_loss, planted_gradient = loss_and_gradient(planted)
    assert torch.equal(planted_loss, loss)
    assert torch.equal(planted_gradient, gradient)


def random_mask(rows: int, tokens: int) -> Tensor:
    """Ragged, with holes, and with one empty row."""
    mask = torch.rand(rows, tokens, generator=torch.Generator().manual_seed(3)) < 0.6
    mask[2] = False
    return mask
