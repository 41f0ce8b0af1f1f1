"""Two libraries multiply float32 matrices: the choice needs both speed and float32's result."""

from __future__ import annotations

import pytest
import torch

from tutelage.models import fused, gemm
from tutelage.models.gemm import choose_gemm, multiplying, rounding, speedup

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("error", "faster", "lacking", "chosen"),
    [
        (1e-6, {"onednn": 2.0}, "no unit", "onednn"),
        (4e-3, {"onednn": 2.0}, "no unit", "default"),
        (1e-6, {"onednn": 1.05}, "no unit", "default"),
        (1e-6, {"onednn": 2.0, "amx": 1.5}, "", "onednn"),
        (4e-3, {"onednn": 2.0, "amx": 1.5}, "", "amx"),
        (4e-3, {"amx": 1.05}, "", "default"),
    ],
    ids=["exact and fast", "rounds to bfloat16", "no faster", "faster than the unit", "the unit", "a slow unit"],
)
def test_auto_wants_speed_and_float32(monkeypatch, error, faster, lacking, chosen):
    monkeypatch.setattr(gemm, "rounding", lambda which: error)
    monkeypatch.setattr(gemm, "speedup", lambda which: faster[which])
    monkeypatch.setattr(fused, "no_matrix_unit", lambda: lacking)
    assert choose_gemm("auto", CPU) == chosen
    assert choose_gemm("onednn", CPU) == "onednn"
    assert choose_gemm("default", CPU) == "default"
    assert choose_gemm("auto", torch.device("cuda")) == "default"


def test_what_cannot_be_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="'mkl'; allowed: auto, default, onednn, amx"):
        choose_gemm("mkl", CPU)
    for which in ("onednn", "amx"):
        with pytest.raises(ValueError, match="on CPUs only"):
            choose_gemm(which, torch.device("cuda"))
    monkeypatch.setattr(fused, "no_matrix_unit", lambda: "this processor has no AMX")
    with pytest.raises(ValueError, match="amx cannot multiply here: this processor has no AMX"):
        choose_gemm("amx", CPU)


def test_the_setting_is_put_back_even_after_an_error():
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision

    def fail() -> None:
        with multiplying("onednn"):
            assert matmul.fp32_precision == "bf16"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert matmul.fp32_precision == before


def test_rounding_tells_float32_from_bfloat16():
    """float32 sums of 512 products are right to about 1e-6; inputs with 8 bits of mantissa to about 2^-9."""
    assert rounding("default") < 2e-6
    x, w = gemm._matrices(64, 512, 128)
    exact = x.double() @ w.double()
    rounded = x.bfloat16().double() @ w.bfloat16().double()
    assert float((rounded - exact).abs().max() / exact.abs().max()) > 2**-12
    assert 0.1 < speedup("onednn") < 20


def test_one_thread_inside_and_as_many_as_before_behind(monkeypatch):
    """What is timed is timed so: two threads that wait for each other would time other work on the machine."""
    before, seen = torch.get_num_threads(), []
    multiply = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *args: (seen.append(torch.get_num_threads()), multiply(*args))[1])
    speedup("onednn")
    assert set(seen) == {1}
    with pytest.raises(RuntimeError), gemm.one_thread():
        raise RuntimeError
    assert torch.get_num_threads() == before
