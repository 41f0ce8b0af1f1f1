"""A training step's products by the matrix unit: float32's, at any number of tokens, with their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tutelage.data.batch import Prompts, Sequences
from tutelage.models import fused, gemm, label_head, matrix_products
from tutelage.models.label_head import label_logprobs
from tutelage.models.logprobs import CausalModel
from tutelage.models.lora import LoRA, add_lora
from tutelage.models.matrix_products import by_columns, by_rows, by_tokens
from tutelage.models.tiny import tiny

pytestmark = pytest.mark.skipif(bool(fused.no_matrix_unit()), reason=f"hardware: {fused.no_matrix_unit()}")
SHAPES = [(32, 32, 32), (33, 64, 96), (47, 96, 64), (63, 32, 160), (100, 192, 32), (257, 576, 192), (600, 96, 1536)]
"""Tokens, numbers in, numbers out."""


@pytest.fixture(autouse=True)
def unit():
    with gemm.multiplying("amx"):
        yield


@pytest.fixture
def products(monkeypatch) -> list[str]:
    """The names of the products that the unit made."""
    made: list[str] = []
    for name in ("by_rows", "by_columns", "by_tokens"):
        ours = getattr(matrix_products, name)

        def seen(*args, name=name, ours=ours):
            made.append(name)
            return ours(*args)

        monkeypatch.setattr(matrix_products, name, seen)
    return made


@pytest.mark.parametrize(("tokens", "depth", "columns"), SHAPES)
def test_whole_numbers_are_multiplied_exactly(tokens, depth, columns):
    """Up to 2^24 in all: each tail of tokens, what is summed at once and what goes on from memory."""
    x, w, g = (
        torch.randint(-90, 91, shape).float() for shape in ((tokens, depth), (columns, depth), (tokens, columns))
    )
    for found, exact in ((by_rows(x, w), x @ w.T), (by_columns(g, w), g @ w), (by_tokens(g, x), g.T @ x)):
        assert torch.equal(found, exact)


@pytest.mark.parametrize(("tokens", "depth", "columns"), SHAPES)
def test_about_as_near_to_the_truth_as_pytorch(tokens, depth, columns):
    x, w, g = (
        torch.randn(shape, dtype=torch.float64) for shape in ((tokens, depth), (columns, depth), (tokens, columns))
    )
    few, weight, grad = x.float(), w.float(), g.float()
    x, w, g = few.double(), weight.double(), grad.double()
    for found, theirs, exact in (
        (by_rows(few, weight), few @ weight.T, x @ w.T),
        (by_columns(grad, weight), grad @ weight, g @ w),
        (by_tokens(grad, few), grad.T @ few, g.T @ x),
    ):
        ours, others = ((each - exact).square().mean().sqrt() for each in (found, theirs))
        assert ours < 1.5 * others + 1e-7 * exact.abs().max()


def test_columns_become_rows_with_zeros_behind():
    x = torch.arange(35 * 48.0).view(35, 48)
    out = torch.full((48, 64), 7.0)
    fused.run(fused.compiled("transpose_kernel").transpose, 35, 48, x.data_ptr(), out.data_ptr(), 64)
    assert torch.equal(out[:, :35], x.T)
    assert (out[:, 35:] == 0).all()


def test_a_transposed_weights_tiles_are_those_of_its_transpose():
    weight = torch.randn(48, 96)
    rows, columns = torch.empty(96 * 48 * 3 // 2), torch.empty(96 * 48 * 3 // 2)
    fused.run(fused.compiled("transpose_kernel").split_transposed, 96, 48, weight.data_ptr(), rows.data_ptr())
    turned = weight.T.contiguous()
    fused.run(fused.compiled("tile_kernel").split, 96, 48, turned.data_ptr(), columns.data_ptr())
    assert torch.equal(rows.view(torch.int32), columns.view(torch.int32))


def test_the_result_is_the_same_however_many_threads_share_it():
    x, w, before = torch.randn(500, 96), torch.randn(192, 96), torch.get_num_threads()
    outs = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outs.append((by_rows(x, w), by_tokens(x, x)))
    finally:
        torch.set_num_threads(before)
    for out in outs[1:]:
        assert all(map(torch.equal, out, outs[0]))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(70, 64), (1, 70, 64), (2, 40, 64)])
def test_a_linear_layer_and_its_gradients(products, bias, shape):
    module, x, weights = nn.Linear(64, 96, bias=bias), torch.randn(shape), torch.randn(*shape[:-1], 96)
    found = []
    for function in (module, lambda x: matrix_products.linear(module, x)):
        module.zero_grad()
        inner = x.clone().requires_grad_()
        out = function(inner)
        (out * weights).sum().backward()
        found.append([out.detach(), inner.grad, *(each.grad for each in module.parameters())])
    assert_close(found[1], found[0], atol=3e-5, rtol=1e-5)
    assert products == ["by_rows", "by_columns", "by_tokens"]


def test_a_frozen_weight_has_no_gradient_and_keeps_no_input(products):
    module, x = nn.Linear(64, 96).requires_grad_(False), torch.randn(40, 64, requires_grad=True)
    matrix_products.linear(module, x).sum().backward()
    assert products == ["by_rows", "by_columns"]
    assert module.weight.grad is None


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (nn.Linear(64, 96), torch.randn(31, 64)),
        (nn.Linear(64, 40), torch.randn(64, 64)),
        (nn.Linear(40, 64), torch.randn(64, 40)),
        (nn.Linear(64, 96).double(), torch.randn(64, 64).double()),
    ],
    ids=["few tokens", "columns", "depth", "float64"],
)
def test_what_does_not_fit_is_pytorchs(products, module, x):
    assert torch.equal(matrix_products.linear(module, x), module(x))
    with gemm.multiplying("default"):
        matrix_products.linear(nn.Linear(64, 96), torch.randn(64, 64))
    assert products == []


def a_batch() -> Sequences:
    """Three answers of 30 to 50 tokens to two prompts."""
    draw = torch.Generator().manual_seed(0)
    prompts = tuple(tuple(torch.randint(0, 250, (n,), generator=draw).tolist()) for n in (9, 14))
    rows = [torch.randint(0, 250, (n,), generator=draw).tolist() for n in (30, 50, 41)]
    tokens = torch.tensor([row + [0] * (50 - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(50) < lengths[:, None]
    return Sequences(tokens, mask, lengths, torch.tensor([0, 0, 1]), Prompts(prompts))


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kernels", ["torch", "numba"])
def test_logprobs_and_every_gradient_are_the_defaults(products, lora, kernels):
    """Of the whole model: transformers' own forward, and ours; the head's part too."""
    model, _ = tiny(vocabulary=320)
    model = add_lora(model, LoRA(rank=4)) if lora else model
    found = []
    for library in ("default", "amx"):
        model.zero_grad()
        with gemm.multiplying(library), fused.running(kernels):
            logp, entropy = CausalModel(model).logprobs_and_entropy(a_batch())
            (logp.sum() + 0.1 * entropy.sum()).backward()
        made = len(products)
        assert (made > 20) == (library == "amx")
        found.append([logp.detach(), {key: p.grad for key, p in model.named_parameters() if p.grad is not None}])
    assert_close(found[1][0], found[0][0], atol=1e-5, rtol=1e-5)
    assert found[1][1].keys() == found[0][1].keys()
    for key, gradient in found[0][1].items():
        assert_close(found[1][1][key], gradient, atol=2e-5 * float(gradient.abs().max() + 1), rtol=1e-4, msg=key)
    assert all("forward" not in vars(module) for module in model.modules() if type(module) is nn.Linear)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_heads_products(monkeypatch, frozen):
    """In parts of the vocabulary and pieces of the labels, so that sums go on from one to the next."""
    made: list[str] = []
    for name in ("by_rows", "by_columns", "by_tokens"):
        ours = getattr(matrix_products, name)
        monkeypatch.setattr(label_head, name, lambda *args, name=name, ours=ours: (made.append(name), ours(*args))[1])
    monkeypatch.setattr(label_head, "WORDS", 128)
    monkeypatch.setattr(label_head, "ROWS", 40)
    model, _ = tiny(vocabulary=384)
    model.lm_head.weight.requires_grad_(not frozen)
    labels, weights, found = torch.randint(0, 384, (110,)), torch.randn(2, 110), []
    for library in ("default", "amx"):
        hidden = torch.randn(110, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        model.zero_grad()
        with gemm.multiplying(library):
            logp, entropy = label_logprobs(model, hidden, labels, 0.7)
            (weights[0] @ logp + (0 if frozen else weights[1] @ entropy)).backward()
        expected = {"by_rows", "by_columns"} if frozen else {"by_rows", "by_columns", "by_tokens"}
        assert set(made) == (expected if library == "amx" else set())
        found.append([logp.detach(), entropy.detach(), hidden.grad, model.lm_head.weight.grad])
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert theirs is None or assert_close(ours, theirs, atol=3e-5, rtol=1e-4) is None
