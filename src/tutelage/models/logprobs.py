"""Sequences in, [B, T] numbers out: log-probs, entropies, values and scores, aligned once for the whole house.

Column t speaks of answer token t given everything before it; the shift by one happens in `packing.pack` and nowhere else.
The head is applied only where a label is, in fp32, in chunks whose logits are never kept: memory does not grow with
vocabulary times length.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tutelage.data.batch import Sequences
from tutelage.data.sampled import Sampled
from tutelage.models.packing import backbone_of, micro_batches, pack, packed_hidden, padded_hidden, unsupported

CHUNK = 512
"""Labels whose logits exist at the same time: 512 x 49,152 x 4 B = 96 MiB."""
Temperature = float | Float[Tensor, "N"]
"""One for all labels, or one a label."""


class _LabelHead(torch.autograd.Function):
    """log p and entropy at the labels from hidden states and the head's weight; backward makes the logits anew."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, temperature: Temperature
    ) -> tuple[Tensor, Tensor]:
        logp, entropy, norm = (hidden.new_empty(len(labels)) for _ in range(3))
        for at in range(0, len(labels), CHUNK):
            rows = slice(at, at + CHUNK)
            logits = (hidden[rows] @ weight.T).div_(at_rows(temperature, rows))
            norm[rows] = logits.logsumexp(-1)
            logp[rows] = logits.gather(-1, labels[rows, None])[:, 0] - norm[rows]
            entropy[rows] = norm[rows] - (logits * (logits - norm[rows, None]).exp_()).sum(-1)
        ctx.save_for_backward(hidden, weight, labels, norm, entropy)
        ctx.temperature = temperature
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, labels, norm, entropy = ctx.saved_tensors
        grad_logp, grad_entropy = grads
        into_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        into_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for at in range(0, len(labels), CHUNK):
            rows = slice(at, at + CHUNK)
            logp = (hidden[rows] @ weight.T).div_(at_rows(ctx.temperature, rows)).sub_(norm[rows, None])
            p = logp.exp()
            # d logp(label) / d logit = onehot - p;  d entropy / d logit = -p (log p + entropy)
            slope = logp.add_(entropy[rows, None]).mul_(-grad_entropy[rows, None]).sub_(grad_logp[rows, None]).mul_(p)
            slope.scatter_add_(1, labels[rows, None], grad_logp[rows, None]).div_(at_rows(ctx.temperature, rows))
            if into_hidden is not None:
                into_hidden[rows] = slope @ weight
            if into_weight is not None:
                into_weight.addmm_(slope.T, hidden[rows])
        return into_hidden, into_weight, None, None


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


def states_logprobs(
    model: nn.Module, states: Float[Tensor, "N D"], answers: Sequences, temperature: float
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """The same for the N trained tokens of `answers`, each at the temperature it was drawn at, else at `temperature`."""
    return label_logprobs(
        model, states, answers.tokens[answers.mask], drawn_at(answers, temperature, exact(states[:0]))
    )


def drawn_at(answers: Sequences, default: float, like: Tensor) -> Temperature:
    """The temperature of each trained token of `Sampled` rows, in the precision of `like`; else `default` for all."""
    if not isinstance(answers, Sampled):
        return default
    return like.new_tensor(answers.temperature)[:, None].expand(answers.mask.shape)[answers.mask]


def forward_hidden(model: nn.Module, batch: Sequences, plain: bool = False) -> tuple[Float[Tensor, "N D"], Any]:
    """Hidden states of a batch and where each row reads them: packed where the model can, padded rows where it cannot."""
    backbone = backbone_of(model)
    if plain or unsupported(backbone.config, backbone):
        return padded_hidden(backbone, batch)
    packed = pack(batch)
    return packed_hidden(backbone, packed), packed


@dataclass(frozen=True)
class CausalModel:
    """A Hugging Face causal model as the methods see it.

    `temperature` is the one answers are sampled at: training divides by it too (`Sampled` rows bring their own). `context`
    enters for each forward (a LoRA reference is the same module with its adapter off). Without gradient a whole batch is
    cut to `tokens_per_pass`.
    """

    module: nn.Module
    temperature: float = 1.0
    context: Callable[[nn.Module], Any] | None = None
    tokens_per_pass: int = 2048
    plain: bool = False

    def logprobs(self, answers: Sequences) -> Float[Tensor, "B T"]:
        """log p(token t | all before it); 0 where `mask` is False."""
        return self.logprobs_and_entropy(answers)[0]

    def logprobs_and_entropy(self, answers: Sequences) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """The same and the entropy of the distribution each token was drawn from."""
        logp, entropy = in_pieces(self._measure, answers, self.tokens_per_pass)
        return logp, entropy

    def _measure(self, answers: Sequences) -> tuple[Tensor, Tensor]:
        with self.context(self.module) if self.context else nullcontext():
            hidden, layout = forward_hidden(self.module, answers, self.plain)
            states = hidden[layout.before[answers.mask]]
            logp, entropy = states_logprobs(self.module, states, answers, self.temperature)
        empty = torch.zeros(answers.tokens.shape, dtype=logp.dtype, device=logp.device)
        return empty.masked_scatter(answers.mask, logp), empty.masked_scatter(answers.mask, entropy)


@dataclass(frozen=True)
class HeadedModel:
    """A backbone with a head hidden -> 1, read before each token (values) or at the last one (scores)."""

    module: Any
    """A module with a `backbone` and a `head`, such as `models.heads.ScalarModel`."""
    tokens_per_pass: int = 2048
    plain: bool = False

    def values(self, answers: Sequences) -> Float[Tensor, "B T"]:
        """V in the state that answer token t is chosen in; 0 where `mask` is False."""

        def measure(rows: Sequences) -> tuple[Tensor]:
            hidden, layout = forward_hidden(self.module.backbone, rows, self.plain)
            read = self.module.head(hidden[layout.before[rows.mask]]).squeeze(-1)
            return (
                torch.zeros(rows.tokens.shape, dtype=read.dtype, device=read.device).masked_scatter(rows.mask, read),
            )

        return in_pieces(measure, answers, self.tokens_per_pass)[0]

    def scores(self, answers: Sequences) -> Float[Tensor, "B"]:
        """One score a row, at its last real token."""
        return in_pieces(lambda rows: (self.module.head(self._last(rows)).squeeze(-1),), answers, self.tokens_per_pass)[
            0
        ]

    def features(self, answers: Sequences) -> Float[Tensor, "B D"]:
        """What the head reads to score a row: the hidden state of its last real token."""
        return in_pieces(lambda rows: (self._last(rows),), answers, self.tokens_per_pass)[0]

    def _last(self, rows: Sequences) -> Float[Tensor, "B D"]:
        hidden, layout = forward_hidden(self.module.backbone, rows, self.plain)
        return hidden[layout.last]


def in_pieces(measure: Callable[[Sequences], tuple[Tensor, ...]], batch: Sequences, tokens: int) -> tuple[Tensor, ...]:
    """With gradient, the batch as it is (the loop has cut it); without, in pieces of at most `tokens` packed tokens."""
    if torch.is_grad_enabled() or len(batch) == 0:
        return measure(batch)
    pieces = micro_batches(batch, tokens)
    results = [measure(batch[piece]) for piece in pieces]
    order = torch.argsort(torch.cat(pieces)).to(batch.tokens.device)
    return tuple(torch.cat(column)[order] for column in zip(*results, strict=True))
