"""The tiny model: seeded without touching the global state, byte-exact tokenizer, float64 that is really float64."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from tutelage.models.tiny import byte_tokenizer, tiny


def test_seed_decides_the_weights_and_the_global_state_stays():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, _ = tiny(seed=1)
    assert torch.equal(torch.rand(3), expected)
    same, _ = tiny(seed=1)
    other, _ = tiny(seed=2)
    weight = one.model.layers[0].self_attn.q_proj.weight
    assert torch.equal(weight, same.model.layers[0].self_attn.q_proj.weight)
    assert not torch.equal(weight, other.model.layers[0].self_attn.q_proj.weight)


def test_token_ids_are_bytes_and_specials_follow():
    tokenizer = byte_tokenizer()
    text = "Grüße, 世界 🙂\n  x1"
    assert tokenizer(text)["input_ids"] == list(text.encode())
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer("<|im_start|>a<|im_end|><|pad|>")["input_ids"] == [256, 97, 257, 258]


def test_chat_template_is_chatml():
    messages = [{"role": "user", "content": "hi"}]
    text = byte_tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_saved_model_and_tokenizer_load_again(tmp_path):
    model, tokenizer = tiny(tied=False)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, words = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = torch.tensor([words("Hé 12")["input_ids"]])
    assert ids.tolist() == [list("Hé 12".encode())]
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert (words.pad_token_id, words.eos_token_id, words.chat_template) == (258, 257, tokenizer.chat_template)


def test_float64_is_float64_inside_every_layer():
    """A change of 1e-12 in one embedding weight moves the logits by about that; float32 anywhere would swallow it."""
    model, _ = tiny(float64=True)
    ids = torch.tensor([[1, 2, 3]])
    before = model(ids).logits
    with torch.no_grad():
        model.model.embed_tokens.weight[1, 0] += 1e-12
    moved = (model(ids).logits[0, -1] - before[0, -1]).abs().max().item()
    assert 1e-15 < moved < 1e-9
    assert_close(before.float(), tiny()[0](ids).logits, atol=1e-4, rtol=1e-4)


def test_a_vocabulary_below_the_tokenizer_is_refused():
    with pytest.raises(ValueError, match="259 tokens; got 100"):
        tiny(vocabulary=100)
