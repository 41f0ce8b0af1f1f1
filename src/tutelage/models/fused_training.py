"""Norm, rotary positions and gate of a training pass as functions with a gradient, by the compiled kernels.

Float32 on a CPU, rows of contiguous numbers. Of a norm the root of each token is kept for the backward pass, of a gate what
went in: half of what PyTorch's operations keep.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from tutelage.models.fused import address, bits, compiled, run

MODULE = "training_kernels"


class _Norm(torch.autograd.Function):
    """(total, total weight / sqrt(mean(total^2) + eps)); without `plus` x is the total, and it is not returned."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plus: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor | None, Tensor]:  # type: ignore[override]
        x, plus = x.contiguous(), None if plus is None else plus.contiguous()
        total, out, root = x if plus is None else torch.empty_like(x), torch.empty_like(x), x.new_empty(len(x))
        added = 0 if plus is None else address(plus)
        places = address(x), added, address(total), address(out), address(weight), address(root)
        run(compiled(MODULE).norm, x.shape[1], len(x), bits(eps), *places)
        ctx.save_for_backward(total, weight, root)
        ctx.set_materialize_grads(False)
        ctx.added = plus is not None
        return None if plus is None else total, out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, beside: Tensor | None, grad: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        total, weight, root = ctx.saved_tensors
        if grad is None:
            return beside, beside if ctx.added else None, None, None
        grad, beside = grad.contiguous(), None if beside is None else beside.contiguous()
        into_x, parts = torch.empty_like(total), None
        if ctx.needs_input_grad[2]:
            parts = total.new_empty(-(-len(total) // compiled(MODULE).ROWS), total.shape[1])
        optional = (0 if each is None else address(each) for each in (beside, into_x, parts))
        places = address(total), address(grad), address(weight), address(root), *optional
        run(compiled(MODULE).norm_backward, total.shape[1], len(total), *places)
        return into_x, into_x if ctx.added else None, None if parts is None else parts.sum(0), None


class _Turn(torch.autograd.Function):
    """Heads first, [H, N, W], from [N, H, W]; in memory too with `by_head`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, by_head: bool) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        x = x if x.stride(2) == 1 else x.contiguous()
        count, heads, width = x.shape
        out = x.new_empty(heads, count, width) if by_head else x.new_empty(count, heads, width).transpose(0, 1)
        _turned(x, out.transpose(0, 1), (cos, sin), 1.0)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        heads, count, width = grad.shape
        out = grad.new_empty(count, heads, width)
        grad = grad if grad.stride(2) == 1 else grad.contiguous()
        _turned(grad.transpose(0, 1), out, ctx.saved_tensors, -1.0)
        return out, None, None, None


def _turned(x: Tensor, out: Tensor, angles: tuple[Tensor, ...], factor: float) -> None:
    """Both [N, H, W] with strides of their own, but for the last."""
    assert x.dtype == out.dtype == torch.float32
    count, heads, width = x.shape
    laid = (number for each in (x, out) for number in (each.data_ptr(), each.stride(0), each.stride(1)))
    run(compiled(MODULE).turn, count, heads, width // 2, bits(factor), *laid, *map(address, angles))


class _Gate(torch.autograd.Function):
    """silu(x) y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        x, y = x.contiguous(), y.contiguous()
        ctx.save_for_backward(x, y)
        out = torch.empty_like(x)
        run(compiled(MODULE).gate, x.numel(), *map(address, (x, y, out)))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, y = ctx.saved_tensors
        grad, into_x, into_y = grad.contiguous(), torch.empty_like(x), torch.empty_like(y)
        run(compiled(MODULE).gate_backward, x.numel(), *map(address, (x, y, grad, into_x, into_y)))
        return into_x, into_y


def added_norm(
    x: Float[Tensor, "N D"], plus: Float[Tensor, "N D"] | None, weight: Float[Tensor, "D"], eps: float
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]:
    """x + plus, and its root-mean-square norm (arXiv:1910.07467)."""
    total, out = _Norm.apply(x, plus, weight, eps)  # type: ignore[misc]
    return x if total is None else total, out


def turned(
    x: Float[Tensor, "N H W"], cos: Float[Tensor, "N W"], sin: Float[Tensor, "N W"], by_head: bool
) -> Float[Tensor, "H N W"]:
    """Rotary positions (arXiv:2104.09864): pairs (i, i + W/2) by the angles, alike in both halves; `by_head`: copied apart."""
    return _Turn.apply(x, cos, sin, by_head)  # type: ignore[return-value]


def gated(x: Float[Tensor, "N I"], y: Float[Tensor, "N I"]) -> Float[Tensor, "N I"]:
    """silu(x) y (arXiv:2002.05202)."""
    return _Gate.apply(x, y)  # type: ignore[return-value]
