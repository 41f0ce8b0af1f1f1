"""Training's own forward gives transformers' hidden states and gradients, wherever it stands for the model's."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tutelage.models import line_forward
from tutelage.models.attention import Span
from tutelage.models.fused import running
from tutelage.models.fused_training import added_norm, gated, turned
from tutelage.models.packing import Packed, backbone_of, packed_hidden

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
}
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE)),
    "mistral, a window of 5": (MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=5)),
    "qwen2, biases": (Qwen2ForCausalLM, Qwen2Config(**SHAPE)),
    "qwen3, norms of the heads": (Qwen3ForCausalLM, Qwen3Config(**SHAPE)),
}


def a_line() -> Packed:
    """Two prompts with answers, 37 tokens: positions go on from the prompt in each answer."""
    spans = (Span(0, 20, (7, 5)), Span(20, 37, (9,)))
    positions = [*range(8), *range(8, 15), *range(8, 13), *range(8), *range(8, 17)]
    ids = torch.randint(1, 61, (1, 37))
    return Packed(ids, torch.tensor([positions]), spans, torch.zeros(1, 1), torch.zeros(1))


def a_model(name: str, lora: bool) -> torch.nn.Module:
    kind, config = MODELS[name]
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    if not lora:
        return model
    model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.2)
    return model


def hidden_and_gradients(model: torch.nn.Module, line: Packed, weights: torch.Tensor) -> tuple[torch.Tensor, dict]:
    model.zero_grad()
    hidden = packed_hidden(backbone_of(model), line)
    (hidden * weights).sum().backward()
    return hidden.detach(), {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_and_every_gradient_are_those_of_transformers(name, lora):
    model, line, weights = a_model(name, lora), a_line(), torch.randn(37, 40)
    theirs, their_gradients = hidden_and_gradients(model, line, weights)
    with running("numba"):
        assert line_forward.runs_here(backbone_of(model))
        ours, our_gradients = hidden_and_gradients(model, line, weights)
    assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert our_gradients.keys() == their_gradients.keys()
    for key, gradient in their_gradients.items():
        assert_close(our_gradients[key], gradient, atol=2e-5 * float(gradient.abs().max() + 1), rtol=1e-4, msg=key)


def test_whoever_watches_the_model_or_a_linear_layer_sees_each_token_once():
    model, line, seen = a_model("llama", lora=False), a_line(), []
    backbone = backbone_of(model)
    backbone.register_forward_pre_hook(lambda *_: seen.append("called"))
    for module in (backbone.layers[0].self_attn.q_proj, backbone.layers[2].mlp.down_proj):
        module.register_forward_hook(lambda _, args, out: seen.append(out[..., 0].numel()))
    with running("numba"):
        packed_hidden(backbone, line)
    assert seen == ["called", 37, 37]
    assert backbone.forward.__func__ is type(backbone).forward, "the model's own again"


def test_it_stands_back_where_it_cannot_stand_for_the_model():
    llama = backbone_of(a_model("llama", lora=False))
    assert not line_forward.runs_here(llama), "no kernels were chosen"
    with running("numba"):
        assert line_forward.runs_here(llama)
        assert not line_forward.runs_here(backbone_of(LlamaForCausalLM(LlamaConfig(**SHAPE, hidden_act="gelu"))))
        assert not line_forward.runs_here(backbone_of(a_model("llama", lora=False).double()))
        for watched in (
            llama.layers[1],
            llama.layers[2].mlp,
            llama.layers[0].self_attn,
            llama.layers[0].input_layernorm,
        ):
            hook = watched.register_forward_hook(lambda *_: None)
            assert not line_forward.runs_here(llama), "somebody watches what it passes by"
            hook.remove()
        hook = llama.layers[0].mlp.register_full_backward_hook(lambda *_: None)
        assert not line_forward.runs_here(llama)
        hook.remove()
        for module in (llama, llama.layers[0].mlp):
            module.forward = module.forward
            assert not line_forward.runs_here(llama), "somebody has replaced a forward"
            del module.forward
        llama.layers[0].mlp.up_proj.bfloat16()
        assert not line_forward.runs_here(llama), "not all of it is float32"
        llama.float()
        assert line_forward.runs_here(llama)
        llama.gradient_checkpointing_enable()
        assert not line_forward.runs_here(llama), "layers are recomputed"


def test_norm_by_hand_and_its_gradients():
    """(3, 4) has root mean square sqrt(12.5); gradients against PyTorch's of the formula, in 33 rows: three units of work."""
    one = added_norm(torch.tensor([[1.0, 4.0]]), torch.tensor([[2.0, 0.0]]), torch.ones(2), 0.0)
    assert_close(one, (torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 4.0]]) / 12.5**0.5))
    found = []
    for function in (added_norm, plain_norm):
        torch.manual_seed(0)
        x, plus, weight = (torch.randn(shape, requires_grad=True) for shape in ((33, 7), (33, 7), (7,)))
        total, out = function(x, plus, weight, 1e-3)
        ((total * torch.randn(33, 7)).sum() + (out * torch.randn(33, 7)).sum()).backward()
        found.append((total, out, x.grad, plus.grad, weight.grad))
    assert_close(found[0], found[1])


def plain_norm(x, plus, weight, eps):
    total = x + plus
    return total, total * (total.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


@pytest.mark.parametrize("used", [0, 1])
def test_a_norm_of_which_one_result_is_used(used):
    grads = []
    for function in (added_norm, plain_norm):
        torch.manual_seed(0)
        x, plus, weight = (torch.randn(shape, requires_grad=True) for shape in ((5, 3), (5, 3), (3,)))
        function(x, plus, weight, 1e-3)[used].square().sum().backward()
        grads.append((x.grad, plus.grad, torch.zeros(3) if weight.grad is None else weight.grad))
    assert_close(grads[0], grads[1])


@pytest.mark.parametrize("by_head", [False, True])
def test_a_turn_is_a_complex_product_and_its_gradient_turns_back(by_head):
    x, angle = torch.randn(19, 3, 8, requires_grad=True), torch.randn(19, 4)
    cos, sin = (torch.cat([each, each], dim=1) for each in (angle.cos(), angle.sin()))
    out = turned(x, cos, sin, by_head)
    assert out.is_contiguous() == by_head
    expected = torch.complex(x[..., :4], x[..., 4:]) * torch.exp(1j * angle)[:, None]
    assert_close(out, torch.cat([expected.real, expected.imag], dim=-1).transpose(0, 1))
    grad = torch.randn(3, 19, 8)
    mine = torch.autograd.grad(out, x, grad, retain_graph=True)[0]
    assert_close(turned(mine, cos, sin, by_head), grad)
    assert_close(torch.autograd.grad(out, x, grad.transpose(0, 1).contiguous().transpose(0, 1))[0], mine)


def test_a_gate_and_its_gradients():
    """silu(0) = 0, silu(x) ~ x far up and 0 far down; gradients against PyTorch's, in two units of work."""
    assert gated(torch.tensor([[0.0, 60.0, -80.0]]), torch.tensor([[5.0, 2.0, 3.0]])).tolist()[0] == pytest.approx(
        [0, 120, 0]
    )
    found = []
    for function in (gated, lambda x, y: torch.nn.functional.silu(x) * y):
        torch.manual_seed(0)
        x, y = (torch.randn(90, 100, requires_grad=True) for _ in range(2))
        out = function(x, y)
        grads = torch.autograd.grad(out, (x, y), torch.randn(100, 90).t(), retain_graph=True)
        found.append((out, *grads, *torch.autograd.grad(out.sum(), (x, y))))
    assert_close(found[0], found[1])


def test_threads_share_the_rows_and_the_result_is_the_same():
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            torch.manual_seed(0)
            x, plus, weight = (torch.randn(shape, requires_grad=True) for shape in ((300, 24), (300, 24), (24,)))
            total, out = added_norm(x, plus, weight, 1e-5)
            gated(total, out).square().sum().backward()
            found.append((total, out, x.grad, plus.grad, weight.grad))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found for a, b in zip(found[0], other, strict=True))


def test_second_derivatives_are_refused():
    x, y = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    (slope,) = torch.autograd.grad((gated(x, y) * y).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()
