"""Two libraries multiply float32 matrices: the choice needs both speed and float32's result."""

from __future__ import annotations

import pytest
import torch

from tutelage.models import gemm
from tutelage.models.gemm import choose_gemm, multiplying, rounding, speedup

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("error", "faster", "chosen"),
    [(1e-6, 2.0, "onednn"), (4e-3, 2.0, "default"), (1e-6, 1.05, "default")],
    ids=["exact and fast", "rounds to bfloat16", "no faster"],
)
def test_auto_wants_speed_and_float32(monkeypatch, error, faster, chosen):
    monkeypatch.setattr(gemm, "rounding", lambda which: error)
    monkeypatch.setattr(gemm, "speedup", lambda: faster)
    assert choose_gemm("auto", CPU) == chosen
    assert choose_gemm("onednn", CPU) == "onednn"
    assert choose_gemm("default", CPU) == "default"
    assert choose_gemm("auto", torch.device("cuda")) == "default"


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="'mkl'; allowed: auto, default, onednn"):
        choose_gemm("mkl", CPU)
    with pytest.raises(ValueError, match="on CPUs only"):
        choose_gemm("onednn", torch.device("cuda"))


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
    assert 0.1 < speedup() < 20
