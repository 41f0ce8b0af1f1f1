"""One line of real tokens: nothing computed twice, nobody sees a stranger, and models that cannot do it fall back."""

from __future__ import annotations

from itertools import chain, pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from tutelage.data.batch import Pairs, Sequences, sequences
from tutelage.models import attention
from tutelage.models.logprobs import CausalModel, forward_hidden
from tutelage.models.packing import ATTENTION, SLACK, backbone_of, micro_batches, pack, unsupported, windowed
from tutelage.models.tiny import tiny

BATCH = sequences(
    [(5, 6, 7, 8, 9, 3), (11,), (12, 13, 14)],
    [0, 2, 1, 0, 1, 0],
    [[20, 21, 22, 23], [30], [40, 41, 42], [], [50, 51], [60, 61, 62, 63, 64]],
    [[True] * 4, [True], [True, False, True], [], [True, True], [False, True, True, False, True]],
)


def test_pack_by_hand():
    """Prompts (5 6) and (8); rows 0 and 2 answer the first: one line, positions restart, `before` points one back."""
    batch = sequences([(5, 6), (8,)], [0, 1, 0], [[20, 21], [30], [40]])
    packed = pack(batch)
    assert packed.input_ids.tolist() == [[5, 6, 20, 21, 40, 8, 30]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 2, 0, 1]]
    assert [(s.start, s.stop, s.answers) for s in packed.spans] == [(0, 5, (2, 1)), (5, 7, (1,))]
    assert packed.before.tolist() == [[1, 2], [5, 0], [1, 0]]
    assert packed.last.tolist() == [3, 6, 4]


TURNS = sequences(
    [(5, 6), (5, 6, 20, 21, 9), (5, 6, 20, 21, 9, 30, 7, 8), (5, 6, 40), (11,), (5, 7)],
    [0, 0, 1, 1, 2, 3, 4, 5, 2],
    [[20, 21], [40], [30, 31], [30], [50, 51, 52], [60], [12, 13], [20, 21], []],
    [[True, True], [True], [True, False], [True], [True] * 3, [True], [True] * 2, [True] * 2, []],
)
"""A dialogue of three turns with other answers on the way, one whose next turn adds nothing to an answer, two strangers."""


def test_turns_of_a_dialogue_are_a_tree_by_hand():
    """Prompt 1 goes on after row 0 by one token, prompt 2 after row 3 by two, prompt 3 is prompt 0 and row 1."""
    packed = pack(TURNS)
    assert [(s.start, s.stop, s.answers, s.parents) for s in packed.spans] == [
        (0, 15, (2, 1, 1, 1, 2, 1, 2, 3), (0, 0, 2, 1, 4, 4, 6, 7)),
        (15, 18, (2,), ()),
        (18, 22, (2,), ()),
    ]
    line = packed.input_ids[0].tolist()
    assert line[:15] == [5, 6, 20, 21, 40, 60, 9, 30, 31, 30, 7, 8, 50, 51, 52]
    assert packed.positions[0, :15].tolist() == [0, 1, 2, 3, 2, 3, 4, 5, 6, 5, 6, 7, 8, 9, 10]
    assert packed.before[4].tolist() == [11, 12, 13]
    assert packed.before[5].tolist()[:1] == [4], "right behind the answer that it goes on from"
    assert packed.last.tolist() == [3, 4, 8, 9, 14, 5, 17, 21, 11]


@pytest.mark.parametrize("window", [None, 3])
def test_turns_of_a_dialogue_are_computed_once_and_exactly(window, nothing_rounds):
    model = random_model(MistralConfig(**SMALL, sliding_window=window)).double()
    seen: list[int] = []
    layer = backbone_of(model).layers[0].mlp.up_proj
    layer.register_forward_hook(lambda _, args, out: seen.append(out[..., 0].numel()))
    found = []
    for plain in (False, True):
        model.zero_grad()
        logp = CausalModel(model, 0.7, plain=plain).logprobs(TURNS)
        (logp * torch.arange(1, 4)).sum().backward()
        found.append([logp.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for packed, plain in zip(*found, strict=True):
        assert (packed - plain).abs().max() <= 1e-10 * max(1.0, float(plain.abs().max()))
    assert seen == [15 + 3 + 4, 9 * (8 + 3)]
    with torch.no_grad():
        assert_close(found[0][0], row_by_row(model, TURNS, 0.7), atol=1e-10, rtol=0)


def test_an_empty_answer_is_read_at_the_end_of_its_prompt():
    packed = pack(sequences([(5, 6)], [0, 0, 0], [[], [20], []]))
    assert packed.last.tolist() == [1, 2, 1]
    assert packed.input_ids.tolist() == [[5, 6, 20]]


def test_linear_layers_see_each_token_once():
    """Counted inside the model: real tokens and used prompts, nothing else; the plain path pays for padding and copies."""
    model, _ = tiny(hidden=16, heads=2, kv_heads=1)
    seen: list[int] = []
    linear = [m for m in backbone_of(model).modules() if isinstance(m, nn.Linear)]
    handles = [m.register_forward_hook(lambda _, args, out: seen.append(out[..., 0].numel())) for m in linear]
    forward_hidden(model, BATCH)
    assert set(seen) == {BATCH.total_tokens} == {6 + 1 + 3 + 4 + 1 + 3 + 0 + 2 + 5}
    seen.clear()
    forward_hidden(model, BATCH[[1, 3]])
    assert set(seen) == {3 + 1 + 6}, "prompt 1 is not used by these rows"
    seen.clear()
    forward_hidden(model, BATCH, plain=True)
    assert set(seen) == {6 * (6 + 5)}
    for handle in handles:
        handle.remove()


def test_its_attention_is_put_back():
    """Plain calls keep their own padding masks, also after an error inside."""
    model, _ = tiny(hidden=16, heads=2, kv_heads=1)
    before = model.config._attn_implementation
    forward_hidden(model, BATCH)
    assert model.config._attn_implementation == before != ATTENTION
    with pytest.raises(IndexError):
        forward_hidden(model, sequences([(100_000,)], [0], [[1]]))
    assert model.config._attn_implementation == before


def test_plain_calls_are_refused_by_the_packed_attention():
    """It has no layout then, and would drop the padding mask silently."""
    model, _ = tiny(hidden=16, heads=2, kv_heads=1)
    model.config._attn_implementation = ATTENTION
    with pytest.raises(AssertionError, match="layout"):
        model(torch.tensor([[1, 2, 3]]))


@st.composite
def batches(draw: st.DrawFn) -> Sequences:
    prompts = draw(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=4))
    rows = draw(st.lists(st.lists(st.integers(1, 3), max_size=5), min_size=1, max_size=12))
    owners = draw(st.lists(st.integers(0, len(prompts) - 1), min_size=len(rows), max_size=len(rows)))
    return sequences(prompts, owners, rows)


def cost(batch: Sequences) -> int:
    """Packed tokens when equal rows are computed once."""
    owners = batch.prompt_of.tolist()
    rows = {(p, *row[:n]) for p, row, n in zip(owners, batch.tokens.tolist(), batch.lengths.tolist())}
    return sum(len(row) - 1 for row in rows) + sum(len(batch.prompts.tokens[p]) for p in set(owners))


@settings(max_examples=60, deadline=None)
@given(batches(), st.integers(1, 40))
def test_micro_batches_are_a_partition_within_the_budget(batch, tokens):
    pieces = micro_batches(batch, tokens)
    assert sorted(chain.from_iterable(piece.tolist() for piece in pieces)) == list(range(len(batch)))
    owners = batch.prompt_of.tolist()
    of_prompt = {p: [row for row, owner in enumerate(owners) if owner == p] for p in owners}
    together = {p for p, rows in of_prompt.items() if cost(batch[rows]) <= SLACK * tokens}
    for piece in pieces:
        rows = piece.tolist()
        alone = len({owners[row] for row in rows}) == 1 and owners[rows[0]] in together
        assert len(rows) == 1 or cost(batch[piece]) <= (SLACK * tokens if alone else tokens)
        assert rows == sorted(rows, key=lambda row: (owners[row], -int(batch.lengths[row]), row)), (
            "answers to one prompt stand together, the longest first"
        )
    for one, following in pairwise(pieces):
        new = owners[int(following[0])]
        assert new not in together or new not in {owners[row] for row in one.tolist()}, "split for nothing"
        waits = of_prompt[new] if new in together else [int(following[0])]
        assert cost(batch[[*one.tolist(), *waits]]) > tokens, "a piece is closed only when it is full"


def test_a_group_that_exceeds_the_budget_by_little_is_not_split():
    """A prompt of 6 and four answers of 5 make 26 tokens: 21 * 1.25 are enough; at 20 they are split, 16 and 16 + 2 tokens."""
    group = sequences([(5, 6, 7, 8, 9, 3), (4,)], [1, 0, 0, 0, 0], [[2], *([n] * 5 for n in range(4))])
    assert [piece.tolist() for piece in micro_batches(group, 21)] == [[1, 2, 3, 4], [0]]
    assert [piece.tolist() for piece in micro_batches(group, 20)] == [[1, 2], [3, 4, 0]]


def test_micro_batches_count_an_answer_of_several_comparisons_once():
    """A ranking of three gives three comparisons; its answers of 4, 3 and 2 tokens and the prompt of 6 make 15 tokens."""
    rows = [[1, 1, 1, 1], [2, 2, 2], [3, 3]]
    prompt = [(5, 6, 7, 8, 9, 3)]
    chosen = sequences(prompt, [0, 0, 0], [rows[0], rows[0], rows[1]])
    rejected = sequences(prompt, [0, 0, 0], [rows[1], rows[2], rows[2]])
    pairs = Pairs(chosen, rejected, torch.ones(3), torch.ones(3), torch.zeros(3))
    assert [piece.tolist() for piece in micro_batches(pairs, 15)] == [[0, 1, 2]]
    assert [piece.tolist() for piece in micro_batches(pairs, 12)] == [[0, 1, 2]], "a quarter more, to stay together"
    assert [piece.tolist() for piece in micro_batches(pairs, 11)] == [[0], [1], [2]], "13, then 12 + 3, then 11"


SMALL = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def random_model(config: PretrainedConfig) -> nn.Module:
    """With its own attention, alive."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def nothing_rounds(monkeypatch):
    """transformers' norms and eager softmax go through float32 inside; here float64 tensors stay what they are."""
    to, to_float, softmax = torch.Tensor.to, torch.Tensor.float, nn.functional.softmax

    def stay(x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        return x if x.dtype == torch.float64 and args[:1] == (torch.float32,) else to(x, *args, **kwargs)

    def softmax_there(x: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return softmax(x, dim, dtype=torch.float64 if x.dtype == torch.float64 else dtype)

    monkeypatch.setattr(nn.functional, "softmax", softmax_there)
    monkeypatch.setattr(torch.Tensor, "to", stay)
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else to_float(x))


def row_by_row(model: nn.Module, batch: Sequences, temperature: float) -> torch.Tensor:
    """log p of each trained token from one plain call of the model a row: no packing, no padding, no code of ours."""
    out = torch.zeros(batch.tokens.shape, dtype=next(model.parameters()).dtype)
    for b, (p, n) in enumerate(zip(batch.prompt_of.tolist(), batch.lengths.tolist())):
        prompt = list(batch.prompts.tokens[p])
        row = torch.tensor([prompt + batch.tokens[b, :n].tolist()])
        logp = (model(row).logits[0] / temperature).log_softmax(-1)
        for t in range(n):
            if batch.mask[b, t]:
                out[b, t] = logp[len(prompt) + t - 1, row[0, len(prompt) + t]]
    return out


PACKED = {
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(**SMALL, head_dim=8),
    "gemma": GemmaConfig(**SMALL, head_dim=8),
    "gemma2": Gemma2Config(
        **SMALL, head_dim=8, sliding_window=3, attn_logit_softcapping=0.5, final_logit_softcapping=3.0
    ),
    "gemma3": Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=3, sliding_window_pattern=2),
    "mistral": MistralConfig(**SMALL, sliding_window=3),
    "mistral without a window": MistralConfig(**SMALL, sliding_window=None),
    "granite": GraniteConfig(**SMALL, logits_scaling=3.0, embedding_multiplier=2.0, attention_multiplier=0.3),
    "cohere": CohereConfig(**SMALL, logit_scale=0.3),
}
ROPE = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
FALL_BACK = {
    "gpt-oss": (GptOssConfig(**SMALL, head_dim=8, sliding_window=3, num_local_experts=2, num_experts_per_tok=1), "sinks"),
    "gpt2": (GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2), "no rotary"),
    "dynamic rope": (LlamaConfig(**SMALL, rope_parameters=ROPE), "position encoding with the length"),
}  # fmt: skip


@pytest.mark.parametrize("name", PACKED)
def test_other_families_run_packed(name, nothing_rounds, monkeypatch):
    """Packed in either layout == padded, values and gradients, in float64; and all say what the model itself says, row by row."""
    model = random_model(PACKED[name]).double()
    assert unsupported(backbone_of(model).config, backbone_of(model)) is None
    found = []
    for split, plain in ((0, False), (9, False), (0, True)):
        monkeypatch.setattr(attention, "SPLIT", split)
        model.zero_grad()
        logp, entropy = CausalModel(model, 0.7, plain=plain).logprobs_and_entropy(BATCH)
        (logp * torch.arange(5) + 0.3 * entropy).sum().backward()
        found.append(
            [logp.detach(), entropy.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        )
    for packed, plain in [*zip(found[0], found[2], strict=True), *zip(found[1], found[2], strict=True)]:
        assert (packed - plain).abs().max() <= 1e-10 * max(1.0, float(plain.abs().max()))
    with torch.no_grad():
        assert_close(found[0][0], row_by_row(model, BATCH, 0.7), atol=1e-10, rtol=0)


def test_a_layer_that_hides_its_window_is_refused():
    """Windows reach attention by an argument; a model that forgets to give it would see everything, silently."""
    mixed = Gemma2Config(**SMALL, sliding_window=3)
    qkv = torch.zeros(3, 1, 2, 4, 8)
    packed = AttentionInterface()[ATTENTION]
    layout = pack(sequences([(5, 6)], [0], [[20, 21]]))
    for layer, told in ((0, None), (1, 3)):
        assert [windowed(mixed, n) for n in (0, 1)] == [True, False]
        module = SimpleNamespace(config=mixed, layer_idx=layer)
        with pytest.raises(AssertionError, match="hides its window"):
            packed(module, *qkv, None, layout=layout, sliding_window=told)
        packed(module, *qkv, None, layout=layout, sliding_window=None if told else 3)
    assert not windowed(Qwen2Config(**SMALL, sliding_window=3, use_sliding_window=False), 0)


@pytest.mark.parametrize("name", FALL_BACK)
def test_models_that_cannot_run_packed_fall_back(name):
    """With the reason in words, and the model's own log-probs through padded rows (soft-caps and windows included)."""
    config, reason = FALL_BACK[name]
    model = random_model(config)
    assert reason in (unsupported(backbone_of(model).config, backbone_of(model)) or "")
    with torch.no_grad():
        logp = CausalModel(model, 0.7).logprobs(BATCH)
        assert_close(logp, row_by_row(model, BATCH, 0.7), atol=1e-5, rtol=0)
        pieces = CausalModel(model, 0.7, tokens_per_pass=12).logprobs(BATCH)
    assert_close(logp, pieces, atol=1e-5, rtol=0)
