"""The cache of the decoder: the keys of a row are its own, wherever the row stands, and what is not written is not seen."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from tutelage.models.attention import Look, Span, attend_spans
from tutelage.models.cache import KeyValues, Prefill, Step
from tutelage.models.tiny import tiny

HEADS, KV, WIDTH = 4, 2, 3


def cache(rows: int, tokens: int) -> KeyValues:
    config = tiny(hidden=12, heads=HEADS, kv_heads=KV, layers=1)[0].config
    return KeyValues.allocate(config, rows, tokens, torch.zeros((), dtype=torch.float64))


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


def test_prefill_and_steps_are_attention_over_the_whole_row():
    """Prompts of 3 and 1 tokens; the first goes to rows 0 and 2, the second to row 1; then two tokens each."""
    store = cache(4, 6)
    prompts = line(4, 1)
    spans = [Span(0, 3), Span(3, 4)]
    layout = Prefill(spans, [[0, 2], [1]], store)
    out = layout.attend(0, *prompts, Look())[0]
    parts = [tuple(x[:, :, s.start : s.stop] for x in prompts) for s in spans]
    assert_close(out, torch.cat([causal(*part) for part in parts]))
    store.lengths[:3] = torch.tensor([3, 1, 3])
    rows = [parts[0], parts[1], parts[0]]
    for turn in range(2):
        fresh = line(3, 2 + turn)
        step = Step.of(store, 3)
        out = step.attend(0, *fresh, Look())[0]
        rows = [
            tuple(torch.cat([old, new[:, :, r : r + 1]], 2) for old, new in zip(row, fresh))
            for r, row in enumerate(rows)
        ]
        assert_close(out, torch.stack([causal(*row)[-1] for row in rows]))
        store.lengths[:3] += 1


def test_a_scale_of_the_models_own_is_used():
    query, key, value = line(2, 0)
    store = cache(1, 3)
    Prefill([Span(0, 2)], [[0]], store).attend(0, query, key, value, Look(0.5))
    store.lengths[0] = 2
    new = line(1, 5)
    out = Step.of(store, 1).attend(0, *new, Look(0.5))[0]
    scale = 0.5 * WIDTH**0.5  # what `causal` divides by, undone
    row = (torch.cat([query, new[0]], 2) * scale, torch.cat([key, new[1]], 2), torch.cat([value, new[2]], 2))
    assert_close(out[0], causal(*row)[-1])


def test_a_moved_row_is_the_same_row():
    """Row 2 takes the place of row 0; what row 0 had beyond row 2's length is never seen."""
    store = cache(3, 6)
    Prefill([Span(0, 5)], [[0]], store).attend(0, *line(5, 1), Look())
    short = line(2, 2)
    Prefill([Span(0, 2)], [[2]], store).attend(0, *short, Look())
    store.lengths[:] = torch.tensor([5, 0, 2])
    store.move(2, 0)
    assert store.lengths.tolist() == [2, 0, 2]
    fresh = line(1, 3)
    out = Step.of(store, 1).attend(0, *fresh, Look())[0]
    assert_close(out[0], causal(*(torch.cat([a, b], 2) for a, b in zip(short, fresh)))[-1])


def test_cells_that_were_never_written_hold_no_nan():
    """A hidden cell counts 0 times what lies there, and 0 times NaN is NaN."""
    store = cache(2, 5)
    assert not any(buffer.any() for buffer in (*store.keys, *store.values))
    assert len(store.keys) == len(store.values) == 1
    assert store.keys[0].shape == (2, KV, 5, WIDTH)
