"""The forward of a decoder in few operations, for sampling: what transformers computes, without what it does around it.

While sampling the weights stand still. Adapters are merged once instead of multiplied at every token, each head reads a
float32 copy made once, and Llama-like decoders run layer by layer from here; any other model runs as transformers runs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from tutelage.models import fused
from tutelage.models.affine import Affine, Product, affine, in_columns, together
from tutelage.models.attention import Look
from tutelage.models.cache import Step
from tutelage.models.drawing import SIDE_BY_SIDE
from tutelage.models.label_head import exact, head_of, plain_weight
from tutelage.models.line_forward import LLAMA_LIKE, Layout, llama_like, windowed
from tutelage.models.packing import backbone_of, packed_attention
from tutelage.models.rough import Precision
from tutelage.models.stepping import Layer, Norm, Stepping

MERGE_FROM = 16
"""New tokens from which on merging an adapter once is cheaper than multiplying by it at every token."""
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
    blocks = [Block.of(layer, number, inner, linear) for number, layer in enumerate(inner.layers)]
    norm, last = root_mean_square(inner.norm), norm_numbers(inner.norm)
    layers = [block.numbers() for block in blocks] if inner.config.hidden_act == "silu" else [None]
    whole = [layer for layer in layers if layer is not None]
    stepping: list[Stepping] = []

    def forward(line: Tensor, layout: Layout) -> Tensor:
        x = inner.embed_tokens(line[0])
        cos, sin = (angle.squeeze(0) for angle in inner.rotary_emb(x, position_ids=line[1:]))
        turn = Turn.of(cos, sin, in_columns(x))
        if last is not None and len(whole) == len(layers) and steps_here(x, layout):
            if not stepping or stepping[0].rows < len(x):
                stepping[:] = [Stepping(whole, last, len(x))]
            return stepping[0](x, turn.cos, turn.sin, cast(Step, layout))
        x = x.t().contiguous().t() if in_columns(x) else x
        plus = None
        for block in blocks:
            x, plus = block(x, plus, turn, layout)
        return norm(x, plus)[1]

    return forward


def steps_here(x: Tensor, layout: Layout) -> bool:
    """Whether the kernels take a whole step, of so many rows."""
    asking = isinstance(layout, Step) and layout.asking is not None
    return asking and fused.has_products() and fused.fits(x) and len(x) <= fused.MOST_COLUMNS


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


@dataclass(frozen=True)
class Block:
    """One layer: x + attention(norm(x)), then x + mlp(norm(x)), the last addition left to the next layer's norm."""

    layer: Any
    number: int
    asked: Affine
    """Queries, keys and values, side by side."""
    out: Affine
    gate: Affine
    up: Affine
    down: Affine
    before: AddedNorm
    between: AddedNorm
    look: Look

    @classmethod
    def of(cls, layer: Any, number: int, backbone: Any, linear: Callable[[nn.Module], Affine]) -> Block:
        """`linear`: the layer's linear modules as functions."""
        attention, mlp = layer.self_attn, layer.mlp
        asked = together([linear(getattr(attention, f"{n}_proj")) for n in ("q", "k", "v")])
        out, gate, up, down = (linear(x) for x in (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        before, between = root_mean_square(layer.input_layernorm), root_mean_square(layer.post_attention_layernorm)
        window = backbone.config.sliding_window if windowed(backbone.config, number) else None
        look = Look(attention.scaling, window)
        return cls(layer, number, asked, out, gate, up, down, before, between, look)

    @property
    def width(self) -> int:
        """Numbers of a head."""
        width: int = self.layer.self_attn.head_dim
        return width

    @property
    def kv(self) -> int:
        """Heads of keys."""
        return self.layer.self_attn.k_proj.out_features // self.width

    def __call__(self, x: Tensor, plus: Tensor | None, turn: Turn, layout: Layout) -> tuple[Tensor, Tensor]:
        """What the layer leaves, and what is still to be added to it."""
        attention, kv = self.layer.self_attn, self.kv
        query_norm, key_norm = (getattr(attention, f"{n}_norm", None) for n in ("q", "k"))
        x, normed = self.before(x, plus)
        heads = self.asked(normed).unflatten(1, (-1, self.width))
        both, value = heads[:, :-kv], heads[:, -kv:]
        if query_norm is not None and key_norm is not None:
            both = torch.cat([query_norm(both[:, :-kv]), key_norm(both[:, -kv:])], dim=1)
        turned = turn(both)[None]
        seen = layout.attend(self.number, turned[:, :-kv], turned[:, -kv:], value.transpose(0, 1)[None], self.look)
        x, normed = self.between(x, self.out(seen.reshape(len(x), -1)))
        return x, self.down(self.layer.mlp.act_fn(self.gate(normed)).mul_(self.up(normed)))

    def numbers(self) -> Layer | None:
        """What kernels need to know of it, where they can do all of it."""
        layer, attention = self.layer, self.layer.self_attn
        products = self.asked, self.out, self.gate, self.up, self.down
        weights = [part.weight for part in products if isinstance(part, Product) and part.weight.is_contiguous()]
        biased = [part for part in products[1:] if isinstance(part, Product) and part.bias is not None]
        inner = [getattr(attention, f"{n}_norm", None) for n in ("q", "k")]
        norms = [norm_numbers(each) for each in (layer.input_layernorm, layer.post_attention_layernorm)]
        of_query, of_key = (None if each is None else norm_numbers(each) for each in inner)
        strange = [
            each for each, norm in zip((of_query, of_key), inner, strict=True) if norm is not None and each is None
        ]
        if len(weights) < len(products) or biased or strange or None in norms or weights[0].device.type != "cpu":
            return None
        asked, out, gate, up, down = weights
        before, between = norms
        assert before is not None
        assert between is not None
        assert isinstance(self.asked, Product)
        heads = len(asked) // self.width - 2 * self.kv
        projections = (asked, self.asked.bias), out, gate, up, down
        scale, window = self.look.scaling or self.width**-0.5, self.look.window
        return Layer((before, between), (of_query, of_key), projections, scale, window, (heads, self.kv, self.width))


def norm_numbers(norm: Any) -> Norm | None:
    """A transformers' root-mean-square norm in float32 on a CPU, for the kernels."""
    weight = getattr(norm, "weight", None)
    if isinstance(norm, nn.RMSNorm) or weight is None or weight.dtype != torch.float32 or weight.device.type != "cpu":
        return None
    return Norm(weight, norm.variance_epsilon)


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
