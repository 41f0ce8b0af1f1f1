"""The decoder: its log-probs are the trainer's, its answers depend on nothing but their seed, and it stops where it must."""

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MistralConfig,
)

from tutelage.data.batch import sequences
from tutelage.models.drawing import uniforms_of
from tutelage.models.logprobs import CausalModel
from tutelage.models.lora import LoRA, add_lora, reference_mode
from tutelage.models.sampling import Decoder, Decoding
from tutelage.models.tiny import tiny

pytestmark = pytest.mark.usefixtures("kernels")
PROMPTS = [list(b"Why is the sky blue?"), list(b"Hi"), list(b"Count to three"), list(b"x")]
STOP = 257
SHAPE = {
    "vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3, "bos_token_id": 256,
    "eos_token_id": 257, "pad_token_id": 258,
}  # fmt: skip


def decoder_of(model, tokenizer=None, stop=(STOP,), **settings):
    return Decoder(model, stop, tokenizer.decode if tokenizer else str, **settings)


def small(**settings):
    return tiny(hidden=32, heads=4, kv_heads=2, std=0.3, **settings)


def trainer_logprobs(model, prompts, groups, temperature):
    """What `CausalModel` says of the decoder's answers, as rows of their own lengths."""
    answers = [answer for group in groups for answer in group]
    owner = [p for p, group in enumerate(groups) for _ in group]
    with torch.no_grad():
        logp = CausalModel(model, temperature).logprobs(sequences(prompts, owner, [a.tokens for a in answers]))
    return [(torch.tensor(a.logprobs, dtype=logp.dtype), row[: len(a.tokens)]) for a, row in zip(answers, logp)]


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.3])
@pytest.mark.parametrize(("float64", "tolerance"), [(False, 1e-4), (True, 1e-10)])
def test_its_logprobs_are_the_trainers(temperature, float64, tolerance):
    """Invariant 3, with prompts of several lengths, more answers than slots, and rows that leave at different times."""
    model, tokenizer = small(float64=float64)
    decoder = decoder_of(model, tokenizer, stop=tuple(range(0, 259, 9)), rows=5)
    groups = decoder.sample(PROMPTS, 4, Decoding(max_tokens=24, temperature=temperature), "seed")
    assert len({len(a.tokens) for group in groups for a in group}) > 4, "rows should end at different times"
    for sampled, trained in trainer_logprobs(model, PROMPTS, groups, temperature):
        assert_close(sampled, trained, atol=tolerance, rtol=0)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 64])
def test_answers_do_not_depend_on_who_shares_the_batch(rows):
    """The same tokens and log-probs from any number of slots, and for a prompt asked alone."""
    model, tokenizer = small(float64=True)
    decoding = Decoding(max_tokens=12, temperature=1.2)
    stop = tuple(range(0, 259, 12))
    together = decoder_of(model, tokenizer, stop).sample(PROMPTS, 3, decoding, "s")
    again = decoder_of(model, tokenizer, stop, rows=rows).sample(PROMPTS, 3, decoding, "s")
    alone = decoder_of(model, tokenizer, stop, rows=rows).sample(PROMPTS[:1], 2, decoding, "s")
    assert [a.tokens for g in again for a in g] == [a.tokens for g in together for a in g]
    assert [a.tokens for a in alone[0]] == [a.tokens for a in together[0][:2]]
    for a, b in zip([a for g in again for a in g], [b for g in together for b in g]):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-10)


def test_a_seed_names_the_draw():
    model, tokenizer = small()
    decoder = decoder_of(model, tokenizer)

    def tokens(prompts, seed):
        return [[a.tokens for a in group] for group in decoder.sample(prompts, 4, Decoding(8), seed)]

    first = tokens([PROMPTS[0], PROMPTS[0]], "a")
    assert first == tokens([PROMPTS[0], PROMPTS[0]], "a")
    assert len({t for group in first for t in group}) == 8, "answers to one prompt, asked twice, should all differ"
    assert first != tokens([PROMPTS[0], PROMPTS[0]], "b")


def test_the_stop_token_is_part_of_the_answer():
    """With every token a stop token an answer is one token; without any it runs to the limit, and says so."""
    model, tokenizer = small()
    stopped = decoder_of(model, tokenizer, stop=tuple(range(259))).sample(PROMPTS, 2, Decoding(9), "s")
    assert [(len(a.tokens), a.text, a.stop_reason, a.finished) for g in stopped for a in g] == [
        (1, "", "stop", True)
    ] * 8
    cut = decoder_of(model, tokenizer, stop=()).sample(PROMPTS, 2, Decoding(9), "s")
    assert [(len(a.tokens), a.stop_reason, a.finished) for g in cut for a in g] == [(9, "length", False)] * 8
    assert all(a.text == tokenizer.decode(a.tokens) for g in cut for a in g)


def test_stop_and_limit_in_one_draw():
    """A token that was drawn in the middle becomes the stop token: the answer is what came before and the stop token."""
    model, tokenizer = small(float64=True)
    (free,) = decoder_of(model, tokenizer, stop=()).sample(PROMPTS[:1], 1, Decoding(12), "s")
    at = next(i for i, t in enumerate(free[0].tokens) if i > 2 and t not in free[0].tokens[:i])
    (ended,) = decoder_of(model, tokenizer, stop=(free[0].tokens[at],)).sample(PROMPTS[:1], 1, Decoding(12), "s")
    assert ended[0].tokens == free[0].tokens[: at + 1]
    assert ended[0].stop_reason == "stop"
    assert ended[0].text == tokenizer.decode(free[0].tokens[:at])
    last = decoder_of(model, tokenizer, stop=(free[0].tokens[at],)).sample(PROMPTS[:1], 1, Decoding(at + 1), "s")[0][0]
    assert last.finished, "an answer that stops on the last allowed token has finished"


def generated(model, prompt, new):
    """transformers' own greedy answer."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=new,
        eos_token_id=STOP,
        pad_token_id=258,
    )
    return tuple(out[0, len(prompt) :].tolist())


def letters(tokens) -> str:
    return "".join(chr(97 + t % 26) for t in tokens)


def test_a_stop_string_ends_the_answer_and_is_cut_from_its_text():
    """The tokens that spell it stay, with the log-probs they were drawn at; of two strings the first to come counts."""
    model, _ = small(float64=True)
    decoder = Decoder(model, (), letters, rows=5)
    free = decoder.sample(PROMPTS, 2, Decoding(20), "s")
    stops = (free[0][0].text[7:10], free[2][1].text[3:5])
    for before, after in zip(free, decoder.sample(PROMPTS, 2, Decoding(20, stop=stops), "s"), strict=True):
        for whole, cut in zip(before, after, strict=True):
            ends = [at + len(stop) for stop in stops if (at := whole.text.find(stop)) >= 0]
            if not ends:
                assert (cut.tokens, cut.text, cut.stop_reason) == (whole.tokens, whole.text, "length")
                continue
            assert cut.tokens == whole.tokens[: min(ends)]
            assert cut.logprobs == pytest.approx(whole.logprobs[: min(ends)])
            assert cut.stop_reason == "stop"
            assert cut.finished
            assert not any(stop in cut.text for stop in stops)
            assert whole.text.startswith(cut.text)
    first = decoder.sample(PROMPTS, 2, Decoding(20, stop=stops[:1]), "s")[0][0]
    assert (first.text, len(first.tokens)) == (free[0][0].text[:7], 10)
    assert list(decoder.stream(PROMPTS[0], Decoding(20, stop=stops[:1]), "s"))[-1] == first.text


@pytest.mark.slow
def test_batchings_disagree_only_at_the_edge_of_a_token():
    """Counted: in float32 the logits of a row depend on its batch in the last bit, and so may a draw at an edge of the CDF."""
    model, tokenizer = small()
    decoding, prompts = Decoding(24), PROMPTS * 4
    one = [a for g in decoder_of(model, tokenizer, rows=1).sample(prompts, 4, decoding, "s") for a in g]
    differing = 0
    for rows in (3, 64):
        many = [a for g in decoder_of(model, tokenizer, rows=rows).sample(prompts, 4, decoding, "s") for a in g]
        for n, (a, b) in enumerate(zip(one, many, strict=True)):
            if a.tokens == b.tokens:
                continue
            differing += 1
            t = next(i for i, (x, y) in enumerate(zip(a.tokens, b.tokens)) if x != y)
            with torch.no_grad():
                logits = model(torch.tensor([[*prompts[n // 4], *a.tokens[:t]]])).logits[0, -1]
            edges = logits.double().softmax(-1).cumsum(-1)
            u = uniforms_of("s", n // 4, n % 4, t + 1)[t]
            assert float((edges - u).abs().min()) < 1e-6
    assert differing <= 1, f"{differing} of {2 * len(one)} answers, each of 24 tokens"


def test_greedy_is_transformers_generate():
    model, tokenizer = small()
    groups = decoder_of(model, tokenizer, rows=3).sample(PROMPTS, 1, Decoding(20, temperature=0.0), "s")
    assert [group[0].tokens for group in groups] == [generated(model, prompt, 20) for prompt in PROMPTS]


def test_greedy_logprobs_are_those_of_temperature_one():
    model, tokenizer = small(float64=True)
    groups = decoder_of(model, tokenizer).sample(PROMPTS, 1, Decoding(6, temperature=0.0), "s")
    for sampled, trained in trainer_logprobs(model, PROMPTS, groups, 1.0):
        assert_close(sampled, trained, atol=1e-10, rtol=0)


def test_truncated_draws_stay_inside_and_are_renormalised():
    """With top-p tiny only the likeliest token is left: greedy tokens, each with log-prob 0."""
    model, tokenizer = small()
    greedy = decoder_of(model, tokenizer).sample(PROMPTS, 1, Decoding(8, temperature=0.0), "s")
    for decoding in (Decoding(8, top_p=1e-6), Decoding(8, min_p=1.0)):
        nucleus = decoder_of(model, tokenizer).sample(PROMPTS, 1, decoding, "s")
        assert [a.tokens for g in nucleus for a in g] == [a.tokens for g in greedy for a in g]
        assert all(value == 0 for g in nucleus for a in g for value in a.logprobs)


def test_context_is_on_for_the_forward_only():
    """The reference of an adapter speaks for itself, and nothing stays switched while the caller has the floor."""
    model, tokenizer = small(float64=True)
    plain = [a.tokens for a in decoder_of(model, tokenizer).sample(PROMPTS[:1], 2, Decoding(8), "s")[0]]
    adapted = add_lora(model, LoRA(rank=2, alpha=4))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    policy, reference = decoder_of(adapted, tokenizer), decoder_of(adapted, tokenizer, context=reference_mode)
    both = [policy.stream(PROMPTS[0], Decoding(8), "s"), reference.stream(PROMPTS[0], Decoding(8), "s")]
    texts = [[], []]
    for _ in range(4):  # in turns, as a comparison in a chat does
        for stream, text in zip(both, texts):
            text.append(next(stream))
            assert not torch.is_inference_mode_enabled()
            assert torch.is_grad_enabled()
    assert texts[0] != texts[1]
    assert tokenizer.decode(plain[0][:4]) == texts[1][-1]
    assert [a.tokens for a in reference.sample(PROMPTS[:1], 2, Decoding(8), "s")[0]] == plain


def test_stream_says_the_sampled_answer():
    model, tokenizer = small()
    decoder = decoder_of(model, tokenizer, stop=tuple(range(0, 259, 9)))
    seen = []
    whole = decoder.sample(PROMPTS[:1], 1, Decoding(20), "s", on_answer=seen.append)[0][0]
    texts = list(decoder.stream(PROMPTS[0], Decoding(20), "s"))
    assert len(texts) == len(whole.tokens)
    assert texts[-1] == whole.text
    assert seen == [whole]


def test_nothing_to_do():
    model, tokenizer = small()
    assert decoder_of(model, tokenizer).sample([], 3, Decoding(4), "s") == []
    assert decoder_of(model, tokenizer).sample(PROMPTS[:2], 0, Decoding(4), "s") == [[], []]


def test_a_model_without_grouped_keys_and_one_that_cannot_run():
    """GPT-NeoX (Pythia) names no number of key-value heads; GPT-2 is refused with the reason."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    neox = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, initializer_range=0.3,
        )
    ).eval()  # fmt: skip
    groups = decoder_of(neox).sample(PROMPTS, 2, Decoding(8), "s")
    for sampled, trained in trainer_logprobs(neox, PROMPTS, groups, 1.0):
        assert_close(sampled, trained, atol=1e-4, rtol=0)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=259, n_embd=16, n_layer=1, n_head=2, n_positions=64)).eval()
    with pytest.raises(ValueError, match="gpt2 has no rotary positions"):
        decoder_of(gpt2).sample(PROMPTS, 1, Decoding(4), "s")


WINDOWED = {
    "mistral": MistralConfig(**SHAPE, sliding_window=5),
    "gemma2": Gemma2Config(**SHAPE, head_dim=8, sliding_window=5, attn_logit_softcapping=0.5),
    "gemma3": Gemma3TextConfig(
        **SHAPE, head_dim=8, sliding_window=5, layer_types=["sliding_attention", "full_attention"]
    ),
}


@pytest.mark.parametrize("name", WINDOWED)
def test_windows_and_soft_caps_are_decoded(name):
    """Windows of 5 tokens, prompts and answers longer than that: log-probs as one plain call of the model gives them."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(WINDOWED[name]).eval()
    for prompt, group in zip(PROMPTS, decoder_of(model, rows=3).sample(PROMPTS, 2, Decoding(9), "s"), strict=True):
        for answer in group:
            with torch.no_grad():
                logp = model(torch.tensor([[*prompt, *answer.tokens]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            own = logp[torch.arange(len(answer.tokens)), list(answer.tokens)]
            assert_close(torch.tensor(answer.logprobs), own, atol=2e-5, rtol=0)


@pytest.mark.slow
def test_the_demo_model(demo_model):
    """Invariant 3 and greedy decoding on SmolLM2-135M-Instruct, prompts of unequal length."""
    from tutelage.models.load import load_policy, load_tokenizer

    model, tokenizer = load_policy(demo_model, dtype="float32", device="cpu"), load_tokenizer(demo_model)
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)["input_ids"]
        for text in ("Name three colours.", "What is the capital of France? Answer in one word.")
    ]
    decoder = Decoder(model, (tokenizer.eos_token_id,), tokenizer.decode, rows=3)
    for temperature in (0.6, 1.0, 1.3):
        groups = decoder.sample(prompts, 2, Decoding(24, temperature), "s")
        for sampled, trained in trainer_logprobs(model, prompts, groups, temperature):
            assert_close(sampled, trained, atol=1e-4, rtol=0)
    for prompt, group in zip(prompts, decoder.sample(prompts, 1, Decoding(24, 0.0), "s")):
        ids = torch.tensor([prompt])
        own = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24)
        assert group[0].tokens == tuple(own[0, len(prompt) :].tolist())
    assert "Paris" in group[0].text
