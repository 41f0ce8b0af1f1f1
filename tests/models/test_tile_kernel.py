"""Products by the matrix unit are float32's: exact where float32 is, else about as near the truth as PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from tutelage.models import fused, matrix_unit

CPU = torch.device("cpu")
with_amx = pytest.mark.skipif(bool(fused.no_matrix_unit()), reason=f"hardware: {fused.no_matrix_unit()}")


def product(weight, x, unit=16, bias=None):
    """With a margin of sevens around the result."""
    kernels, (rows, depth), columns = fused.compiled("tile_kernel"), weight.shape, x.shape[1]
    around, tiles = torch.full((rows + 2, columns), 7.0), fused.tiles(depth, columns)
    fused.run(kernels.split, depth, columns, fused.address(x), fused.address(tiles))
    places = fused.address(weight), fused.address(tiles), fused.address(around[1:])
    shift = 0 if bias is None else fused.address(bias)
    fused.run(kernels.product, rows, depth, columns, *places, unit, shift)
    assert (around[[0, -1]] == 7).all(), "nothing is written outside"
    return around[1:-1]


@pytest.fixture
def amx():
    with fused.running("amx"):
        yield


@with_amx
@pytest.mark.parametrize("columns", [1, 5, 16, 17, 33, 48, 64, 70, 80, 130])
def test_whole_numbers_are_multiplied_exactly(amx, columns):
    """Of up to 24 bits together: each number of tiles, what is left over of columns, one block of the depth and many."""
    for rows, depth in ((16, 32), (48, 96), (80, 320)):
        weight = torch.randint(-300, 301, (rows, depth)).float()
        x = torch.randint(-90, 91, (depth, columns)).float()
        bias = torch.randint(-9, 10, (rows,)).float()
        expected = (weight.double() @ x.double()).float()
        for unit in (16, 48):
            assert torch.equal(product(weight, x, unit), expected)
            assert torch.equal(product(weight, x, unit, bias), expected + bias[:, None])
        assert torch.equal(fused.product(weight, x), expected)


@with_amx
@pytest.mark.parametrize("number", [1 + 2**-8 + 2**-16 + 2**-23, -3.1415927, 1 - 2**-24, 2.0**100 / 3, 1e-30])
def test_no_bit_of_a_number_is_lost(amx, number):
    """By hand: times one it is itself, from either side; a number is its three parts."""
    one = torch.zeros(16, 32)
    one[3, 5] = 1
    many = torch.full((32, 20), number)
    assert (product(one, many)[3] == many[0]).all()
    assert (product(one * many[0, 0], torch.ones(32, 20))[3] == many[0]).all()


@with_amx
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_random_products_are_as_near_the_truth_as_pytorch(amx, scale):
    draw = torch.Generator().manual_seed(0)
    for depth in (64, 576, 1536):
        weight = torch.randn(96, depth, generator=draw) * scale
        x = torch.randn(depth, 64, generator=draw) * torch.randn(depth, 1, generator=draw).exp()
        exact = weight.double() @ x.double()
        ours, theirs = (float((found - exact).square().mean()) for found in (product(weight, x), weight @ x))
        assert ours < 4 * theirs, "root mean square error at most twice that of float32"
        whole = weight.abs().double() @ x.abs().double()
        assert ((product(weight, x) - exact).abs() <= 2**-22 * whole).all()


@with_amx
def test_what_is_not_a_number_stays_so(amx):
    x = torch.ones(32, 16)
    x[4, 2] = torch.nan
    found = product(torch.ones(16, 32), x)
    assert found[:, 2].isnan().all()
    assert (found[:, [0, 1, 3]] == 32).all()


@with_amx
@pytest.mark.parametrize("columns", [3, 32, 70])
def test_norm_and_gate_leave_their_results_in_tiles(amx, columns):
    """As the kernels of vectors leave them, and then split."""
    tile, depth, middle = fused.compiled("tile_kernel"), 64, 96
    x, plus, norm = torch.randn(depth, columns), torch.randn(depth, columns), torch.rand(depth)
    gate, up = torch.randn(middle, depth), torch.randn(middle, depth)
    expected = fused.norm(x.clone().t(), norm, 1e-5, plus.t()).t()
    out, tiles, split = torch.empty(depth, columns), *(fused.tiles(depth, columns).zero_() for _ in range(2))
    places = [fused.address(each) for each in (x, out, norm, plus)]
    fused.run(tile.norm, depth, columns, fused.bits(1e-5), *places, 1, fused.address(tiles))
    assert torch.equal(out, expected)
    fused.run(tile.split, depth, columns, fused.address(out), fused.address(split))
    assert torch.equal(tiles.view(torch.int32), split.view(torch.int32))
    mine, beside = torch.empty(middle, columns), torch.empty(middle, columns)
    laid, again = (fused.tiles(middle, columns).zero_() for _ in range(2))
    places = [fused.address(each) for each in (gate, up, tiles, mine, beside)]
    fused.run(tile.gated, middle, depth, columns, *places, 32, fused.address(laid))
    assert_close(mine, torch.nn.functional.silu(gate @ expected) * (up @ expected), atol=1e-4, rtol=1e-5)
    fused.run(tile.split, middle, columns, fused.address(mine), fused.address(again))
    assert torch.equal(laid.view(torch.int32), again.view(torch.int32))


@with_amx
def test_threads_share_the_rows_and_the_result_is_the_same(amx):
    weight, x, threads = torch.randn(160, 96), torch.randn(96, 40), torch.get_num_threads()
    outs = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            outs.append(product(weight, x))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(out, outs[0]) for out in outs)


@with_amx
def test_what_is_no_whole_tile_is_multiplied_by_vectors(amx):
    tiles, vectors = fused.compiled("tile_kernel"), fused.compiled("product_kernel")
    for shape, kernels in (((16, 32), tiles), ((24, 32), vectors), ((16, 48), vectors)):
        weight, x = torch.randn(shape), torch.randn(shape[1], 5)
        assert fused.multiplying(weight) is kernels
        assert_close(fused.product(weight, x), weight @ x)
    with fused.running("numba"):
        assert fused.multiplying(torch.ones(16, 32)) is vectors


def test_why_it_cannot_run_is_said(monkeypatch):
    fused.no_matrix_unit.cache_clear()
    monkeypatch.setattr(fused, "refused", lambda: "this processor has no AMX")
    with pytest.raises(ValueError, match="kernels: amx cannot run: this processor has no AMX"):
        fused.choose_kernels("amx", CPU)
    assert fused.choose_kernels("auto", CPU) in ("loops", "numba")
    monkeypatch.undo()
    fused.no_matrix_unit.cache_clear()


def test_a_system_that_does_not_lend_it(monkeypatch):
    class Refusing:
        def __init__(self, _name):
            self.syscall = lambda *numbers: -1 if numbers == (158, 0x1023, 18) else 0

    features = matrix_unit.import_module("llvmlite.binding")
    monkeypatch.setattr(features, "get_host_cpu_features", lambda: {"amx-bf16": True})
    monkeypatch.setattr(matrix_unit.ctypes, "CDLL", Refusing)
    monkeypatch.setattr(matrix_unit.sys, "platform", "linux")
    assert matrix_unit.refused() == "the system does not lend AMX to this process"
    monkeypatch.setattr(matrix_unit.sys, "platform", "darwin")
    assert "Linux only" in matrix_unit.refused()
    monkeypatch.setattr(features, "get_host_cpu_features", lambda: {})
    assert matrix_unit.refused() == "this processor has no AMX"
