"""Attention between packed tokens against its definition, token by token: values and gradients of every layout."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from tutelage.models.attention import Look, Span, attend_spans, group_sight

HEADS, KV, WIDTH = 4, 2, 3
SPANS = {
    "a sequence": (Span(0, 7),),
    "one answer": (Span(0, 7, (3,)),),
    "answers side by side": (Span(0, 20, (4, 3, 5, 5)),),
    "answers of one length": (Span(0, 14, (3, 3, 3)),),
    "one long answer among short ones, in one square": (Span(0, 12, (7, 1, 1, 1)),),
    "several": (Span(0, 5), Span(5, 25, (4, 3, 5, 5)), Span(25, 37, (7, 1, 1, 1))),
}
LOOKS = {
    "plain": Look(),
    "scaled": Look(0.9),
    "windowed": Look(window=3),
    "capped": Look(cap=0.7),
    "windowed and capped": Look(0.9, 4, 0.7),
    "a window nobody reaches": Look(window=99),
}


def seen_by(span: Span, token: int, window: int | None) -> list[int]:
    """The tokens of a span that one of them sees, from the words of the docstring."""
    if token < span.prompt:
        line = list(range(token + 1))
    else:
        start = span.prompt
        for length in span.answers:
            if token < start + length:
                break
            start += length
        line = [*range(span.prompt), *range(start, token + 1)]
    return line if window is None else line[-window:]


def by_definition(spans, query, key, value, look):
    """Each token's softmax over what it sees; query head h reads kv head h // 2."""
    scale = WIDTH**-0.5 if look.scaling is None else look.scaling
    rows = []
    for span in spans:
        for token in range(span.tokens):
            seen = [span.start + t for t in seen_by(span, token, look.window)]
            heads = []
            for h in range(HEADS):
                scores = key[0, h // 2, seen] @ query[0, h, span.start + token] * scale
                scores = scores if look.cap is None else look.cap * torch.tanh(scores / look.cap)
                heads.append(scores.softmax(0) @ value[0, h // 2, seen])
            rows.append(torch.stack(heads))
    return torch.stack(rows)[None]


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("layout", SPANS)
def test_every_layout_is_its_definition(layout, look):
    spans = SPANS[layout]
    draw = torch.Generator().manual_seed(0)
    shapes = [(1, heads, spans[-1].stop, WIDTH) for heads in (HEADS, KV, KV)]
    tensors = [torch.randn(s, generator=draw, dtype=torch.float64, requires_grad=True) for s in shapes]
    weights = torch.randn(1, spans[-1].stop, HEADS, WIDTH, generator=draw, dtype=torch.float64)
    found = []
    for attention in (attend_spans, by_definition):
        out = attention(spans, *tensors, LOOKS[look])
        found.append([out, *torch.autograd.grad((out * weights).sum(), tensors)])
    for ours, exact in zip(*found, strict=True):
        assert_close(ours, exact, atol=1e-12, rtol=1e-10)


def test_the_cheaper_layout_is_taken():
    """Scores by hand: 3^2 + 4*5*8 = 169 of 20^2 = 400 side by side; 2^2 + 4*7*9 = 256 against 12^2 = 144 is dearer."""
    assert Span(0, 20, (4, 3, 5, 5)).split
    assert not Span(0, 12, (7, 1, 1, 1)).split
    assert not Span(0, 7, (3,)).split
    assert Span(0, 20, (4, 3, 5, 5)).mask(None, torch.zeros(1)).shape == (5, 8)
    assert Span(0, 7, (3,)).mask(None, torch.zeros(1)) is None, "one answer: causal attention is right"


def test_sight_by_hand():
    """A prompt of two tokens, answers of two and one: rows are who looks, columns what is seen."""
    assert group_sight(2, [2, 1]).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert group_sight(2, [2, 1], window=2).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 1, 0, 0, 1],
    ], "the second answer's first token stands right behind the prompt"
