"""Names to models and back: resolution at the door, adapters that bind, references that stand still, saves that are whole."""

import json

import pytest
import torch
from peft import PeftModel
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from tutelage.models.heads import new_scalar_model, save_reward_model
from tutelage.models.load import (
    choose_device,
    choose_dtype,
    describe,
    load_backbone,
    load_policy,
    load_tokenizer,
    resolve_model,
    save_policy,
)
from tutelage.models.lora import LoRA, frozen_copy, merged_state, reference_mode
from tutelage.models.tiny import tiny

IDS = torch.tensor([list(b"How many?")])


@pytest.fixture
def base(tmp_path):
    """A directory with the tiny model in it."""
    model, tokenizer = tiny()
    save_policy(model, tokenizer, tmp_path / "base")
    return tmp_path / "base"


def load(name, **settings):
    return load_policy(name, dtype="float32", device="cpu", **settings)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def train(model, steps=3, rate=1e-2):
    """A few steps of anything, so that the weights differ from the start's."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], rate)
    for _ in range(steps):
        loss = model(input_ids=IDS, labels=IDS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def snapshot(model):
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def identical(before, model):
    after = model.state_dict()
    return before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


# --- resolve ---------------------------------------------------------------------------------------------------------


def test_directory_run_folder_and_their_order(base, tmp_path):
    assert resolve_model(base) == base
    run = tmp_path / "run"
    for part in ("policy", "reward_model"):
        (run / part).mkdir(parents=True)
        (run / part / "config.json").write_text("{}")
    assert resolve_model(run) == run / "policy"
    assert resolve_model(str(run), ("reward_model",)) == run / "reward_model"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "no such directory: ./nowhere; allowed: a Hugging Face directory"),
        ("/nowhere/at/all", "no such directory"),
        ("builtin:gpt9", "no built-in model 'builtin:gpt9'; allowed: builtin:smollm2-135m-instruct"),
        ("some-org/some-model", "HF_HUB_OFFLINE"),
    ],
)
def test_unknown_names_are_refused_at_the_door(name, message, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        resolve_model(name)


def test_a_name_below_a_local_folder_is_a_directory_never_a_hub_id(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("runs/sft") == "runs/sft"  # nothing here is called runs: a hub id
    (tmp_path / "runs").mkdir()
    with pytest.raises(ValueError, match="no such directory: runs/sft"):
        resolve_model("runs/sft")


def test_of_a_run_of_several_stages_the_last_one_with_a_model_counts(base, tmp_path):
    for place in ("sft/policy", "reward/reward_model", "rl/policy"):
        (tmp_path / "run" / place).mkdir(parents=True)
        (tmp_path / "run" / place / "config.json").write_text("{}")
    (tmp_path / "run" / "stages.json").write_text(json.dumps({"sft": {}, "reward": {}, "rl": {}, "evaluation": {}}))
    assert resolve_model(tmp_path / "run", ("policy",)) == tmp_path / "run" / "rl" / "policy"
    assert resolve_model(tmp_path / "run", ("reward_model",)) == tmp_path / "run" / "reward" / "reward_model"


def test_a_directory_without_a_model_says_what_it_holds(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"neither config.json nor policy/, reward_model/.*checkpoints"):
        resolve_model(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        resolve_model(tmp_path / "file")


def test_a_reward_model_is_no_policy_and_absent_weights_are_no_random_ones(tmp_path):
    model, tokenizer = tiny(tied=False)
    save_reward_model(new_scalar_model(model.model), tokenizer, tmp_path / "reward_model")
    with pytest.raises(ValueError, match="not a policy"):
        load(tmp_path / "reward_model")
    settings = json.loads((tmp_path / "reward_model/config.json").read_text())
    settings["architectures"] = ["LlamaForCausalLM"]
    (tmp_path / "reward_model/config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"no weights for \['lm_head.weight'\]"):
        load(tmp_path / "reward_model")


def test_a_damaged_or_missing_file_is_a_clear_error(base):
    (base / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot load"):
        load(base)
    (base / "tokenizer.json").unlink()
    (base / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="no tokenizer"):
        load_tokenizer(base)


# --- policies --------------------------------------------------------------------------------------------------------


def test_dropout_is_off_in_every_policy(tmp_path):
    """GPT-2 has dropout 0.1 by default: two passes in training mode would differ."""
    torch.manual_seed(0)
    small = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    save_policy(small, tiny()[1], tmp_path / "gpt2")
    policy = load(tmp_path / "gpt2", lora=LoRA(rank=2)).train()
    assert torch.equal(logits(policy), logits(policy))
    raw = AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2").train()
    assert not torch.equal(logits(raw), logits(raw))


def test_lora_starts_as_the_base_from_its_seed_and_leaves_the_global_state(base):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one, same, other = load(base, lora=LoRA()), load(base, lora=LoRA()), load(base, lora=LoRA(), seed=1)
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(logits(one), logits(load(base)))
    assert identical(snapshot(one), same)
    assert not identical(snapshot(one), other)
    # rank 16, two layers: q 64->64, k and v 64->32, o 64->64, gate and up 64->128, down 128->64
    per_layer = 16 * ((64 + 64) + 2 * (64 + 32) + (64 + 64) + 3 * (64 + 128))
    assert sum(p.numel() for p in one.parameters() if p.requires_grad) == 2 * per_layer


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (LoRA(targets=("query_key_value",)), "do not fit; allowed: all-linear"),
        (LoRA(targets=("lm_head",)), "the embedding that input and output share"),
        (LoRA(targets=("embed_tokens",)), "bind to no linear module"),
        (LoRA(rank=0), "must be positive"),
    ],
)
def test_adapters_that_would_not_train_what_was_meant_are_refused(base, lora, message):
    with pytest.raises(ValueError, match=message):
        load(base, lora=lora)


def test_reference_mode_is_the_start_while_the_policy_moves(base):
    policy = load(base, lora=LoRA())
    start = logits(policy)
    train(policy)
    trained = logits(policy)
    assert (trained - start).abs().max() > 0.1
    with reference_mode(policy) as reference:
        assert torch.equal(logits(reference), start)
    assert torch.equal(logits(policy), trained)
    train(policy, steps=1)  # the switch has left the adapter trainable
    assert not torch.equal(logits(policy), trained)


def test_after_a_lora_sft_the_reference_is_the_sft_model_not_its_base(base, tmp_path):
    sft = load(base, lora=LoRA(rank=4))
    train(sft)
    sft.peft_config["default"].base_model_name_or_path = str(base)
    sft.save_pretrained(tmp_path / "adapter")
    policy = load(tmp_path / "adapter", lora=LoRA())
    with reference_mode(policy) as reference:
        assert_close(logits(reference), logits(sft), atol=1e-4, rtol=1e-5)
        assert (logits(reference) - logits(load(base))).abs().max() > 0.1
    train(policy)
    with reference_mode(policy) as reference:
        assert_close(logits(reference), logits(sft), atol=1e-4, rtol=1e-5)
    hidden = load_backbone(tmp_path / "adapter", dtype="float32", device="cpu")(IDS).last_hidden_state
    assert_close(hidden, sft.get_base_model().model(IDS).last_hidden_state, atol=1e-4, rtol=1e-4)


def test_an_adapter_that_does_not_fit_its_base_is_refused(base, tmp_path):
    deeper, tokenizer = tiny(layers=3)
    save_policy(deeper, tokenizer, tmp_path / "deeper")
    adapted = load(tmp_path / "deeper", lora=LoRA(rank=4))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"does not fit its base.*layers\.2"):
        load(tmp_path / "adapter")


def test_frozen_copy_stays_when_the_policy_is_trained(base):
    policy = load(base)
    reference = frozen_copy(policy)
    start = logits(policy)
    train(policy)
    assert not torch.equal(logits(policy), start)
    assert torch.equal(logits(reference), start)
    assert not any(p.requires_grad for p in reference.parameters())


# --- saving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LoRA(rank=4)])
@pytest.mark.parametrize("tied", [True, False])
def test_saved_policy_loads_everywhere_and_the_live_one_is_untouched(tmp_path, lora, tied):
    model, tokenizer = tiny(tied=tied)
    save_policy(model, tokenizer, tmp_path / "base")
    policy = load(tmp_path / "base", lora=lora)
    train(policy)
    before, live = snapshot(policy), logits(policy)
    save_policy(policy, load_tokenizer(tmp_path / "base"), tmp_path / "policy")
    assert identical(before, policy)
    assert isinstance(policy, PeftModel) == (lora is not None)
    assert torch.equal(logits(policy), live)

    saved, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert_close(logits(saved), live, atol=1e-4 if lora else 0, rtol=1e-5 if lora else 0)
    assert (saved.lm_head.weight.data_ptr() == saved.model.embed_tokens.weight.data_ptr()) == tied
    assert AutoTokenizer.from_pretrained(tmp_path / "policy")("é")["input_ids"] == [0xC3, 0xA9]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_transposed_layers_merge_too(tmp_path):
    """GPT-2 keeps its linear weights as [in, out]."""
    torch.manual_seed(0)
    small = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    save_policy(small, tiny()[1], tmp_path / "gpt2")
    policy = load(tmp_path / "gpt2", lora=LoRA(rank=2))
    train(policy)
    save_policy(policy, tiny()[1], tmp_path / "policy")
    assert (logits(policy) - logits(load(tmp_path / "gpt2"))).abs().max() > 0.01
    assert_close(logits(load(tmp_path / "policy")), logits(policy), atol=1e-5, rtol=1e-5)


def test_merged_weight_is_w_plus_scaled_b_a(base):
    policy = load(base, lora=LoRA(rank=4, alpha=6, targets=("q_proj",)))
    layer = policy.get_base_model().model.layers[0].self_attn.q_proj
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(0.5)
    expected = layer.base_layer.weight + 1.5 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert_close(merged_state(policy)["model.layers.0.self_attn.q_proj.weight"], expected)


def test_bfloat16_weights_can_be_saved_unrounded(base, tmp_path):
    policy = load_policy(base, lora=LoRA(), dtype="bfloat16", device="cpu")
    train(policy, steps=1, rate=1e-3)
    tokenizer = load_tokenizer(base)
    key = "model.layers.0.mlp.up_proj.weight"
    layer = policy.get_base_model().model.layers[0].mlp.up_proj
    exact = layer.base_layer.weight.float() + layer.get_delta_weight("default").float()
    assert not torch.equal(exact, exact.bfloat16().float())
    for dtype, expected in [(None, exact.bfloat16()), (torch.float32, exact)]:
        save_policy(policy, tokenizer, tmp_path / "policy", dtype)
        saved = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
        assert torch.equal(saved.state_dict()[key], expected)
        assert saved.lm_head.weight is saved.model.embed_tokens.weight
    assert policy.dtype == torch.bfloat16


def test_saving_again_replaces_the_whole_directory(base):
    other, tokenizer = tiny(seed=9, layers=1)
    (base / "stale").write_text("x")
    save_policy(other, tokenizer, base)
    assert not (base / "stale").exists()
    assert torch.equal(logits(load(base)), logits(other))


# --- where it runs ---------------------------------------------------------------------------------------------------


def test_device_and_dtype_are_checked_and_said(base, monkeypatch):
    with pytest.raises(ValueError, match="allowed: auto, cpu"):
        choose_device("tpu")
    with pytest.raises(ValueError, match="allowed: auto, float32, bfloat16, float64"):
        choose_dtype("float8", torch.device("cpu"))
    cpu = torch.device("cpu")
    for avx512, amx, expected in [
        (False, False, torch.float32),
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
    ]:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda answer=avx512: answer)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda answer=amx: answer)
        assert choose_dtype("auto", cpu) == expected
    line = describe(load(base, lora=LoRA(rank=1)))
    assert line == "LlamaForCausalLM, 0.1 M parameters, 0.0 M trained, float32 on cpu"
