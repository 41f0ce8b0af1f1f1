"""Linear layers in fewer bits, for sampling only: int8 or bfloat16 products of weights that are trained in float32.

Answers sampled so are not quite the policy's: their log-probs say what they were drawn from, and training has to correct for
the difference (`algorithms.corrected`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Precision = Literal["exact", "bfloat16", "int8"]
"""What the linear layers of a sampler multiply in; the head, attention and norms stay exact."""
LEVELS = 127
"""int8 weights and inputs are multiples -127 .. 127 of a scale."""


def rough_affine(
    weight: Float[Tensor, "O I"], bias: Float[Tensor, "O"] | None, precision: Precision
) -> Callable[[Float[Tensor, "N I"]], Float[Tensor, "N O"]]:
    """x W^T + b with a copy of the weights in `precision`; the output has the precision of x."""
    assert precision != "exact"
    return _bfloat16(weight, bias) if precision == "bfloat16" else _int8(weight, bias)


def _bfloat16(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    narrow = weight.bfloat16()

    def forward(x: Tensor) -> Tensor:
        out = torch.nn.functional.linear(x.bfloat16(), narrow).to(x.dtype)
        return out if bias is None else out + bias

    return forward


def _int8(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """A scale for each output of the weight and for each row of the input (LLM.int8's vector-wise one, arXiv:2208.07339)."""
    whole, scale = quantized(weight)
    whole, scale = whole.T.contiguous(), scale.T

    def forward(x: Tensor) -> Tensor:
        rows, of_row = quantized(x)
        out = torch._int_mm(rows, whole).to(x.dtype).mul_(of_row).mul_(scale)
        return out if bias is None else out.add_(bias)

    return forward


def quantized(x: Float[Tensor, "N I"]) -> tuple[Int[Tensor, "N I"], Float[Tensor, "N 1"]]:
    """Whole numbers and a scale for each row whose product is `x`, to half a scale; a row of zeros has scale 1 / 127."""
    largest = x.abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest, 1.0) / LEVELS
    return (x / scale).round_().to(torch.int8), scale
