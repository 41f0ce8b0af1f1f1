"""The forward of a decoder in few operations, for sampling: what transformers computes, without what it does around it.

While sampling the weights stand still. Adapters are merged once instead of multiplied at every token, each head reads a
float32 copy made once, and Llama-like decoders run layer by layer from here; any other model runs as transformers runs it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast

import torch
from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import rotate_half

from tutelage.models.attention import Look
from tutelage.models.gemm import in_use
from tutelage.models.label_head import exact, head_of, plain_weight
from tutelage.models.lora import merged_weight
from tutelage.models.packing import backbone_of, packed_attention, windowed
from tutelage.models.rough import Precision, rough_affine

LLAMA_LIKE = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model")
"""transformers' decoders that are norm, attention, norm, gated MLP, with rotary positions on whole heads."""
MERGE_FROM = 16
"""New tokens from which on merging an adapter once is cheaper than multiplying by it at every token."""
Affine = Callable[[Tensor], Tensor]


class Layout(Protocol):
    """Who sees whom: the decoder's prompts or its next step."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, look: Look) -> Tensor:
        """See `packing.Packed.attend`."""
        ...


Hidden = Callable[[Tensor, Layout], Tensor]
"""Token ids and positions [2, N] and who sees whom -> last hidden states [N, D]."""


def hidden_states(model: nn.Module, tokens: int, precision: Precision = "exact") -> Hidden:
    """The fastest forward of `model`'s weights as they are now, adapters as they are switched now, for `tokens` steps.

    It must not outlive a change of the weights. Raises ValueError where linear layers in fewer bits are asked of a model
    that runs as transformers runs it.
    """
    backbone = backbone_of(model)
    if type(backbone).__name__ in LLAMA_LIKE and type(backbone).__module__.startswith("transformers."):
        return _llama_like(backbone, partial(affine, merge=tokens >= MERGE_FROM, precision=precision))
    if precision != "exact":
        raise ValueError(
            f"rollout precision {precision} is for {', '.join(LLAMA_LIKE)}; got {type(backbone).__name__}: use exact"
        )
    return _as_it_is(backbone)


def readout(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Hidden states [N, D] -> logits in float32 at least, as the model makes them: a product in float32, like the trainer's."""
    head = head_of(model)
    weight = plain_weight(head)
    if weight is None:
        return lambda hidden: exact(head(hidden))
    weight = exact(weight)
    return lambda hidden: nn.functional.linear(exact(hidden), weight)


def _as_it_is(backbone: PreTrainedModel) -> Hidden:
    def forward(line: Tensor, layout: Layout) -> Tensor:
        with packed_attention(backbone):
            out = backbone(input_ids=line[:1], position_ids=line[1:], use_cache=False, layout=layout)
        return out.last_hidden_state[0]

    return forward


def _llama_like(backbone: PreTrainedModel, linear: Callable[[nn.Module], Affine]) -> Hidden:
    inner: Any = backbone
    blocks = [_block(layer, number, inner, linear) for number, layer in enumerate(inner.layers)]

    def forward(line: Tensor, layout: Layout) -> Tensor:
        x = inner.embed_tokens(line[0])
        x = x.t().contiguous().t() if in_columns(x) else x
        cos, sin = (angle.squeeze(0) for angle in inner.rotary_emb(x, position_ids=line[1:]))
        for block in blocks:
            x = block(x, cos, sin, layout)
        return inner.norm(x)

    return forward


def _block(
    layer: Any, number: int, backbone: Any, linear: Callable[[nn.Module], Affine]
) -> Callable[[Tensor, Tensor, Tensor, Layout], Tensor]:
    """One layer: x + attention(norm(x)), then x + mlp(norm(x))."""
    attention, mlp = layer.self_attn, layer.mlp
    query, key, value, out = (linear(getattr(attention, f"{n}_proj")) for n in ("q", "k", "v", "o"))
    gate, up, down = (linear(getattr(mlp, f"{n}_proj")) for n in ("gate", "up", "down"))
    query_norm, key_norm = (getattr(attention, f"{n}_norm", None) for n in ("q", "k"))
    window = backbone.config.sliding_window if windowed(backbone.config, number) else None
    look, width = Look(attention.scaling, window), attention.head_dim

    def heads(x: Tensor, norm: nn.Module | None = None) -> Float[Tensor, "N H D"]:
        split = x.view(len(x), -1, width)
        return split if norm is None else norm(split)

    def forward(x: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
        normed = layer.input_layernorm(x)
        q, k = heads(query(normed), query_norm), heads(key(normed), key_norm)
        both = torch.cat([q, k], dim=1).transpose(0, 1)
        turned = (both * cos + rotate_half(both) * sin)[None]
        q, k = turned.split([q.shape[1], k.shape[1]], dim=1)
        seen = layout.attend(number, q, k, heads(value(normed)).transpose(0, 1)[None], look)
        x = x + out(seen.reshape(len(x), -1))
        normed = layer.post_attention_layernorm(x)
        return x + down(mlp.act_fn(gate(normed)).mul_(up(normed)))

    return forward


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
        return base if base.weight.dtype != torch.float32 else partial(multiply, base.weight, base.bias)
    if not merge or base.weight.dtype not in (torch.float32, torch.float64):
        return layer  # summed in bfloat16 a small adapter would be rounded away
    return partial(multiply, merged_weight(cast(LoraLayer, layer)), base.bias)


def multiply(weight: Float[Tensor, "O I"], bias: Float[Tensor, "O"] | None, x: Float[Tensor, "N I"]) -> Tensor:
    """x W^T + b; multiplied as W x^T where that is faster, and then one token's numbers stand a column apart."""
    if not in_columns(x):
        return nn.functional.linear(x, weight, bias)
    return (torch.mm(weight, x.t()) if bias is None else torch.addmm(bias[:, None], weight, x.t())).t()


def in_columns(x: Tensor) -> bool:
    """Whether few rows are multiplied faster as W x^T: with oneDNN, 1.2 to 1.5 times at 64 rows; with MKL it is no gain.

    The weights are read as they lie; x W^T would read them transposed.
    """
    return x.device.type == "cpu" and x.dtype == torch.float32 and in_use() == "onednn"
