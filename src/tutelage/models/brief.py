"""The forward of a decoder in few operations, for sampling: what transformers computes, without what it does around it.

While sampling the weights stand still. Adapters are merged once instead of multiplied at every token, each head reads a
float32 copy made once, and Llama-like decoders run layer by layer from here; any other model runs as transformers runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from tutelage.models import fused
from tutelage.models.attention import Look
from tutelage.models.drawing import SIDE_BY_SIDE
from tutelage.models.gemm import in_use
from tutelage.models.label_head import exact, head_of, plain_weight
from tutelage.models.line_forward import LLAMA_LIKE, Layout, llama_like, windowed
from tutelage.models.lora import merged_weight
from tutelage.models.packing import backbone_of, packed_attention
from tutelage.models.rough import Precision, rough_affine

MERGE_FROM = 16
"""New tokens from which on merging an adapter once is cheaper than multiplying by it at every token."""
Affine = Callable[[Tensor], Tensor]
AddedNorm = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


Hidden = Callable[[Tensor, Layout], Tensor]
"""Token ids and positions [2, N] and who sees whom -> last hidden states [N, D]."""


def hidden_states(model: nn.Module, tokens: int, precision: Precision = "exact") -> Hidden:
    """The fastest forward of `model`'s weights as they are now, adapters as they are switched now, for `tokens` steps.

    It must not outlive a change of the weights. Raises ValueError where linear layers in fewer bits are asked of a model
    that runs as transformers runs it.
    """
    backbone = backbone_of(model)
    if llama_like(backbone):
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

    def product(hidden: Tensor) -> Tensor:
        hidden = exact(hidden)
        if len(hidden) >= SIDE_BY_SIDE and fused.multiplies(weight, hidden.t()):
            return fused.product(weight, hidden.t()).t()  # and drawn from as they stand
        return nn.functional.linear(hidden, weight)

    return product


def _as_it_is(backbone: PreTrainedModel) -> Hidden:
    def forward(line: Tensor, layout: Layout) -> Tensor:
        with packed_attention(backbone):
            out = backbone(input_ids=line[:1], position_ids=line[1:], use_cache=False, layout=layout)
        return out.last_hidden_state[0]

    return forward


def _llama_like(backbone: PreTrainedModel, linear: Callable[[nn.Module], Affine]) -> Hidden:
    inner: Any = backbone
    blocks = [_block(layer, number, inner, linear) for number, layer in enumerate(inner.layers)]
    norm = root_mean_square(inner.norm)

    def forward(line: Tensor, layout: Layout) -> Tensor:
        x = inner.embed_tokens(line[0])
        x = x.t().contiguous().t() if in_columns(x) else x
        cos, sin = (angle.squeeze(0) for angle in inner.rotary_emb(x, position_ids=line[1:]))
        turn = Turn.of(cos, sin, in_columns(x))
        plus = None
        for block in blocks:
            x, plus = block(x, plus, turn, layout)
        return norm(x, plus)[1]

    return forward


@dataclass(frozen=True)
class Turn:
    """Rotary positions (arXiv:2104.09864): each pair (x_i, x_{i + W/2}) of a head turned by its token's angle."""

    cos: Tensor
    sin: Tensor
    """Negative for the first half: x turned is x cos + (x, its halves exchanged) sin."""
    columns: bool
    """Whether a head's numbers stand a column a token, [W, N], as the products leave them; otherwise [N, 1, W]."""

    @classmethod
    def of(cls, cos: Float[Tensor, "N W"], sin: Float[Tensor, "N W"], columns: bool) -> Turn:
        """From transformers' angles, which are the same in both halves."""
        first, second = sin.chunk(2, dim=-1)
        signed = torch.cat([-first, second], dim=-1)
        if columns:
            return cls(cos.t().contiguous(), signed.t().contiguous(), columns)
        return cls(cos[:, None], signed[:, None], columns)

    def __call__(self, x: Float[Tensor, "N H W"]) -> Float[Tensor, "H N W"]:
        """The heads turned, by the kernel in place."""
        laid = x.permute(1, 2, 0) if self.columns else x
        if self.columns and fused.fits(x) and laid.is_contiguous():
            fused.turn(laid, self.cos, self.sin)
            return laid.transpose(1, 2)
        exchanged = laid.roll(laid.shape[1 if self.columns else 2] // 2, 1 if self.columns else 2)
        turned = torch.addcmul(laid * self.cos, exchanged, self.sin)
        return turned.transpose(1, 2) if self.columns else turned.transpose(0, 1)


def _block(
    layer: Any, number: int, backbone: Any, linear: Callable[[nn.Module], Affine]
) -> Callable[[Tensor, Tensor | None, Turn, Layout], tuple[Tensor, Tensor]]:
    """One layer: x + attention(norm(x)), then x + mlp(norm(x)), the last addition left to the next layer's norm."""
    attention, mlp = layer.self_attn, layer.mlp
    asked = together([linear(getattr(attention, f"{n}_proj")) for n in ("q", "k", "v")])
    out, gate, up, down = linear(attention.o_proj), linear(mlp.gate_proj), linear(mlp.up_proj), linear(mlp.down_proj)
    before, between = root_mean_square(layer.input_layernorm), root_mean_square(layer.post_attention_layernorm)
    query_norm, key_norm = (getattr(attention, f"{n}_norm", None) for n in ("q", "k"))
    window = backbone.config.sliding_window if windowed(backbone.config, number) else None
    look, width = Look(attention.scaling, window), attention.head_dim
    kv = attention.k_proj.out_features // width

    def forward(x: Tensor, plus: Tensor | None, turn: Turn, layout: Layout) -> tuple[Tensor, Tensor]:
        x, normed = before(x, plus)
        heads = asked(normed).unflatten(1, (-1, width))
        both, value = heads[:, :-kv], heads[:, -kv:]
        if query_norm is not None and key_norm is not None:
            both = torch.cat([query_norm(both[:, :-kv]), key_norm(both[:, -kv:])], dim=1)
        turned = turn(both)[None]
        seen = layout.attend(number, turned[:, :-kv], turned[:, -kv:], value.transpose(0, 1)[None], look)
        x, normed = between(x, out(seen.reshape(len(x), -1)))
        return x, down(mlp.act_fn(gate(normed)).mul_(up(normed)))

    return forward


def root_mean_square(norm: Any) -> AddedNorm:
    """(x, plus) -> x + plus and its root-mean-square norm in few operations; with the compiled kernel x itself is added to.

    What a norm of transformers rounds between its steps stays with transformers.
    """
    weight = norm.weight
    if isinstance(norm, nn.RMSNorm) or weight.dtype not in (torch.float32, torch.float64):
        return lambda x, plus: (added := x if plus is None else x + plus, norm(added))
    average = torch.full_like(weight, 1 / len(weight))[:, None]

    def forward(x: Float[Tensor, "N D"], plus: Float[Tensor, "N D"] | None) -> tuple[Tensor, Tensor]:
        if fused.fits(x) and x.t().is_contiguous() and (plus is None or plus.t().is_contiguous()):
            return x, fused.norm(x, weight, norm.variance_epsilon, plus)
        x = x if plus is None else x + plus
        return x, (x * weight).mul_(torch.mm(x * x, average).add_(norm.variance_epsilon).rsqrt_())

    return forward


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
