"""Logits at the labels and nowhere else, in fp32, in pieces that are never kept: log p and entropy of each label.

Memory does not grow with vocabulary times length, but for a few numbers a label for each `WORDS` tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tutelage.models.matrix_products import by_columns, by_rows, by_tokens, takes

CHUNK = 512
"""Labels whose logits over the whole vocabulary exist at the same time: 512 x 49,152 x 4 B = 96 MiB."""
ROWS, WORDS = 1024, 8192
"""Labels and tokens of the vocabulary of one piece on a CPU: 32 MiB. From 4 to 96 MiB a quiet machine takes the same time
within 5 %; on a busy one many small pieces take longer, as threads wait for each other at the end of each operation."""
Temperature = float | Float[Tensor, "N"]
"""One for all labels, or one a label."""


class _LabelHead(torch.autograd.Function):
    """log p and entropy at the labels from hidden states and the head's weight.

    The softmax is taken over each part of the vocabulary alone, and the parts are joined by the share of each.
    Logits are made anew in backward. Where the weight is frozen (an adapter is trained) they need not be: the gradient of
    each log p is one row, W[label] - p W, made in forward while p is there.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, temperature: Temperature
    ) -> tuple[Tensor, Tensor]:
        cooled = _cooled(hidden, temperature)  # and not the logits: V / D times as many
        parts, pieces, (room, more) = _pieces(cooled, weight)
        at_label = torch.empty_like(cooled[:, 0])
        highest, peak, mean = cooled.new_empty(3, len(parts), len(labels))  # logit, its p within the part, mean logit
        frozen = ctx.needs_input_grad[0] and not ctx.needs_input_grad[1]
        slopes, so_far = (torch.zeros_like(cooled), torch.full_like(at_label, -torch.inf)) if frozen else (None, None)
        for part, words in enumerate(parts):
            for rows in pieces:
                logits = _logits(cooled[rows], weight[words], room)
                p = torch.softmax(logits, -1, out=_shaped(more, logits))  # its own exp is the fastest one
                highest[part, rows], peak[part, rows] = logits.amax(-1), p.amax(-1)
                here, column = _columns(labels[rows], words)
                at_label[rows] = torch.where(here, logits.gather(-1, column)[:, 0], at_label[rows])
                mean[part, rows] = logits.mul_(p).sum(-1)
                if slopes is not None and so_far is not None:
                    top = torch.maximum(so_far[rows], highest[part, rows])
                    p.mul_(((highest[part, rows] - top).exp_() / peak[part, rows])[:, None])  # exp(logit - top)
                    _add(slopes[rows].mul_((so_far[rows] - top).exp_()[:, None]), p, weight[words])
                    so_far[rows] = top
        # Differences of logits before anything else: norm - logit loses the digits that a large norm has no room for.
        log_sum = (highest - highest.amax(0)).sub_(peak.log_())
        share, above = log_sum.softmax(0), log_sum.logsumexp(0)
        norm = highest.amax(0) + above
        entropy = norm - mean.mul_(share).sum(0)
        if slopes is not None:
            slopes = _cooled(torch.sub(weight[labels], slopes.div_(above.exp_()[:, None]), out=slopes), temperature)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(cooled, weight, labels, share, norm, entropy, slopes)
        ctx.temperature = temperature
        return at_label - norm, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        cooled, weight, labels, share, norm, entropy, slopes = ctx.saved_tensors
        grad_logp, grad_entropy = grads
        if grad_logp is None:
            grad_logp = torch.zeros_like(norm)
        if slopes is not None and grad_entropy is None:
            return grad_logp[:, None] * slopes, None, None, None
        into_hidden = torch.zeros_like(cooled) if ctx.needs_input_grad[0] else None
        into_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        parts, pieces, (room, more) = _pieces(cooled, weight)
        for part, words in enumerate(parts):
            for rows in pieces:
                slope = logits = _logits(cooled[rows], weight[words], room)
                of_all = -share[part, rows, None]  # the softmax of a part is p but for its share, here with -p's sign
                # d logp(label) / d logit = onehot - p;  d entropy / d logit = -p (log p + entropy)
                if grad_entropy is None:
                    torch.softmax(logits, -1, out=slope).mul_(of_all * grad_logp[rows, None])
                else:
                    slope = torch.softmax(logits, -1, out=_shaped(more, logits)).mul_(of_all)
                    shift = logits.add_((entropy - norm)[rows, None]).mul_(grad_entropy[rows, None])
                    slope.mul_(shift.add_(grad_logp[rows, None]))
                here, column = _columns(labels[rows], words)
                slope.scatter_add_(1, column, (grad_logp[rows] * here)[:, None])
                if into_hidden is not None:
                    _add(into_hidden[rows], slope, weight[words])
                if into_weight is not None:
                    _add_across(into_weight[words], slope, cooled[rows], first=rows.start == 0)
        return None if into_hidden is None else _cooled(into_hidden, ctx.temperature), into_weight, None, None


def _pieces(hidden: Float[Tensor, "N D"], weight: Float[Tensor, "V D"]) -> tuple[list[slice], list[slice], Tensor]:
    """Parts of the vocabulary, pieces of the labels (of one size), and room for two products of a piece and a part.

    Parts are for the room they save on a CPU; elsewhere one part is the whole vocabulary, and launches are few.
    """
    words, rows = (WORDS, ROWS) if hidden.device.type == "cpu" else (len(weight), CHUNK)
    rows = -(-len(hidden) // -(-len(hidden) // rows))
    parts = [slice(at, min(at + words, len(weight))) for at in range(0, len(weight), words)]
    pieces = [slice(at, min(at + rows, len(hidden))) for at in range(0, len(hidden), rows)]
    return parts, pieces, hidden.new_empty(2, rows * min(words, len(weight)))


def _logits(hidden: Float[Tensor, "n D"], weight: Float[Tensor, "v D"], room: Float[Tensor, "R"]) -> Tensor:
    """hidden W^T [n, v] in `room`."""
    out = room[: len(hidden) * len(weight)].view(len(hidden), len(weight))
    return by_rows(hidden, weight, out) if takes(hidden, weight) else torch.mm(hidden, weight.T, out=out)


def _add(total: Float[Tensor, "n D"], slope: Float[Tensor, "n v"], weight: Float[Tensor, "v D"]) -> None:
    """total += slope W."""
    if takes(slope, weight):
        total += by_columns(slope, weight)
    else:
        total.addmm_(slope, weight)


def _add_across(
    total: Float[Tensor, "v D"], slope: Float[Tensor, "n v"], hidden: Float[Tensor, "n D"], *, first: bool
) -> None:
    """total += slope^T hidden; what was there before the `first` does not count."""
    if not takes(slope, total):
        total.addmm_(slope.T, hidden, beta=float(not first))
    elif first:
        by_tokens(slope, hidden, total)
    else:
        total += by_tokens(slope, hidden)


def _shaped(room: Float[Tensor, "R"], like: Float[Tensor, "n v"]) -> Float[Tensor, "n v"]:
    return room[: like.numel()].view_as(like)


def _columns(labels: Int[Tensor, "n"], words: slice) -> tuple[Tensor, Tensor]:
    """Which labels lie in this part of the vocabulary [n], and in which of its columns [n, 1]; any where they do not."""
    here = (labels >= words.start) & (labels < words.stop)
    return here, (labels - words.start).clamp_(0, words.stop - words.start - 1)[:, None]


def _cooled(x: Float[Tensor, "N D"], temperature: Temperature) -> Float[Tensor, "N D"]:
    """x divided by the temperature of its rows."""
    return x if isinstance(temperature, float) and temperature == 1 else x / at_rows(temperature, slice(None))


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
