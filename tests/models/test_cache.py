"""The cache of the decoder: the keys of a row are its own, wherever the row stands, and what is not written is not seen."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from tutelage.models.asking import whole
from tutelage.models.attention import Look, Span, attend_spans
from tutelage.models.cache import KeyValues, Prefill, Room, Step
from tutelage.models.tiny import tiny

HEADS, KV, WIDTH = 4, 2, 3


def cache(rows: int, tokens: int, prompts: int = 2) -> KeyValues:
    config = tiny(hidden=12, heads=HEADS, kv_heads=KV, layers=1)[0].config
    return KeyValues.allocate(config, Room(rows, tokens, prompts, 6), torch.zeros((), dtype=torch.float64))


def line(tokens: int, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, heads, tokens, WIDTH) for heads in (HEADS, KV, KV)]
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention of a lone sequence, from the definition: query head h reads kv head h // 2."""
    out = torch.zeros(query.shape[2], HEADS, WIDTH, dtype=torch.float64)
    for h in range(HEADS):
        scores = query[0, h] @ key[0, h // 2].T / WIDTH**0.5
        future = torch.ones_like(scores, dtype=torch.bool).triu(1)
        out[:, h] = scores.masked_fill(future, float("-inf")).softmax(-1) @ value[0, h // 2]
    return out


def test_spans_attend_to_themselves_only():
    query, key, value = line(7, 0)
    out = attend_spans([Span(0, 3), Span(3, 7)], query, key, value, Look())[0]
    for start, stop in ((0, 3), (3, 7)):
        alone = causal(query[:, :, start:stop], key[:, :, start:stop], value[:, :, start:stop])
        assert_close(out[start:stop], alone)


def asking(store: KeyValues, prompts: dict[int, int], seed: int = 1) -> dict[int, tuple[torch.Tensor, ...]]:
    """Prompts {number: answers} of number + 1 tokens each, read into the cache; the query, key and value of each."""
    whole = line(sum(number + 1 for number in prompts), seed)
    ends = torch.tensor([number + 1 for number in prompts]).cumsum(0).tolist()
    spans = [Span(end - number - 1, end) for number, end in zip(prompts, ends, strict=True)]
    slots = [store.admit(number, number + 1, answers) for number, answers in prompts.items()]
    out = Prefill(spans, slots, store).attend(0, *whole, Look())[0]
    parts = [tuple(x[:, :, span.start : span.stop] for x in whole) for span in spans]
    assert_close(out, torch.cat([causal(*part) for part in parts]))
    return dict(zip(prompts, parts, strict=True))


def steps(store: KeyValues, rows: list[tuple[torch.Tensor, ...]], turns: int, seed: int) -> None:
    """New tokens for every active row; each is the attention of its whole row. `rows` grow by them."""
    for turn in range(turns):
        fresh = line(len(rows), seed + turn)
        out = Step.of(store).attend(0, *fresh, Look())[0]
        rows[:] = [
            tuple(torch.cat([old, new[:, :, r : r + 1]], 2) for old, new in zip(row, fresh))
            for r, row in enumerate(rows)
        ]
        assert_close(out, torch.stack([causal(*row)[-1] for row in rows]))
        store.lengths[: len(rows)] += 1


def test_prefill_and_steps_are_attention_over_the_whole_row():
    """Prompts of 3 and 1 tokens; two rows answer the first, one the second: its products are padded."""
    store = cache(4, 3)
    parts = asking(store, {2: 2, 0: 1})
    assert (store.held, store.asked) == ([0, 0, 1], [2, 0])
    steps(store, [parts[2], parts[2], parts[0]], 3, 2)


def test_a_prompt_is_kept_once_whatever_number_of_rows_answers_it():
    store = cache(8, 4, prompts=1)
    parts = asking(store, {4: 8})
    assert store.prompt_keys[0].shape == (1, KV, whole(6), WIDTH)
    assert_close(store.prompt_keys[0][0, :, :5], parts[4][1][0])
    assert not store.keys[0].any(), "a row holds what it says and nothing else"
    assert store.groups().in_order
    steps(store, [parts[4]] * 8, 4, 3)


def test_a_scale_of_the_models_own_is_used():
    query, key, value = line(2, 0)
    store = cache(1, 3)
    Prefill([Span(0, 2)], [store.admit(7, 2, 1)], store).attend(0, query, key, value, Look(0.5))
    new = line(1, 5)
    out = Step.of(store).attend(0, *new, Look(0.5))[0]
    scale = 0.5 * WIDTH**0.5  # what `causal` divides by, undone
    row = (torch.cat([query, new[0]], 2) * scale, torch.cat([key, new[1]], 2), torch.cat([value, new[2]], 2))
    assert_close(out[0], causal(*row)[-1])


def test_rows_and_prompts_move_into_the_places_of_those_that_left():
    """Three prompts of 2, 5 and 3 tokens with 1, 2 and 2 rows; the first row ends, and its prompt with it."""
    store = cache(5, 4, prompts=3)
    parts = asking(store, {1: 1, 4: 2, 2: 2})
    rows = [parts[1], parts[4], parts[4], parts[2], parts[2]]
    steps(store, rows, 1, 2)
    store.leave(0)
    rows = [rows[4], *rows[1:4]]
    assert (store.held, store.asked) == ([0, 1, 1, 0], [2, 4]), "the last prompt stands where the first stood"
    assert not store.groups().in_order
    steps(store, rows, 1, 5)
    store.leave(2)
    rows = [rows[0], rows[1], rows[3]]
    assert store.held == [0, 1, 0]
    steps(store, rows, 1, 7)
    store.leave(1)
    assert (store.held, store.asked) == ([0, 0], [2])
    steps(store, [rows[0], rows[2]], 1, 9)
    store.leave(0)
    store.leave(0)
    assert (store.held, store.asked) == ([], [])


def test_answers_that_enter_later_find_their_prompt():
    """A fourth row of a prompt that is there takes no second place, and what it says is its own."""
    store = cache(4, 4)
    parts = asking(store, {2: 2, 0: 1})
    rows = [parts[2], parts[2], parts[0]]
    steps(store, rows, 2, 2)
    assert store.admit(2, 3, 1) == 0
    rows.append(parts[2])
    assert (store.held, store.asked, store.lengths.tolist()) == ([0, 0, 1, 0], [2, 0], [2, 2, 2, 0])
    steps(store, rows, 1, 5)


def test_a_window_counts_positions_over_prompt_and_answer():
    """A window of 3 after a prompt of 5: the second said token sees one of the prompt, the first and itself."""
    store = cache(2, 3)
    parts = asking(store, {4: 1})
    row = parts[4]
    for turn in range(3):
        fresh = line(1, 11 + turn)
        out = Step.of(store).attend(0, *fresh, Look(window=3))[0]
        row = tuple(torch.cat([a, b], 2) for a, b in zip(row, fresh))
        last = (row[0], row[1][:, :, -3:], row[2][:, :, -3:])
        short = tuple(x[:, :, -3:] for x in last)
        assert_close(out[0], causal(*short)[-1])
        store.lengths[:1] += 1


def test_cells_that_were_never_written_hold_no_nan():
    """A hidden cell counts 0 times what lies there, and 0 times NaN is NaN."""
    store = cache(2, 5)
    buffers = (store.keys, store.values, store.prompt_keys, store.prompt_values)
    assert all(len(each) == 1 and not each[0].any() for each in buffers)
    assert store.keys[0].shape == (2, KV, whole(5), WIDTH)
