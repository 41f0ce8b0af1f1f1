"""Draws depend on (seed, step) alone; epochs are complete; mixtures keep their shares."""

from __future__ import annotations

from collections import Counter

import pytest

from tutelage.data.stream import Mixture, Stream


def rows(stream, steps: range) -> list:
    return [record for step in steps for record in stream.draw(step)]


def test_every_record_comes_once_an_epoch_also_where_batches_straddle():
    drawn = rows(Stream(range(10), 4, seed=3), range(10))  # 40 rows: four epochs of 10
    epochs = [drawn[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4, "each epoch has an order of its own"


def test_a_resumed_stream_draws_the_same_without_the_steps_before():
    whole = [Stream(range(100), 7, seed=5).draw(step) for step in range(40)]
    assert Stream(range(100), 7, seed=5).draw(31) == whole[31]
    assert Stream(range(100), 7, seed=6).draw(31) != whole[31]


def test_the_order_is_pinned():
    """A change of these numbers changes what every earlier run would draw when it is resumed."""
    assert Stream(range(6), 6, seed=0).draw(0) == [1, 4, 5, 3, 0, 2]


def test_a_batch_larger_than_the_records_repeats_them_evenly():
    assert Counter(Stream("abc", 7).draw(0)) in (
        {"a": 3, "b": 2, "c": 2},
        {"a": 2, "b": 3, "c": 2},
        {"a": 2, "b": 2, "c": 3},
    )


def test_a_mixture_keeps_its_shares_in_every_thousand_rows():
    mixture = Mixture(["a" * 50, "b" * 3000, "c"], [0.5, 1.5, 0.002], batch_size=100, seed=1)
    for start in (0, 10, 70):
        counts = Counter(rows(mixture, range(start, start + 10)))
        assert counts == {"a": 250, "b": 749, "c": 1}


def test_each_source_of_a_mixture_runs_its_own_epochs():
    small, large = range(30), range(1000, 2000)
    drawn = rows(Mixture([small, large], [1, 3], batch_size=8, seed=2), range(500))  # 4,000 rows
    from_small, from_large = [x for x in drawn if x < 30], [x for x in drawn if x >= 1000]
    assert (len(from_small), len(from_large)) == (1000, 3000)
    assert all(sorted(from_small[i : i + 30]) == list(small) for i in range(0, 990, 30))
    assert all(sorted(from_large[i : i + 1000]) == list(large) for i in range(0, 3000, 1000))
    assert max(Counter(x < 30 for x in drawn[i : i + 100])[True] for i in range(0, 4000, 100)) < 50, (
        "shuffled, not in blocks"
    )


def test_a_mixture_resumes_from_its_step():
    make = lambda seed: Mixture([range(30), range(100, 170)], [1, 2], 8, seed)  # noqa: E731
    assert make(4).draw(411) == [make(4).draw(step) for step in range(412)][411]
    assert make(4).draw(411) != make(5).draw(411)


def test_settings_that_cannot_be():
    for size in (0, -3):
        with pytest.raises(ValueError, match=f"batch_size: must be at least 1; got {size}"):
            Stream([1], size)
    with pytest.raises(ValueError, match="no records"):
        Stream([], 2)
    with pytest.raises(ValueError, match="steps count from 0; got -1"):
        Stream([1], 2).draw(-1)
    for weights, message in (
        ([1], "2 sources need as many weights; got 1"),
        ([1, 0], "positive"),
        ([1, float("nan")], "positive"),
        ([1, 1e-6], "less than one row in 1000"),
    ):
        with pytest.raises(ValueError, match=message):
            Mixture(["a", "b"], weights, 2)
    with pytest.raises(ValueError, match="a source has no records"):
        Mixture(["a", ""], [1, 1], 2)
