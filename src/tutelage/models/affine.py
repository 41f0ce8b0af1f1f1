"""Linear layers as functions of their input, for sampling: adapters merged, and multiplied whichever way is faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from tutelage.models import fused
from tutelage.models.gemm import in_use
from tutelage.models.lora import merged_weight
from tutelage.models.rough import Precision, rough_affine

Affine = Callable[[Tensor], Tensor]


def together(parts: Sequence[Affine]) -> Affine:
    """Several linear layers of one input, their outputs side by side; in columns as one product, whose weights are copied.

    Few outputs are multiplied slowly: one product of 960 takes 0.85 of the time of 576, 192 and 192.
    """
    products = [part for part in parts if isinstance(part, Product)]
    biased = [part.bias is not None for part in products]
    like = parts[0].weight[:0] if isinstance(parts[0], Product) else None
    if like is None or len(products) < len(parts) or any(biased) != all(biased) or not in_columns(like):
        return lambda x: torch.cat([part(x) for part in parts], dim=1)
    bias = torch.cat([part.bias for part in products if part.bias is not None]) if all(biased) else None
    return Product(torch.cat([part.weight for part in products]), bias)


def affine(layer: nn.Module, merge: bool, precision: Precision = "exact") -> Affine:
    """A linear layer as a function of its input; with `merge`, float32 (or wider) weights with the active adapters added in.

    In fewer bits the adapters are always added in, in float32, before anything is rounded.
    """
    adapted = isinstance(layer, LoraLayer)
    base = cast(nn.Linear, cast(Any, layer).base_layer if adapted else layer)
    on = isinstance(layer, LoraLayer) and not layer.disable_adapters and not layer.merged and layer.active_adapters
    if precision != "exact":
        weight = merged_weight(cast(LoraLayer, layer)) if on else base.weight
        return rough_affine(weight.float(), base.bias, precision)
    if not on:
        return base if base.weight.dtype != torch.float32 else Product(base.weight, base.bias)
    if not merge or base.weight.dtype not in (torch.float32, torch.float64):
        return layer  # summed in bfloat16 a small adapter would be rounded away
    return Product(merged_weight(cast(LoraLayer, layer)), base.bias)


@dataclass(frozen=True)
class Product:
    """x W^T + b; multiplied as W x^T where that is faster, and then one token's numbers stand a column apart."""

    weight: Float[Tensor, "O I"]
    bias: Float[Tensor, "O"] | None

    def __call__(self, x: Float[Tensor, "N I"]) -> Float[Tensor, "N O"]:
        """In columns where they are."""
        if not in_columns(x):
            return nn.functional.linear(x, self.weight, self.bias)
        if fused.multiplies(self.weight, x.t()):
            out = fused.product(self.weight, x.t())
            return (out if self.bias is None else out.add_(self.bias[:, None])).t()
        if self.bias is None:
            return torch.mm(self.weight, x.t()).t()
        return torch.addmm(self.bias[:, None], self.weight, x.t()).t()


def in_columns(x: Tensor) -> bool:
    """Whether few rows are multiplied faster as W x^T: with oneDNN, 1.2 to 1.5 times at 64 rows; with MKL it is no gain.

    The weights are read as they lie; x W^T would read them transposed. The compiled kernels want columns too.
    """
    return fused.fits(x) or (x.device.type == "cpu" and x.dtype == torch.float32 and in_use() == "onednn")
