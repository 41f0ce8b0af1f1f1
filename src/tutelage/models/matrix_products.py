"""A training step's products on a processor's matrix unit, in float32's precision: x W^T, and its gradients g W and g^T x.

Each is one product of the kernel in `tile_kernel`, which reads rows as they are and columns from tiles. What stands the other
way is exchanged first: of x W^T the weights, on their way into tiles, of g^T x the gradient, in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tutelage.models import gemm
from tutelage.models.compiled import MATRIX_UNIT, TRANSPOSE, compiled
from tutelage.models.fused import address, planes, run

MOST_ROWS = 320
"""That a thread takes at once."""
TURNS = 2
"""A thread takes rows at least so many times."""


def takes(x: Float[Tensor, "T K"], weight: Float[Tensor, "N K"]) -> bool:
    """Whether the matrix unit multiplies now, and takes these: float32 in whole tiles, with rows for one at least."""
    deep = compiled(MATRIX_UNIT).DEEP if gemm.in_use() == "amx" else 0
    return (
        deep > 0
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and type(weight) in (Tensor, nn.Parameter)
        and weight.is_contiguous()
        and len(x) >= deep
        and not weight.shape[0] % deep
        and not weight.shape[1] % deep
    )


def by_rows(x: Float[Tensor, "T K"], weight: Float[Tensor, "N K"], out: Tensor | None = None) -> Float[Tensor, "T N"]:
    """x W^T."""
    columns, depth = weight.shape
    tiles = planes(depth, columns)
    run(compiled(TRANSPOSE).split_transposed, depth, columns, address(weight), address(tiles))
    return _product(x, tiles, columns, out)


def by_columns(x: Float[Tensor, "T N"], weight: Float[Tensor, "N K"]) -> Float[Tensor, "T K"]:
    """x W."""
    depth, columns = weight.shape
    tiles = planes(depth, columns)
    run(compiled(MATRIX_UNIT).split, depth, columns, address(weight), address(tiles))
    return _product(x, tiles, columns, None)


def by_tokens(x: Float[Tensor, "T N"], y: Float[Tensor, "T K"], out: Tensor | None = None) -> Float[Tensor, "N K"]:
    """x^T y."""
    kernels, (rows, columns), over = compiled(MATRIX_UNIT), y.shape, x.contiguous()
    deep = -(-rows // kernels.DEEP) * kernels.DEEP
    turned, tiles, whole = y.new_empty(x.shape[1], deep), planes(deep, columns), rows // kernels.DEEP * kernels.DEEP
    run(compiled(TRANSPOSE).transpose, rows, x.shape[1], address(over), address(turned), deep)
    y = y.contiguous()
    run(kernels.split, whole, columns, address(y), address(tiles))
    if whole < rows:
        rest = y.new_zeros(kernels.DEEP, columns)
        rest[: rows - whole] = y[whole:]
        run(kernels.split, kernels.DEEP, columns, address(rest), address(tiles[whole * columns * kernels.PARTS // 2 :]))
    return _product(turned, tiles, columns, out)


def _product(x: Float[Tensor, "T K"], tiles: Tensor, columns: int, out: Tensor | None) -> Float[Tensor, "T N"]:
    x = x.contiguous()
    rows, depth = x.shape
    out = x.new_empty(rows, columns) if out is None else out
    kernels, places = compiled(MATRIX_UNIT), (address(x), address(tiles), address(out))
    run(kernels.product, rows, depth, columns, *places, _unit(rows, kernels.UNIT), 0)
    return out


def _unit(rows: int, tile: int) -> int:
    """Rows that a thread takes at once."""
    threads = torch.get_num_threads()
    each = -(-rows // (threads * max(TURNS, -(-rows // (threads * MOST_ROWS)))))
    return -(-each // tile) * tile


class _Linear(torch.autograd.Function):
    """x W^T with its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return by_rows(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        into_x = by_columns(grad, weight) if ctx.needs_input_grad[0] else None
        return into_x, None if x is None else by_tokens(grad, x)


def linear(module: nn.Linear, x: Float[Tensor, "*T K"]) -> Float[Tensor, "*T N"]:
    """What the module computes."""
    rows = x.reshape(-1, x.shape[-1])
    if not takes(rows, module.weight):
        return nn.functional.linear(x, module.weight, module.bias)
    out = _Linear.apply(rows, module.weight).view(*x.shape[:-1], -1)  # type: ignore[attr-defined]
    return out if module.bias is None else out + module.bias


@contextmanager
def standing_in(model: nn.Module) -> Iterator[None]:
    """Inside, the model's linear layers multiply by the matrix unit, where it multiplies now.

    Not those of layers that are recomputed in the backward pass, which is outside.
    """
    layers: list[Any] = []
    if gemm.in_use() == "amx" and not any(getattr(each, "gradient_checkpointing", False) for each in model.modules()):
        layers = [each for each in model.modules() if type(each) is nn.Linear and "forward" not in vars(each)]
    for each in layers:
        each.forward = partial(linear, each)
    try:
        yield
    finally:
        for each in layers:
            del each.forward
