"""Batches: rows taken from every field at once, groups in and out, equal rows found."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage.data.batch import Pairs, Rollouts, Rows, Sequences, concat, distinct, per_group, sequences, ungroup


def three() -> Sequences:
    return sequences([(1, 3), (8,)], [1, 0, 1], [[5, 2, 9], [], [7]], [[True, False, True], [], [True]])


def test_sequences_pad_on_the_right():
    rows = three()
    assert rows.tokens.tolist() == [[5, 2, 9], [0, 0, 0], [7, 0, 0]]
    assert rows.mask.int().tolist() == [[1, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert rows.lengths.tolist() == [3, 0, 1]
    assert sequences([(1,)], [0], [[4, 0]]).mask.tolist() == [[True, True]], "id 0 is a token like any other"
    assert sequences([(1,)], [], []).tokens.shape == (0, 0)
    with pytest.raises(AssertionError, match="at least one token"):
        sequences([()], [0], [[4]])


def test_total_tokens_counts_used_prompts_once():
    assert three().total_tokens == 4 + 2 + 1
    assert three()[[0, 2]].total_tokens == 4 + 1


@dataclass(frozen=True)
class Named(Rows):
    """A batch with a tuple and a nested batch."""

    names: tuple[str, ...]
    inner: Sequences
    scores: torch.Tensor


def test_rows_are_taken_from_every_field():
    batch = Named(("a", "b", "c"), three(), torch.tensor([1.0, 2.0, 3.0]))
    taken = batch[[2, 0, 0]]
    assert taken.names == ("c", "a", "a")
    assert taken.scores.tolist() == [3.0, 1.0, 1.0]
    assert taken.inner.tokens.tolist() == [[7, 0, 0], [5, 2, 9], [5, 2, 9]]
    assert taken.inner.prompts is batch.inner.prompts, "prompts are shared, so prompt_of still points at them"
    assert taken.inner.prompt_of.tolist() == [1, 1, 1]
    assert [len(batch), len(taken), len(batch[[]])] == [3, 3, 0]
    assert batch.sequences() == (batch.inner,)
    assert batch[torch.tensor([1])].names == ("b",)


def test_a_mask_is_no_list_of_rows():
    """It would silently mean rows 0 and 1, over and over."""
    with pytest.raises(AssertionError, match="not a mask"):
        three()[torch.tensor([True, False, True])]


def test_to_moves_what_is_nested():
    moved = Rollouts(three(), torch.zeros(3), torch.zeros(3, 3), torch.ones(3, dtype=torch.bool)).to("meta")
    assert moved.answers.tokens.device.type == moved.rewards.device.type == "meta"
    assert moved.answers.prompts == three().prompts


def test_both_sides_share_their_prompts():
    rows = three()
    short = sequences(rows.prompts.tokens, [1, 0, 0], [[4], [6], [6]])
    pairs = Pairs(rows, short, torch.ones(3), torch.ones(3), torch.zeros(3))
    both = pairs.both()
    assert both.tokens.tolist() == [[5, 2, 9], [0, 0, 0], [7, 0, 0], [4, 0, 0], [6, 0, 0], [6, 0, 0]]
    assert both.mask.int().tolist() == [[1, 0, 1], [0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert both.prompt_of.tolist() == [1, 0, 1, 1, 0, 0]
    assert pairs.sequences() == (rows, short)
    with pytest.raises(AssertionError, match="share their prompts"):
        concat(rows, sequences([(1, 4), (8,)], [0], [[4]]))


def test_distinct_rows_by_hand():
    """Equal tokens under another prompt, another mask or another length are other rows; padding does not count."""
    masks = [[True, True], [True, True], [True, True], [True, False], [True], [True, True]]
    rows = sequences([(1,), (2,)], [0, 1, 0, 0, 0, 0], [[5, 0], [5, 0], [5, 0], [5, 0], [5], [6, 0]], masks)
    kept, which = distinct(rows)
    assert which.tolist() == [0, 1, 0, 2, 3, 4]
    assert kept.tokens.tolist() == [[5, 0], [5, 0], [5, 0], [5, 0], [6, 0]]
    assert torch.equal(kept[which].mask, rows.mask)
    padding = rows.tokens.clone()
    padding[4, 1] = 77
    assert (
        distinct(Sequences(padding, rows.mask, rows.lengths, rows.prompt_of, rows.prompts))[1].tolist()
        == which.tolist()
    )


@given(st.permutations([p for p in range(4) for _ in range(3)]))
def test_groups_in_any_order(owners):
    prompt_of = torch.tensor(owners) * 5  # prompt numbers need not be dense
    values = torch.arange(12.0)
    grouped, index = per_group(values, prompt_of)
    assert grouped.shape == (4, 3)
    assert all(len(set(prompt_of[row].tolist())) == 1 for row in index)
    assert grouped.tolist() == values[index].tolist()
    assert torch.equal(ungroup(grouped, index), values)


def test_unequal_groups_are_refused():
    with pytest.raises(ValueError, match=r"same number of answers; got \[2, 1\]"):
        per_group(torch.zeros(3), torch.tensor([0, 1, 0]))
