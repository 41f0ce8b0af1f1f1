"""The forward of a Llama-like decoder over a packed line, to train it on a CPU: transformers' layers, in few operations.

Embeddings, linear layers (with their adapters) and positions are the model's own modules; norms with the addition before
them, the turn of queries and keys, and the gate are the compiled kernels'. Any other model, and any other device, runs as
transformers runs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from tutelage.models.attention import Look
from tutelage.models.fused import fits
from tutelage.models.fused_training import added_norm, gated, turned

LLAMA_LIKE = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model")
"""transformers' decoders that are norm, attention, norm, gated MLP, with rotary positions on whole heads."""


class Layout(Protocol):
    """Who sees whom: a packed line, the decoder's prompts, or its next step."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, look: Look) -> Tensor:
        """See `packing.Packed.attend`."""
        ...


def windowed(config: PretrainedConfig, layer: int) -> bool:
    """Whether a layer sees only the last tokens, by the model's settings: its attention must then be told the window."""
    kinds = getattr(config, "layer_types", None)
    if config.model_type == "llama":
        return False  # whatever its settings say, transformers' Llama has no window
    if kinds:
        return kinds[layer] == "sliding_attention"
    return getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)


def llama_like(backbone: PreTrainedModel) -> bool:
    """Whether it is one of transformers' own."""
    return type(backbone).__name__ in LLAMA_LIKE and type(backbone).__module__.startswith("transformers.")


def runs_here(backbone: PreTrainedModel) -> bool:
    """Whether `forward` can stand for the model's own now: all of it float32 on a CPU, and nothing that it passes by watched."""
    inner: Any = backbone
    return (
        llama_like(backbone)
        and fits(inner.norm.weight)
        and all(parameter.dtype == torch.float32 for parameter in inner.parameters())
        and inner.config.hidden_act == "silu"
        and not (inner.training and inner.config.attention_dropout)
        and "forward" not in vars(inner)
        and not any(map(_watched, _passed_by(inner)))
    )


def _passed_by(inner: Any) -> Iterator[nn.Module]:
    """The modules whose work `forward` does without calling them."""
    yield inner.norm
    for layer in inner.layers:
        norms = (getattr(layer.self_attn, name, None) for name in ("q_norm", "k_norm"))
        yield from (layer, layer.input_layernorm, layer.self_attn, layer.post_attention_layernorm, layer.mlp)
        yield from (norm for norm in norms if norm is not None)


def _watched(module: Any) -> bool:
    """Hooked to (FSDP gathers weights so), recomputed in the backward pass, or with a forward of its own."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(hooks) or getattr(module, "gradient_checkpointing", False) or "forward" in vars(module)


@contextmanager
def standing_in(backbone: PreTrainedModel) -> Iterator[None]:
    """Inside, a call of `backbone` on a packed line runs `forward`: what is hooked to the whole of it still sees the call."""
    inner: Any = backbone

    def stand_in(input_ids: Tensor, position_ids: Tensor, layout: Layout, **_: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=forward(backbone, input_ids, position_ids, layout)[None])  # type: ignore[arg-type]

    inner.forward = stand_in
    try:
        yield
    finally:
        del inner.forward


def forward(
    backbone: PreTrainedModel, ids: Int[Tensor, "1 N"], positions: Int[Tensor, "1 N"], layout: Layout
) -> Float[Tensor, "N D"]:
    """The last hidden state of every token of a line."""
    inner: Any = backbone
    x, plus = inner.embed_tokens(ids)[0], None
    angles = tuple(angle[0].contiguous() for angle in inner.rotary_emb(x[None], position_ids=positions))
    for number, layer in enumerate(inner.layers):
        attention = layer.self_attn
        x, normed = _norm(layer.input_layernorm, x, plus)
        window = inner.config.sliding_window if windowed(inner.config, number) else None
        seen = layout.attend(number, *_asked(attention, normed, angles), Look(attention.scaling, window))
        x, normed = _norm(layer.post_attention_layernorm, x, attention.o_proj(seen[0].flatten(1)))
        plus = layer.mlp.down_proj(gated(layer.mlp.gate_proj(normed), layer.mlp.up_proj(normed)))
    return _norm(inner.norm, x, plus)[1]


def _asked(attention: Any, x: Float[Tensor, "N D"], angles: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [1, H, N, W], keys and values [1, K, N, W]."""
    query, key, value = (
        getattr(attention, f"{name}_proj")(x).unflatten(1, (-1, attention.head_dim)) for name in ("q", "k", "v")
    )
    if getattr(attention, "q_norm", None) is not None:
        query, key = (_of_heads(norm, x) for norm, x in ((attention.q_norm, query), (attention.k_norm, key)))
    cos, sin = angles
    return (
        turned(query, cos, sin, by_head=False)[None],
        turned(key, cos, sin, by_head=True)[None],  # many blocks read them
        value.transpose(0, 1)[None],
    )


def _of_heads(norm: nn.Module, x: Float[Tensor, "N H W"]) -> Float[Tensor, "N H W"]:
    return _norm(norm, x.flatten(0, 1), None)[1].view(x.shape)


def _norm(norm: Any, x: Float[Tensor, "N D"], plus: Float[Tensor, "N D"] | None) -> tuple[Tensor, Tensor]:
    return added_norm(x, plus, norm.weight, norm.variance_epsilon)
