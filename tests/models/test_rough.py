"""Linear layers in fewer bits: rounding by hand, its size, and a sampler whose log-probs are of what it drew from."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from tutelage.data.batch import sequences
from tutelage.models.affine import affine
from tutelage.models.logprobs import CausalModel
from tutelage.models.lora import LoRA, add_lora
from tutelage.models.rough import quantized, rough_affine
from tutelage.models.sampling import Decoder, Decoding
from tutelage.models.tiny import tiny

PROMPTS = [list(b"Why is the sky blue?"), list(b"Hi")]


def test_quantized_by_hand():
    """Of (-2, 1, 0.5) the largest is 127 steps of 2 / 127; 1 is 63.5 of them, which rounds to the even 64."""
    whole, scale = quantized(torch.tensor([[-2.0, 1.0, 0.5], [0.0, 0.0, 0.0]]))
    assert whole.tolist() == [[-127, 64, 32], [0, 0, 0]]
    assert_close(scale, torch.tensor([[2 / 127], [1 / 127]]))


@pytest.mark.parametrize(("precision", "least", "most"), [("int8", 1e-3, 2e-2), ("bfloat16", 5e-4, 6e-3)])
def test_errors_are_of_the_size_of_the_rounding(precision, least, most):
    """Not zero, and not more: int8 steps of a 127th of the largest entry, bfloat16 of a 256th of each."""
    draw = torch.Generator().manual_seed(0)
    weight, x, bias = (torch.randn(s, generator=draw) for s in ((48, 96), (33, 96), (48,)))
    x[3] *= 1000  # rows have scales of their own
    for b in (None, bias):
        exact = torch.nn.functional.linear(x, weight, b)
        error = (rough_affine(weight, b, precision)(x) - exact).abs().mean(1) / exact.abs().mean(1)
        assert least < float(error.min())
        assert float(error.max()) < most


def test_adapters_are_added_in_before_rounding():
    model = add_lora(tiny(hidden=32, heads=4, kv_heads=2, std=0.3)[0], LoRA(rank=2, alpha=4))
    layer = next(m for n, m in model.named_modules() if n.endswith("layers.1.mlp.up_proj"))
    torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.3)
    x = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rough, exact, base = affine(layer, True, "int8")(x), layer(x), layer.base_layer(x)
    assert (rough - exact).abs().mean() < 0.03 * exact.abs().mean() < 0.3 * (base - exact).abs().mean()


@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
def test_a_rough_sampler_is_near_the_trainer_and_not_it(precision):
    model, _ = tiny(hidden=32, heads=4, kv_heads=2, std=0.3)
    groups = Decoder(model, (), str, precision=precision).sample(PROMPTS, 8, Decoding(16), "s")
    answers = [a for group in groups for a in group]
    with torch.no_grad():
        trainer = CausalModel(model).logprobs(sequences(PROMPTS, [0] * 8 + [1] * 8, [a.tokens for a in answers]))
    apart = (trainer - torch.tensor([a.logprobs for a in answers])).abs()
    assert 1e-3 < float(apart.mean()) < 0.1


def test_models_that_run_as_they_are_refuse():
    from transformers import GemmaConfig, GemmaForCausalLM

    config = GemmaConfig(
        vocab_size=259, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"int8 is for LlamaModel.* got GemmaModel"):
        Decoder(GemmaForCausalLM(config), (), str, precision="int8").sample(PROMPTS, 1, Decoding(2), "s")
