"""How tokens are laid out for the hardware: rows packed without padding, each prompt computed once for all its answers.

The linear layers of any Hugging Face decoder see one line of real tokens [1, N]; only attention needs to know which tokens
belong together, and it is reached through transformers' public attention interface. A group is a prompt followed by its
answers; an answer's tokens see the prompt and themselves. Positions restart at the prompt's end for each answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from tutelage.data.batch import Rows, Sequences, row_keys
from tutelage.models import line_forward, matrix_products
from tutelage.models.attention import Look, Span, attend_spans
from tutelage.models.line import Line, Piece, continuations, rows_of
from tutelage.models.line_forward import windowed

ATTENTION = "tutelage_packed"
SLACK = 1.25
"""What all rows of one prompt may need, as a multiple of the tokens of a pass, and stay in one: split, they pay it twice."""


@dataclass(frozen=True)
class Packed:
    """A batch on one line of N real tokens.

    `before` [B, T] is the packed index of the token that precedes answer token t (the state it is chosen in), 0 on padding;
    `last` [B] the index of a row's last token.
    """

    input_ids: Int[Tensor, "1 N"]
    positions: Int[Tensor, "1 N"]
    spans: tuple[Span, ...]
    before: Int[Tensor, "B T"]
    last: Int[Tensor, "B"]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, look: Look) -> Tensor:
        """Attention inside each span."""
        return attend_spans(self.spans, query, key, value, look)


def pack(batch: Sequences) -> Packed:
    """Lay a batch out on one line, rows of the same prompt together, and what goes on after a row behind it, once.

    A prompt's rows lie in an order of their own, the longest first, whatever order they came in: the same rows round alike.
    """
    members: dict[int, list[int]] = {}
    for row, prompt in enumerate(batch.prompt_of.tolist()):
        members.setdefault(prompt, []).append(row)
    rows = rows_of(batch)
    for of_prompt in members.values():
        of_prompt.sort(key=lambda row: (-len(rows[row]), rows[row]))
    after = continuations(batch, members)
    line = Line(batch)
    for prompt in members:
        if prompt in after:
            continue  # it comes behind the row that it goes on from
        line.begin()
        waiting: list[tuple[int, Piece | None]] = [(prompt, None)]
        while waiting:
            one, parent = waiting.pop()
            pieces = line.group(one, parent, members[one])
            waiting += [(later, pieces[row]) for later, row in after.items() if row in pieces]
        line.end()
    device = batch.tokens.device
    laid = torch.tensor([line.ids, line.positions], device=device)
    return Packed(laid[:1], laid[1:], tuple(line.spans), line.before.to(device), line.last.to(device))


def _packed_attention(
    module: nn.Module,
    query: Float[Tensor, "1 H N D"],
    key: Float[Tensor, "1 K N D"],
    value: Float[Tensor, "1 K N D"],
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Any = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "1 N H D"], None]:
    """Attention as transformers calls it; `layout` decides who sees whom (a line of spans, or the decoder's cache)."""
    assert layout is not None, (
        "packed attention needs a layout; call the model through models.logprobs or models.sampling"
    )
    assert not dropout, "dropout must be off: it makes the ratio of a policy to itself differ from 1"
    assert kwargs.get("s_aux") is None, "packed attention does not handle sinks; `unsupported` should have refused this"
    look = Look(scaling, kwargs.get("sliding_window"), kwargs.get("softcap"))
    layer: Any = module
    assert (look.window is not None) == windowed(layer.config, layer.layer_idx), "this layer hides its window"
    return layout.attend(layer.layer_idx, query, key, value, look), None


AttentionInterface.register(ATTENTION, _packed_attention)


def backbone_of(model: nn.Module) -> PreTrainedModel:
    """The decoder below the head, with adapters still in place (PEFT wraps linear layers inside it)."""
    from peft import PeftModel

    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return getattr(inner, getattr(inner, "base_model_prefix", ""), inner)


def unsupported(config: PretrainedConfig, model: PreTrainedModel) -> str | None:
    """Why this model cannot run packed (then rows run one padded batch at a time), or None where it can."""
    if not getattr(model, "_supports_attention_backend", False):
        return f"{config.model_type} does not go through transformers' attention interface"
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"{config.model_type} has layers of other kinds than full or sliding attention: {sorted(kinds)}"
    if getattr(config, "use_bidirectional_attention", False) or getattr(config, "num_kv_shared_layers", 0):
        return f"{config.model_type} attends in another way than each layer to its own earlier tokens"
    first = next(iter(getattr(model, "layers", ())), None)
    if hasattr(getattr(first, "self_attn", None), "sinks"):
        return f"{config.model_type} has attention sinks"
    given = getattr(config, "rope_parameters", None) or {}
    for rope in [kind for kind in given.values() if isinstance(kind, dict)] or [given]:
        if rope.get("rope_type", "default") in ("dynamic", "longrope"):
            return f"{config.model_type} changes its position encoding with the length seen ({rope['rope_type']})"
        if "rope_theta" not in rope and not hasattr(config, "rope_theta"):
            return f"{config.model_type} has no rotary positions"
    return None


@contextmanager
def packed_attention(backbone: PreTrainedModel) -> Iterator[None]:
    """Run `backbone` with our attention inside, and put its own back afterwards: plain calls keep their padding masks."""
    config = backbone.config
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


def packed_hidden(backbone: PreTrainedModel, packed: Packed) -> Float[Tensor, "N D"]:
    """The last hidden state of every packed token."""
    ours = line_forward.standing_in(backbone) if line_forward.runs_here(backbone) else packed_attention(backbone)
    with ours, matrix_products.standing_in(backbone):
        out = backbone(input_ids=packed.input_ids, position_ids=packed.positions, use_cache=False, layout=packed)
    return out.last_hidden_state[0]


def padded_hidden(backbone: PreTrainedModel, batch: Sequences) -> tuple[Float[Tensor, "N D"], Packed]:
    """The fallback: every row beside its own copy of the prompt, right-padded; the same indices into a flat line.

    No padding mask: what stands behind a row is later than all of it, and a window full of masked tokens would be NaN.
    """
    rows = [
        [*batch.prompts.tokens[p], *t[:n]]
        for p, t, n in zip(batch.prompt_of.tolist(), batch.tokens.tolist(), batch.lengths.tolist(), strict=True)
    ]
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=batch.tokens.device)
    real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=ids.device)
    hidden = backbone(input_ids=ids, use_cache=False).last_hidden_state
    start = torch.tensor([len(batch.prompts.tokens[p]) for p in batch.prompt_of.tolist()], device=ids.device)
    line = torch.arange(len(rows), device=ids.device) * width
    columns = torch.arange(batch.tokens.shape[1], device=ids.device)
    before = (line + start - 1)[:, None] + columns[None, :]
    before = torch.where(columns[None, :] < batch.lengths[:, None], before, 0)
    layout = Packed(ids.view(1, -1), real.view(1, -1), (), before, line + start + batch.lengths - 1)
    return hidden.flatten(0, 1), layout


def micro_batches(batch: Rows, tokens: int) -> list[Int[Tensor, "b"]]:
    """Split rows into pieces of at most `tokens` packed tokens, answers to one prompt together, the longest first.

    A single row may exceed that, and all rows of one prompt by `SLACK`, alone in their piece. Those that need more are split
    between pieces (the prompt is computed in each), each with rows of about one length, which pad least side by side.
    Answers that stand in several rows of a piece (comparisons of one ranking) count once, as they are computed once.
    """
    parts = batch.sequences()
    keys = list(zip(*(row_keys(part) for part in parts), strict=True))
    lengths = [part.lengths.tolist() for part in parts]
    prompt_length = [len(p) for p in parts[0].prompts.tokens]
    members: dict[int, list[int]] = {}
    for row, prompt in enumerate(parts[0].prompt_of.tolist()):
        members.setdefault(prompt, []).append(row)
    pieces: list[list[int]] = []
    used, seen = 0, set()
    for prompt in sorted(members):

        def fresh(rows: list[int], seen: set[tuple[int, ...]], prompt: int = prompt) -> int:
            """Tokens that these rows would add."""
            new = {key: lengths[part][row] for row in rows for part, key in enumerate(keys[row]) if key not in seen}
            return sum(new.values()) + (0 if (prompt,) in seen else prompt_length[prompt])

        alone = fresh(members[prompt], set())
        limit = tokens if alone > SLACK * tokens else max(tokens, alone)
        if alone <= limit and used + alone > tokens:
            used = limit  # closed: in a piece of their own they need the prompt once
        for row in sorted(members[prompt], key=lambda row: (-max(part[row] for part in lengths), row)):
            if not pieces or used + fresh([row], seen) > limit:
                pieces.append([])
                used, seen = 0, set()
            used += fresh([row], seen)
            seen |= {*keys[row], (prompt,)}
            pieces[-1].append(row)
    return [torch.tensor(piece) for piece in pieces]
