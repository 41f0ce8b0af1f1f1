"""Models as rewards: equal to transformers' own scores, whatever the batch, the padding and the tokenizer."""

from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.testing import assert_close
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from tutelage.data.chat import Chat
from tutelage.models.heads import new_scalar_model, save_reward_model
from tutelage.models.load import load_backbone, save_policy
from tutelage.models.logprobs import HeadedModel
from tutelage.models.tiny import tiny
from tutelage.records import Answer, Message, Prompt, user
from tutelage.rewards.combine import combine
from tutelage.rewards.model import RewardModelReward, answer_ids

PROMPTS = [
    user("Say hello.", id="a"),
    Prompt(
        (Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Hm?"), Message("user", "é?")),
        id="b",
    ),
]
GROUPS = [[Answer("Hello"), Answer("Hello, you there!", stop_reason="length"), Answer("")], [Answer("good bad good")]]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "hello", "say", ".", "!", "?", ":", "user", "hi"]


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory):
    """A run folder with a reward model of ours; its scores are shifted and scaled."""
    folder = tmp_path_factory.mktemp("runs") / "helpful"
    policy, tokenizer = tiny()
    save_policy(policy, tokenizer, folder / "base")
    model = new_scalar_model(load_backbone(folder / "base", dtype="float32", device="cpu"))
    model.head.shift, model.head.scale = 0.25, 0.01
    save_reward_model(model, tokenizer, folder / "reward_model")
    return folder


def bert_tokenizer(**options):
    backend = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names, **options)


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    """A random two-layer encoder that tells toxic from kind."""
    folder = tmp_path_factory.mktemp("encoder")
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=24,
        initializer_range=0.5,
        id2label={0: "kind", 1: "toxic"},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertForSequenceClassification(config).eval().save_pretrained(folder)
    bert_tokenizer(model_max_length=24).save_pretrained(folder)
    return folder


def transformers_scores(folder, rows):
    """Each row of ids alone, no padding anywhere, by transformers."""
    model = AutoModelForSequenceClassification.from_pretrained(folder / "reward_model").eval()
    with torch.no_grad():
        return [model(input_ids=torch.tensor([row])).logits[0, 0].item() for row in rows]


def test_our_reward_model_scores_the_rendered_conversation(reward_folder):
    reward = RewardModelReward.load(str(reward_folder), device="cpu")
    assert isinstance(reward.scorer, HeadedModel)
    start, end = "<|im_start|>", "<|im_end|>"
    first = f"{start}user\nSay hello.{end}\n{start}assistant\n"
    second = f"{start}system\nBe kind.{end}\n{start}user\nHi{end}\n{start}assistant\nHm?{end}\n{start}user\né?{end}\n{start}assistant\n"
    texts = [f"{first}Hello{end}", f"{first}Hello, you there!", f"{first}{end}", f"{second}good bad good{end}"]
    texts = [text + "\n" for text in texts]  # the template's own last words, as `apply_chat_template` gives them
    raw = transformers_scores(reward_folder, [reward.tokenizer(text).input_ids for text in texts])
    expected = [(score - 0.25) / 0.01 for score in raw]
    values = reward.score(PROMPTS, GROUPS)
    assert [len(row) for row in values] == [3, 1]
    assert_close(torch.tensor([*values[0], *values[1]]), torch.tensor(expected), atol=1e-3, rtol=1e-5)
    assert len({round(v, 2) for row in values for v in row}) == 4


@pytest.mark.parametrize("kind", ["ours", "encoder"])
def test_scores_do_not_depend_on_the_batch(kind, reward_folder, encoder_folder):
    if kind == "ours":
        reward = RewardModelReward.load(str(reward_folder), device="cpu")
    else:
        reward = RewardModelReward.load(str(encoder_folder), label="toxic", of="conversation", device="cpu")
    together = reward.score(PROMPTS, GROUPS)
    alone = [[reward.score([p], [[a]])[0][0] for a in group] for p, group in zip(PROMPTS, GROUPS, strict=True)]
    turned = reward.score(PROMPTS[::-1], [group[::-1] for group in GROUPS[::-1]])
    for first, second, third in zip(together, alone, turned[::-1], strict=True):
        assert_close(torch.tensor(first), torch.tensor(second), atol=1e-4, rtol=1e-5)
        assert_close(torch.tensor(first), torch.tensor(third[::-1]), atol=1e-4, rtol=1e-5)


def test_sampled_ids_are_the_truth_where_they_read_as_the_answer(reward_folder):
    """Ids of another tokenizer, out of range or of another text, are replaced by the text's own."""
    _, tokenizer = tiny()
    chat = Chat.of(tokenizer)
    ids = (*b"Hello", 257)
    assert answer_ids(chat, PROMPTS[0], Answer("Hello", ids)) == list(ids)
    assert answer_ids(chat, PROMPTS[0], Answer("Hello", tuple(b"Hello"), stop_reason="length")) == list(b"Hello")
    other_tokenizer = Answer("Hello", (17, 90_000), stop_reason="stop")
    assert answer_ids(chat, PROMPTS[0], other_tokenizer) == list(ids)
    also_other = Answer("Hello", (72, 73), stop_reason="stop")
    assert answer_ids(chat, PROMPTS[0], also_other) == list(ids)
    reward = RewardModelReward.load(str(reward_folder), device="cpu")
    variants = [Answer("Hello", ids), Answer("Hello"), other_tokenizer, also_other]
    scores = reward.score(PROMPTS[:1], [variants])[0]
    assert_close(torch.tensor(scores), torch.full((4,), scores[1]), atol=1e-4, rtol=0)


def test_an_unusual_tokenisation_of_the_same_text_is_kept():
    """ "ab" as one token or as two: what was sampled is what is scored."""
    text_of = {(0, 1): "ab", (2,): "ab"}
    chat = SimpleNamespace(
        tokenizer=("a", "b", "ab"),
        decode=lambda ids: text_of[tuple(ids)],
        answer_tokens=lambda *_: pytest.fail("re-tokenised"),
    )
    assert answer_ids(chat, PROMPTS[0], Answer("ab", (0, 1))) == [0, 1]
    assert answer_ids(chat, PROMPTS[0], Answer("ab", (2,))) == [2]


def test_the_stop_token_inside_the_prompt_and_as_padding_is_no_end(tmp_path):
    """Padding == stop token, as SmolLM2 has it, and a classifier with two labels: read at the last real token all the same."""
    policy, tokenizer = tiny()
    tokenizer.pad_token = tokenizer.eos_token
    config = policy.config
    config.pad_token_id, config.num_labels = 257, 2
    config.id2label = {0: "bad", 1: "good"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reward = RewardModelReward.load(str(tmp_path), label="good", device="cpu")
    scores = reward.score(PROMPTS, GROUPS)
    chat = Chat.of(tokenizer)
    for prompt, group, row in zip(PROMPTS, GROUPS, scores, strict=True):
        for answer, score in zip(group, row, strict=True):
            ids = chat.prompt_tokens(prompt) + chat.answer_tokens(prompt, answer) + [10]  # the template's line break
            with torch.no_grad():
                hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
                expected = model.score(hidden)[1].item()
            assert score == pytest.approx(expected, abs=1e-4)


def test_an_encoder_reads_the_answer_or_a_pair(encoder_folder):
    model = BertForSequenceClassification.from_pretrained(encoder_folder).eval()
    tokenizer = bert_tokenizer()
    answers = [Answer("good good"), Answer("bad !"), Answer("")]
    prompt = user("say hello")
    with torch.no_grad():
        logits = [model(**tokenizer(a.text, return_tensors="pt")).logits[0] for a in answers]
        pairs = [model(**tokenizer("say hello", a.text, return_tensors="pt")).logits[0] for a in answers]
    alone = RewardModelReward.load(str(encoder_folder), label="toxic", device="cpu")
    assert alone.score([prompt], [answers])[0] == pytest.approx([row[1].item() for row in logits], abs=1e-4)
    both = RewardModelReward.load(str(encoder_folder), label="kind", of="conversation", device="cpu")
    assert both.score([prompt], [answers])[0] == pytest.approx([row[0].item() for row in pairs], abs=1e-4)
    assert abs(logits[0][1] - pairs[0][1]) > 0.01


def test_probabilities_of_an_encoder(encoder_folder, tmp_path):
    """One label of two holds: softmax, they sum to 1. Labels that may all hold: the logistic function of each logit."""
    answers = [Answer("good good"), Answer("bad !")]

    def read(folder, **how):
        return torch.tensor(RewardModelReward.load(str(folder), device="cpu", **how).score([user("x")], [answers])[0])

    logits = torch.stack([read(encoder_folder, label=label) for label in ("kind", "toxic")], 1)
    toxic, kind = (read(encoder_folder, label=label, output="probability") for label in ("toxic", "kind"))
    assert_close(toxic, logits.softmax(1)[:, 1])
    assert_close(toxic + kind, torch.ones(2))
    several = BertForSequenceClassification.from_pretrained(encoder_folder)
    several.config.problem_type = "multi_label_classification"
    several.save_pretrained(tmp_path)
    bert_tokenizer(model_max_length=24).save_pretrained(tmp_path)
    assert_close(read(tmp_path, label="toxic", output="probability"), logits[:, 1].sigmoid())
    assert combine([f"{encoder_folder}(label=toxic, output=probability, above=0.5)"], device="cpu").score(
        [user("x")], [answers]
    )[0] == [(toxic > 0.5).float().tolist()]


def test_a_decoder_of_several_labels_has_no_probability(tmp_path):
    policy, tokenizer = tiny()
    config = policy.config
    config.num_labels = 3
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    RewardModelReward.load(str(tmp_path), label="LABEL_1", device="cpu")
    with pytest.raises(ValueError, match="of a decoder with several labels the logit can be had, not the probability"):
        RewardModelReward.load(str(tmp_path), label="LABEL_1", output="probability", device="cpu")


def test_several_turns_are_named_in_a_pair(encoder_folder):
    reward = RewardModelReward.load(str(encoder_folder), label="kind", of="conversation", device="cpu")
    assert reward._texts(PROMPTS[1], Answer("x")) == ("System: Be kind.\nUser: Hi\nAssistant: Hm?\nUser: é?", "x")
    assert reward._texts(PROMPTS[0], Answer("x")) == ("Say hello.", "x")


def test_what_is_too_long_is_cut_and_counted(encoder_folder, reward_folder):
    """24 positions: [CLS] + 22 words + [SEP]."""
    reward = RewardModelReward.load(str(encoder_folder), label="toxic", device="cpu")
    scored = reward.measure([PROMPTS[0]], [[Answer("good " * 22), Answer("good " * 23), Answer("good " * 90)]])
    assert scored.flags["truncated"] == [[0, 1, 1]]
    assert scored.values[0] == pytest.approx([scored.values[0][0]] * 3, abs=1e-5)
    ours = RewardModelReward.load(str(reward_folder), device="cpu")
    prompt = user("x" * 4050)
    whole = len(ours.chat.prompt_tokens(prompt))
    fits, longer = (
        Answer("y" * (4095 - whole), stop_reason="length"),
        Answer("y" * (4096 - whole), stop_reason="length"),
    )
    assert [ours._row(prompt, a)[2] for a in (fits, longer)] == [False, True]
    before, said, _ = ours._row(prompt, longer)
    assert (len(before) + len(said), len(said)) == (4096, 4097 - whole)
    assert said[-1] == 10, "a cut answer is read at the same token too"
    assert list(before) == ours.chat.prompt_tokens(prompt)[1:]


def test_by_name_with_weight_and_label(encoder_folder, reward_folder):
    reward = combine([f"{reward_folder}=2", f"{encoder_folder}(label=toxic)=-0.5"], device="cpu")
    total, parts = reward.score(PROMPTS, GROUPS)
    names = [reward_folder.name, encoder_folder.name]
    assert [term.name for term in reward.terms] == names
    for p, group in enumerate(GROUPS):
        for g in range(len(group)):
            expected = 2 * parts[names[0]][p][g] - 0.5 * parts[names[1]][p][g]
            assert total[p][g] == pytest.approx(expected)
    assert parts[f"{names[0]}_truncated"] == [[0, 0, 0], [0]]


def test_refused_at_the_door(encoder_folder, reward_folder, tmp_path):
    with pytest.raises(ValueError, match="has 2 labels; name the one that is the score: kind, toxic"):
        combine([str(encoder_folder)], device="cpu")
    with pytest.raises(ValueError, match="no label 'nice'; allowed: kind, toxic"):
        combine([f"{encoder_folder}(label=nice)"], device="cpu")
    with pytest.raises(ValueError, match="`on_error` has no meaning"):
        combine([f"{reward_folder}(on_error=0)"], device="cpu")
    with pytest.raises(ValueError, match="no weights for"):
        combine([str(reward_folder / "base")], device="cpu")
    model = LlamaForSequenceClassification.from_pretrained(reward_folder / "reward_model")
    model.save_pretrained(tmp_path)
    _, tokenizer = tiny()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no chat template; give it one, or add \(of=answer\)"):
        RewardModelReward.load(str(tmp_path), of="conversation", device="cpu")
    alone = RewardModelReward.load(str(tmp_path), device="cpu")
    assert alone.reads == "answer"
    raw = transformers_scores(reward_folder, [list(b"Hello")])[0]
    assert alone.score(PROMPTS[:1], [GROUPS[0][:1]])[0] == pytest.approx([(raw - 0.25) / 0.01], abs=1e-3)
    assert len(alone.score(PROMPTS[:1], [[Answer("")]])[0]) == 1


def test_broken_weights_are_an_error(reward_folder):
    reward = RewardModelReward.load(str(reward_folder), device="cpu")
    with torch.no_grad():
        reward.scorer.module.head.weight[:] = float("nan")
    with pytest.raises(ValueError, match="gives nan on prompt 'a': its weights are broken"):
        reward.measure(PROMPTS, GROUPS)
