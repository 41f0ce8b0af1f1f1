"""The decoder's own forward: what transformers computes, with adapters merged or not, and everything else left to it."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from tutelage.data.batch import sequences
from tutelage.models.affine import Product, affine
from tutelage.models.brief import hidden_states, readout
from tutelage.models.gemm import Gemm, multiplying, rounding
from tutelage.models.lora import LoRA, add_lora, reference_mode
from tutelage.models.packing import backbone_of, pack, packed_hidden

SHAPE = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
SCALED = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
FAMILIES = {
    "llama": LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True, rope_parameters=SCALED),
    "mistral": MistralConfig(**SHAPE, sliding_window=3, head_dim=16),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16),
}
LINE = pack(sequences([(5, 6, 7, 8), (11, 12)], [0, 1, 0], [[20, 21, 22, 23], [30], [40, 41]]))


EXACT = [gemm for gemm in get_args(Gemm) if gemm == "default" or rounding(gemm) < 2**-16]
"""Where the processor multiplies bfloat16 (AMX), oneDNN rounds to it, and is not chosen."""


def model_of(config, adapted: bool = False):
    """Alive: norms and biases away from 1 and 0, and an adapter that matters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.3 * torch.randn_like(parameter)
        if not adapted:
            return model
        wrapped = add_lora(model, LoRA(rank=4, alpha=8))
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        return wrapped


def line_of(packed):
    return torch.cat([packed.input_ids, packed.positions])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.usefixtures("kernels")
@torch.no_grad()
def test_it_is_the_forward_of_transformers(name, adapted, monkeypatch):
    model = model_of(FAMILIES[name], adapted)
    backbone = backbone_of(model)
    exact = packed_hidden(backbone, LINE)
    monkeypatch.setattr(type(backbone), "forward", None)  # not asked
    for tokens, gemm in product((1, 999), EXACT):  # an adapter apart, and merged; rows, and columns
        with multiplying(gemm):
            assert_close(hidden_states(model, tokens)(line_of(LINE), LINE), exact, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_another_model_runs_as_transformers_runs_it():
    model = model_of(GemmaConfig(**SHAPE, head_dim=8))
    ours = hidden_states(model, 999)(line_of(LINE), LINE)
    assert torch.equal(ours, packed_hidden(backbone_of(model), LINE))


@torch.no_grad()
def test_an_adapter_is_merged_where_it_is_on_and_the_weights_stay():
    """Off it is the base layer itself; on and merged one product; in bfloat16 it stays apart, or it would be rounded away."""
    model = model_of(FAMILIES["llama"], adapted=True)
    layer = backbone_of(model).layers[0].self_attn.q_proj
    before = layer.base_layer.weight.clone()
    x = torch.randn(3, 32)
    merged = affine(layer, True)
    assert merged is not layer
    assert_close(merged(x), layer(x), atol=1e-5, rtol=1e-5)
    assert (merged(x) - layer.base_layer(x)).abs().max() > 0.01
    assert affine(layer, False) is layer
    with reference_mode(model):
        assert_close(affine(layer, True)(x), layer.base_layer(x))
    assert torch.equal(layer.base_layer.weight, before)
    layer.base_layer.bfloat16()
    assert affine(layer, True) is layer


@torch.no_grad()
def test_columns_are_for_onednn_and_hold_the_same_numbers():
    """W x^T is computed where oneDNN multiplies float32; the next product then finds its input as it wants it."""
    weight, bias, x = torch.randn(5, 3), torch.randn(5), torch.randn(4, 3)
    for each in (None, bias):
        plain = Product(weight, each)(x)
        assert plain.is_contiguous()
        with multiplying("onednn"):
            columns = Product(weight, each)(x)
            assert columns.t().is_contiguous()
            assert Product(weight.double(), None)(x.double()).is_contiguous()
        assert_close(columns, plain)


@torch.no_grad()
def test_logits_are_products_in_float32():
    """A bfloat16 head rounds logits of 20 to steps of 0.125; the trainer reads float32 ones, so the sampler must."""
    model = model_of(FAMILIES["llama"]).bfloat16()
    hidden = torch.randn(5, 32).bfloat16()
    logits = readout(model)(hidden)
    assert logits.dtype == torch.float32
    assert_close(logits.double(), hidden.double() @ model.lm_head.weight.double().T, atol=1e-5, rtol=1e-5)
    scaled = model_of(GemmaConfig(**SHAPE, head_dim=8))
    scaled.config.final_logit_softcapping = 0.5
    assert readout(scaled)(torch.randn(5, 32)).abs().max() <= 0.5
