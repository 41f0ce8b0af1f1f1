"""Logits at the labels and nowhere else, in fp32, in chunks that are never kept: log p and entropy of each label.

Memory does not grow with vocabulary times length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK = 512
"""Labels whose logits exist at the same time: 512 x 49,152 x 4 B = 96 MiB."""
Temperature = float | Float[Tensor, "N"]
"""One for all labels, or one a label."""


class _LabelHead(torch.autograd.Function):
    """log p and entropy at the labels from hidden states and the head's weight.

    Logits are made anew in backward. Where the weight is frozen (an adapter is trained) they need not be: the gradient of
    each log p is one row, W[label] - p W, made in forward while p is there.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, temperature: Temperature
    ) -> tuple[Tensor, Tensor]:
        logp, entropy, norm = (hidden.new_empty(len(labels)) for _ in range(3))
        frozen = ctx.needs_input_grad[0] and not ctx.needs_input_grad[1]
        slopes = torch.empty_like(hidden) if frozen else None
        for at in range(0, len(labels), CHUNK):
            rows = slice(at, at + CHUNK)
            logits = _cooled(hidden[rows] @ weight.T, temperature, rows)
            p = logits.softmax(-1)  # its own exp is the fastest one; the likeliest token gives the norm
            norm[rows] = logits.amax(-1) - p.amax(-1).log()
            logp[rows] = logits.gather(-1, labels[rows, None])[:, 0] - norm[rows]
            entropy[rows] = norm[rows] - torch.einsum("nv,nv->n", p, logits)
            if slopes is not None:
                slopes[rows] = _cooled(weight[labels[rows]] - p @ weight, temperature, rows)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, labels, norm, entropy, slopes)
        ctx.temperature = temperature
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, labels, norm, entropy, slopes = ctx.saved_tensors
        grad_logp, grad_entropy = grads
        if grad_logp is None:
            grad_logp = torch.zeros_like(norm)
        if slopes is not None and grad_entropy is None:
            return grad_logp[:, None] * slopes, None, None, None
        into_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        into_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for at in range(0, len(labels), CHUNK):
            rows = slice(at, at + CHUNK)
            logits = _cooled(hidden[rows] @ weight.T, ctx.temperature, rows)
            slope = logits.softmax(-1)
            # d logp(label) / d logit = onehot - p;  d entropy / d logit = -p (log p + entropy)
            if grad_entropy is None:
                slope.mul_(-grad_logp[rows, None])
            else:
                shift = logits.add_((entropy - norm)[rows, None]).mul_(grad_entropy[rows, None])
                slope.mul_(shift.add_(grad_logp[rows, None]).neg_())
            slope.scatter_add_(1, labels[rows, None], grad_logp[rows, None])
            slope = _cooled(slope, ctx.temperature, rows)
            if into_hidden is not None:
                into_hidden[rows] = slope @ weight
            if into_weight is not None:
                into_weight.addmm_(slope.T, hidden[rows])
        return into_hidden, into_weight, None, None


def _cooled(x: Float[Tensor, "n D"], temperature: Temperature, rows: slice) -> Float[Tensor, "n D"]:
    """x divided by the temperature of its rows, in place."""
    return x if isinstance(temperature, float) and temperature == 1 else x.div_(at_rows(temperature, rows))


def _plain_head(
    head: Callable[[Tensor], Tensor], hidden: Tensor, labels: Tensor, temperature: Temperature
) -> tuple[Tensor, Tensor]:
    """The same through any head (biased, adapted, soft-capped): chunks recomputed in backward by checkpointing."""

    def chunk(h: Tensor, y: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        logp = (exact(head(h)) / at_rows(temperature, rows)).log_softmax(-1)
        return logp.gather(-1, y[:, None])[:, 0], -(logp.exp() * logp).sum(-1)

    parts = [
        checkpoint(chunk, hidden[rows], labels[rows], rows, use_reentrant=False)
        for rows in (slice(at, at + CHUNK) for at in range(0, len(labels), CHUNK))
    ]
    return torch.cat([logp for logp, _ in parts]), torch.cat([entropy for _, entropy in parts])


def at_rows(temperature: Temperature, rows: slice) -> float | Tensor:
    """The temperature as a factor of the logits [rows, V]."""
    return temperature[rows, None] if isinstance(temperature, Tensor) else temperature


def exact(x: Tensor) -> Tensor:
    """In fp32; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def head_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Hidden states -> logits as the model itself makes them (final soft-cap and logit scale included)."""
    whole: Any = model
    inner = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
    head = inner.get_output_embeddings()
    cap = getattr(inner.config, "final_logit_softcapping", None)
    scale = getattr(inner.config, "logit_scale", None)
    if inner.config.model_type.startswith("granite"):
        scale = 1 / inner.config.logits_scaling
    if cap is None and scale is None:
        return head
    return lambda hidden: _post_process(head(hidden), cap, scale)


def plain_weight(head: Callable[[Tensor], Tensor]) -> Float[Tensor, "V D"] | None:
    """The weight of a head that is nothing but a product, None for any other (biased, adapted, soft-capped)."""
    return head.weight if type(head) is nn.Linear and head.bias is None else None


def _post_process(logits: Tensor, cap: float | None, scale: float | None) -> Tensor:
    logits = logits * scale if scale is not None else logits
    return logits if cap is None else torch.tanh(logits / cap) * cap


def label_logprobs(
    model: nn.Module, hidden: Float[Tensor, "N D"], labels: Int[Tensor, "N"], temperature: Temperature
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """log p(label) and the entropy of its distribution at `temperature`, fp32 (float64 models stay in float64)."""
    head = head_of(model)
    if not len(labels):
        nothing = hidden[:0].sum(-1)  # of the graph still: a loss over masked rows alone has a gradient, which is 0
        return nothing, nothing
    weight = plain_weight(head)
    if weight is not None:
        return _LabelHead.apply(exact(hidden), exact(weight), labels, temperature)  # type: ignore[return-value]
    return _plain_head(head, hidden, labels, temperature)
