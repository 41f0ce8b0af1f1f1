"""The tokens of a pass: as many as half the machine's memory holds beside the weights, up to where more is no faster."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, LlamaConfig, LlavaConfig, MambaConfig

from tutelage.models.builtin import PACKAGED
from tutelage.models.load import save_policy
from tutelage.models.tiny import tiny
from tutelage.training.optim import Optimization
from tutelage.training.pass_tokens import SIZES, activations, held, parameters, shape_of, tokens_of_a_pass

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMOL = PACKAGED["smollm2-135m-instruct"].shape
GB = 10**9


def test_the_parts_worked_by_hand():
    """SmolLM2-135M: 30 (2 576 64 (9 + 3) + 3 576 1536) + 49152 576 weights; 2 30 (8 576 + 4 1536) numbers a token."""
    assert parameters(SMOL) == 30 * (884_736 + 2_654_208) + 28_311_552 == 134_479_872
    assert held(SMOL, full=False) == 4 * 134_479_872
    assert held(SMOL, full=True) == 20 * 134_479_872
    assert 4 * activations(SMOL) == 4 * 645_120  # 2.6 MB


def test_the_sizes_of_the_built_in_model_are_those_that_it_has(demo_model):
    made = AutoConfig.from_pretrained(demo_model)
    assert [getattr(made, name) for name in SIZES] == [getattr(SMOL, name) for name in SIZES]
    assert (parameters(made), activations(made)) == (parameters(SMOL), activations(SMOL))


def test_a_built_in_model_has_its_shape_before_it_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path))
    assert shape_of("builtin:smollm2-135m-instruct") is SMOL
    assert list(tmp_path.iterdir()) == []


def test_half_the_memory_beside_the_weights():
    """8 GB, all weights trained: 4 - 2.69 GB leave room for 508 tokens of 2.58 MB, so 256; with an adapter for 1,341."""
    assert tokens_of_a_pass(SMOL, True, CPU, 8 * GB) == 256
    assert tokens_of_a_pass(SMOL, False, CPU, 8 * GB) == 1024
    assert tokens_of_a_pass(SMOL, True, CPU, 24 * GB) == 1024
    assert tokens_of_a_pass(SMOL, False, CUDA, 141 * GB) == 16384
    assert tokens_of_a_pass(SMOL, False, CUDA, 24 * GB) == 4096
    assert tokens_of_a_pass(SMOL, True, CPU, GB) == 64  # the least: preflight says what does not fit


def test_a_system_that_does_not_say_its_memory():
    assert tokens_of_a_pass(SMOL, True, CUDA, 0) == 1024


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_counted_as_the_model_has_them(tmp_path, tied):
    """But for the norms."""
    model, tokenizer = tiny(tied=tied)
    save_policy(model, tokenizer, tmp_path / "model")
    shape = shape_of(tmp_path / "model")
    assert shape is not None
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    assert parameters(shape) == matrices


@pytest.mark.parametrize("name", ["builtin:nobody", "no/such", "/no/such/folder"])
def test_a_model_that_is_not_here_has_no_shape_yet(name):
    assert shape_of(name) is None


def test_stated_tokens_stand_and_python_has_a_default():
    assert Optimization().pass_tokens == 1024
    assert Optimization(tokens_per_pass=96).pass_tokens == 96


def test_of_a_model_with_pictures_the_part_that_speaks():
    """Its own settings stand under `text_config`; the sizes at the top level are not there."""
    text = {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 1000,
    }
    shape = LlavaConfig(text_config={"model_type": "llama", **text})
    assert not hasattr(shape, "num_hidden_layers")
    assert tokens_of_a_pass(shape, True, CPU, 8 * GB) == tokens_of_a_pass(LlamaConfig(**text), True, CPU, 8 * GB)


def test_a_model_without_attention_takes_the_default():
    assert tokens_of_a_pass(MambaConfig(hidden_size=64), True, CPU, GB) == 1024


def test_an_adapter_has_the_shape_of_its_base(tmp_path):
    model, tokenizer = tiny()
    save_policy(model, tokenizer, tmp_path / "base")
    get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).save_pretrained(
        tmp_path / "adapter"
    )
    settings = tmp_path / "adapter" / "adapter_config.json"
    said = json.loads(settings.read_text())
    settings.write_text(json.dumps({**said, "base_model_name_or_path": str(tmp_path / "base")}))
    shape = shape_of(tmp_path / "adapter")
    assert shape is not None
    assert shape.hidden_size == model.config.hidden_size
    settings.write_text(json.dumps({**said, "base_model_name_or_path": None}))
    assert shape_of(tmp_path / "adapter") is None
