"""Attention block by block: PyTorch's own attention and its gradients, wherever blocks and slices of heads are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tutelage.models import blocks
from tutelage.models.attention import Look, Span, attend_spans, attend_squares, group_sight
from tutelage.models.blocks import attend_blocks, cut

SPANS = {
    "a sequence": (Span(0, 23),),
    "answers": (Span(0, 30, (7, 5, 9)),),
    "turns of a dialogue": (Span(0, 26, (4, 3, 5, 2, 6), (0, 0, 1, 3, 2)),),
    "several": (Span(0, 9), Span(9, 30, (8, 8)), Span(30, 31)),
}


def drawn(tokens: int, heads: int, kv: int, dtype: torch.dtype = torch.float64, width: int = 4) -> list[Tensor]:
    """Queries, keys and values as a model gives them: token by token in memory, heads first in shape."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(1, tokens, n, width) for n in (heads, kv, kv)]
    return [torch.randn(s, generator=draw, dtype=dtype).transpose(1, 2).requires_grad_() for s in shapes]


@pytest.fixture(params=[(192, 2**20), (4, 2**20), (6, 1), (1, 40)], ids=["whole", "blocks", "slices", "one query"])
def cuts(request, monkeypatch):
    """Sizes of block and slice; spans keep their blocks, so tests make new ones."""
    monkeypatch.setattr(blocks, "BLOCK", request.param[0])
    monkeypatch.setattr(blocks, "CELLS", request.param[1])


@pytest.mark.parametrize("kv", [6, 2])
@pytest.mark.parametrize("look", [Look(), Look(0.7), Look(window=5)], ids=["plain", "scaled", "windowed"])
@pytest.mark.parametrize("layout", SPANS)
def test_values_and_gradients_are_those_of_torch(layout, look, kv, cuts):
    spans = [Span(s.start, s.stop, s.answers, s.parents) for s in SPANS[layout]]
    tensors = drawn(spans[-1].stop, 6, kv)
    found = []
    for attention in (attend_spans, attend_squares):
        out = attention(spans, *tensors, look)
        grads = torch.autograd.grad((out * torch.arange(out.numel()).view_as(out).cos()).sum(), tensors)
        found.append([out, *grads])
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs, atol=1e-12, rtol=1e-10)


def test_float32_at_a_models_size():
    span = Span(0, 700, (128, 200, 90))
    tensors = drawn(700, 6, 2, torch.float32, 64)
    found = []
    for attention in (attend_spans, attend_squares):
        out = attention((span,), *tensors, Look())
        found.append([out, *torch.autograd.grad(out.sin().sum(), tensors)])
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 3])
def test_gradients_by_finite_differences(window, cuts):
    span = Span(0, 9, (3, 2))
    tensors = drawn(9, 4, 2, width=2)
    assert torch.autograd.gradcheck(lambda *qkv: attend_blocks(span.blocks(window, torch.float64), *qkv, 0.6), tensors)


def test_no_scores_are_kept_for_the_backward_pass():
    """Queries, keys and values only; nothing as large as queries times keys."""
    tensors, kept = drawn(300, 6, 2), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        attend_spans((Span(0, 300, (100, 90)),), *tensors, Look())
    assert kept == [x.shape for x in tensors]


def test_without_gradient_it_says_the_same():
    tensors = drawn(20, 4, 2)
    expected = attend_spans((Span(0, 20, (6, 7)),), *tensors, Look())
    with torch.no_grad():
        assert torch.equal(attend_spans((Span(0, 20, (6, 7)),), *tensors, Look()), expected)
    with torch.inference_mode():
        assert torch.equal(attend_spans((Span(0, 20, (6, 7)),), *tensors, Look()), expected)


def test_half_precision_goes_through_torch(monkeypatch):
    called = []
    own = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        nn.functional, "scaled_dot_product_attention", lambda *a, **k: called.append(a[0].dtype) or own(*a, **k)
    )
    for dtype in (torch.float32, torch.bfloat16):
        attend_spans((Span(0, 5),), *drawn(5, 2, 1, dtype), Look())
    assert called == [torch.bfloat16]


def test_blocks_by_hand(monkeypatch):
    """A prompt of 4 and answers of 1, 1, 2 and 5, at most 4 queries a block: short answers together, long ones in halves."""
    monkeypatch.setattr(blocks, "BLOCK", 4)
    sizes = (4, 1, 1, 2, 5)
    sight = group_sight(4, sizes[1:])
    found = cut(sizes, lambda start, stop: sight[start:stop, :stop], torch.float32)
    assert [(b.start, b.stop) for b in found] == [(0, 4), (4, 8), (8, 10), (10, 13)]
    assert [b.keys for b in found] == [((0, 4),), ((0, 8),), ((0, 4), (8, 10)), ((0, 4), (8, 13))]
    assert [b.mask.shape[1] for b in found] == [3, 4, 1, 2], "the first token of a sequence is seen by all of its block"
    assert all(a.stop == b.start for a, b in pairwise(found))
    assert found[2].moved(100).keys == ((100, 104), (108, 110))
