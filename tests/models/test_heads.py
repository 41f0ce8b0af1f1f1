"""Scalar heads and classifiers: the same scores here and in transformers, whatever the padding."""

import math

import pytest
import torch
from torch.nn.functional import logsigmoid
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from tutelage.models.heads import ScalarHead, load_classifier, load_reward_model, new_scalar_model, save_reward_model
from tutelage.models.load import load_backbone, load_tokenizer, save_policy
from tutelage.models.lora import LoRA
from tutelage.models.tiny import tiny

TEXTS = ["Yes.", "A longer answer<|im_end|>", "<|im_end|> in the middle <|im_end|>"]


@pytest.fixture
def base(tmp_path):
    model, tokenizer = tiny()
    save_policy(model, tokenizer, tmp_path / "base")
    return tmp_path / "base"


def trained_reward(base, lora=None):
    """A reward model whose backbone and head have moved."""
    model = new_scalar_model(load_backbone(base, lora=lora, dtype="float32", device="cpu"))
    model.head.shift, model.head.scale = 0.75, 2.0
    tokenizer = load_tokenizer(base)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(3):
        loss = -logsigmoid(last_score(model, tokenizer, TEXTS[0]) - last_score(model, tokenizer, TEXTS[1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, tokenizer


def last_score(model, tokenizer, text):
    return model(input_ids=torch.tensor([tokenizer(text)["input_ids"]]))[0, -1]


def test_head_by_hand():
    """h = (1, 2), w = (3, -1): raw 1; (1 - 0.5) / 0.25 = 2."""
    head = ScalarHead(2, shift=0.5, scale=0.25)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[3.0, -1.0]]))
    assert head(torch.tensor([1.0, 2.0], dtype=torch.bfloat16)).tolist() == [2.0]


def test_a_fresh_head_starts_at_log_two_from_its_seed(base):
    backbone = load_backbone(base, dtype="bfloat16", device="cpu")
    model, same, other = (new_scalar_model(backbone, seed=s) for s in (0, 0, 1))
    assert torch.equal(model.head.weight, same.head.weight)
    assert not torch.equal(model.head.weight, other.head.weight)
    assert model.head.weight.dtype == torch.float32
    tokenizer = load_tokenizer(base)
    margin = last_score(model, tokenizer, TEXTS[0]) - last_score(model, tokenizer, TEXTS[1])
    assert margin != 0
    assert -logsigmoid(margin).item() == pytest.approx(math.log(2), abs=0.15)


@pytest.mark.parametrize("lora", [None, LoRA(rank=4)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_saved_reward_model_scores_alike_in_transformers_alone_and_in_padded_batches(base, tmp_path, lora, side):
    model, tokenizer = trained_reward(base, lora)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    tokenizer.pad_token = "<|im_end|>"  # the trap: padding is the stop token, and texts end with it
    save_reward_model(model, tokenizer, tmp_path / "reward_model")
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert tokenizer.pad_token == "<|im_end|>"

    with torch.no_grad():
        ours = torch.stack([last_score(model, tokenizer, text) for text in TEXTS])
    assert ours.std() > 0.01
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward_model")
    words = AutoTokenizer.from_pretrained(tmp_path / "reward_model", padding_side=side)
    with torch.no_grad():
        batch = words(TEXTS, padding=True, return_tensors="pt")
        positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        raw = theirs(**batch, position_ids=positions).logits[:, 0]
    assert_close((raw - 0.75) / 2.0, ours, atol=1e-5, rtol=1e-4)
    again = load_reward_model(tmp_path / "reward_model", dtype="float32", device="cpu")
    with torch.no_grad():
        assert_close(torch.stack([last_score(again, words, text) for text in TEXTS]), ours, atol=1e-5, rtol=1e-4)
    scorer = load_classifier(tmp_path, device="cpu")
    with torch.no_grad():
        assert_close(scorer.score(**scorer.tokenizer(TEXTS[1], return_tensors="pt"))[0], ours[1], atol=1e-5, rtol=1e-4)


def test_reward_model_as_a_start_with_an_adapter_keeps_its_scores(base, tmp_path):
    model, tokenizer = trained_reward(base)
    save_reward_model(model, tokenizer, tmp_path / "reward_model")
    value = load_reward_model(tmp_path / "reward_model", lora=LoRA(rank=2), dtype="float32", device="cpu")
    assert_close(last_score(value, tokenizer, TEXTS[2]), last_score(model, tokenizer, TEXTS[2]))
    trained = {name for name, p in value.named_parameters() if p.requires_grad}
    assert "head.weight" in trained
    assert all("lora_" in name for name in trained - {"head.weight"})


def test_a_policy_is_not_silently_a_classifier(base):
    for loader in (load_reward_model, load_classifier):
        with pytest.raises(ValueError, match=r"no weights for \['score.weight'\]"):
            loader(base, device="cpu")


@pytest.fixture
def encoder(tmp_path):
    """A BERT classifier with two named labels."""
    torch.manual_seed(0)
    names = {0: "NEGATIVE", 1: "POSITIVE"}
    settings = BertConfig(
        vocab_size=259, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, id2label=names
    )
    settings.initializer_range = 0.3
    model = BertForSequenceClassification(settings).eval()
    model.save_pretrained(tmp_path / "bert")
    tiny()[1].save_pretrained(tmp_path / "bert")
    return model, tmp_path / "bert"


def test_any_encoder_is_a_scorer_by_the_name_of_its_label(encoder):
    model, path = encoder
    scorer = load_classifier(path, label="POSITIVE", device="cpu")
    batch = scorer.tokenizer("good", return_tensors="pt")
    assert scorer.index == 1
    with torch.no_grad():
        assert scorer.score(**batch).item() == pytest.approx(model(**batch).logits[0, 1].item(), abs=1e-6)
        assert torch.equal(scorer.model.train()(**batch).logits, scorer.model.train()(**batch).logits)


def test_labels_are_listed_and_encoders_have_no_last_token_score(encoder):
    _, path = encoder
    with pytest.raises(ValueError, match="2 labels; name the one that is the score: NEGATIVE, POSITIVE"):
        load_classifier(path)
    with pytest.raises(ValueError, match="no label 'toxic'; allowed: NEGATIVE, POSITIVE"):
        load_classifier(path, label="toxic")
    with pytest.raises(ValueError, match=r"must be a decoder.*BertForSequenceClassification with 2 labels"):
        load_reward_model(path)
