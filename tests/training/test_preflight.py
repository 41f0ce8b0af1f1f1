"""Each finding on a case where it fails and one where it holds; the rehearsal leaves nothing behind; the plan by hand."""

import json
from dataclasses import replace

import pytest
import torch

from tutelage.algorithms.base import Models
from tutelage.algorithms.grpo import GRPO
from tutelage.algorithms.ppo import PPO
from tutelage.algorithms.preference import DPO
from tutelage.algorithms.reward_model import BradleyTerry
from tutelage.algorithms.sft import SFT
from tutelage.data.batch import sequences
from tutelage.data.chat import Chat
from tutelage.data.collate import Collated, comparisons, demonstrations
from tutelage.models.drawing import Decoding
from tutelage.models.heads import new_scalar_model
from tutelage.models.logprobs import CausalModel, HeadedModel
from tutelage.models.lora import LoRA, add_lora, reference_mode
from tutelage.models.sampling import Decoder
from tutelage.models.tiny import tiny as make_tiny
from tutelage.records import Answer, Comparison, Demonstration, Message, user
from tutelage.training.findings import (
    one_vocabulary,
    rows_trained,
    same_template,
    sampler_agrees,
    stop_trained,
    within_context,
)
from tutelage.training.loop import Task
from tutelage.training.optim import Optimization
from tutelage.training.preflight import examine, marked, preflight, show_examples, shown_rows
from tutelage.training.rehearsal import Rehearsal, Tried, heaviest, imagined, packed_tokens, plan, ran_out, try_sampler
from tutelage.training.rollouts import RolloutSource
from tutelage.training.run import Run

END = 257
SETTINGS = Optimization(tokens_per_pass=64)


def said(text, answer):
    return Demonstration((Message("user", text), Message("assistant", answer)))


DEMOS = [said("hi", "yes"), said("how?", "so " * 4), said("who?", "I")]
PAIRS = [Comparison(user("hi"), Answer("yes"), Answer("no")), Comparison(user("how?"), Answer("so"), Answer("no no"))]
PROMPTS = [user("hi"), user("how are you?"), user("who?")]


def policy_of(model, adapter=True):
    return add_lora(model, LoRA(rank=2), task="CAUSAL_LM") if adapter else model


def sft_task(module, chat, records=DEMOS, max_tokens=100, **changes):
    collated = demonstrations(records, chat, max_tokens)
    models = Models(policy=CausalModel(module))
    task = Task(models, SFT(), lambda step: (collated.batch, {}), {"policy": module}, 4, 1e-3, SETTINGS)
    return replace(task, **changes), collated


def rl_task(module, chat, algorithm=None, temperature=1.0, **changes):
    source = RolloutSource(
        draw_prompts=lambda step: PROMPTS[:2],
        encode=chat.prompt_tokens,
        sampler=Decoder(module, chat.stop_tokens, chat.decode),
        score=lambda prompts, groups: pytest.fail("a preflight asks no reward"),
        decoding=Decoding(12, temperature),
        group_size=2,
        seed=0,
        keep_samples=lambda step, rows: pytest.fail("a preflight keeps no samples"),
    )
    models = Models(policy=CausalModel(module), reference=CausalModel(module, context=reference_mode))
    method = algorithm or GRPO(group_size=2)
    return replace(Task(models, method, source, {"policy": module}, 4, 1e-3, SETTINGS), **changes)


def failed(found):
    return [finding.name for finding in found.findings if not finding.ok]


@pytest.fixture
def chat(tiny):
    return Chat.of(tiny[1])


# --- rows and stop token ---------------------------------------------------------------------------------------------


def test_rows_are_counted_by_fate(chat):
    collated = demonstrations([*DEMOS, said("hi", "x" * 90)], chat, 60)
    finding = rows_trained(collated.batch, collated.counts)
    assert finding.ok
    # trained: 3 + 12 + 1 letters, an end-of-turn token each; "hi" opens with 21 tokens, so 60 - 21 = 39 of the long one
    assert finding.text == "4 records: 3 kept (75.0%), 1 truncated (25.0%); 58 tokens to train on"


def test_rows_without_a_trained_token_fail():
    batch = sequences([[1]], [0, 0], [[5, END], [6, END]], [[False, False], [False, False]])
    finding = rows_trained(batch, {"kept": 2})
    assert not finding.ok
    assert finding.text == "2 records: 2 kept (100.0%), 2 fully masked (100.0%); 0 tokens to train on"
    assert rows_trained(replace(batch, mask=torch.tensor([[False, True], [False, False]])), {"kept": 2}).ok
    assert not rows_trained(sequences([[1]], [0, 0], [[5], []]), {"kept": 2}).ok  # an empty row


def test_all_rows_masked_stops_before_the_model_runs(tiny, chat):
    task, collated = sft_task(policy_of(tiny[0]), chat)
    batch = replace(collated.batch, mask=torch.zeros_like(collated.batch.mask))
    found = examine(task, chat, DEMOS, Collated(batch, collated.counts))
    assert failed(found) == ["rows", "stop token"]
    assert found.plan is None


def test_a_mask_without_the_stop_token_fails(chat):
    collated = demonstrations(DEMOS, chat, 100)
    assert stop_trained(collated.batch, collated.counts, chat.stop_tokens).ok
    batch = collated.batch
    masked = replace(batch, mask=batch.mask & (batch.tokens != END))
    finding = stop_trained(masked, collated.counts, chat.stop_tokens)
    assert not finding.ok
    assert finding.text.startswith("0 rows train the end-of-turn token, 3 do not (0 cut")


def test_every_turn_must_end_with_the_stop_token():
    def two_turns(stop):  # an answer, two tokens of a user, an answer
        return sequences([[1]], [0], [[5, stop, 8, 9, 6, END]], [[True, True, False, False, True, True]])

    assert stop_trained(two_turns(END), {"kept": 1}, [END]).ok
    assert not stop_trained(two_turns(7), {"kept": 1}, [END]).ok


def test_cut_rows_are_excused_and_only_they():
    rows = sequences([[1]], [0, 0], [[5, 6, 7], [5, END]])  # 4 tokens with the prompt: the cut; 3
    assert stop_trained(rows, {"kept": 1, "truncated": 1}, [END]).ok
    assert not stop_trained(rows, {"kept": 2}, [END]).ok
    short = sequences([[1]], [0, 0, 0], [[5, 6, 7], [5, END], [5, 6]])  # the last one was not cut and does not stop
    assert not stop_trained(short, {"kept": 2, "truncated": 1}, [END]).ok
    at_a_turn = sequences(
        [[1]], [0, 0], [[5, 6, END], [5, 6]]
    )  # the cut fell behind a turn's end: that excuses no other row
    assert not stop_trained(at_a_turn, {"kept": 1, "truncated": 1}, [END]).ok
    all_cut = sequences([[1]], [0, 0], [[5, 6], [7, 8]])
    assert not stop_trained(all_cut, {"truncated": 2}, [END]).ok  # nothing teaches it to stop


def test_sampled_answers_that_the_limit_cut_are_excused(tiny, chat):
    cut = Answer("so so", stop_reason="length")
    records = [PAIRS[0], Comparison(user("how?"), Answer("so"), cut)]
    task, _ = sft_task(policy_of(tiny[0]), chat)
    models = replace(task.models, reference=CausalModel(task.trained["policy"], context=reference_mode))
    collated = comparisons(records, chat, 100)
    pairs = replace(task, algorithm=DPO(), models=models, draw=lambda step: (collated.batch, {}))
    assert failed(examine(pairs, chat, records, collated)) == []
    assert failed(examine(pairs, chat, PAIRS, collated)) == ["stop token"]  # without a record that says so


# --- template, context, vocabulary -----------------------------------------------------------------------------------


def test_the_template_that_is_saved_must_be_the_one_that_is_trained(chat):
    assert same_template(chat, DEMOS + PAIRS + PROMPTS).ok
    chat.tokenizer.chat_template = chat.template.replace("'<|im_start|>' + message", "' <|im_start|>' + message")
    finding = same_template(chat, PROMPTS)
    assert not finding.ok
    assert "'hi'" in finding.text
    assert "saved" in finding.text


def test_a_saved_template_without_end_of_turn_or_none_at_all_fails(chat):
    chat.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    finding = same_template(chat, DEMOS)
    assert not finding.ok
    assert "no special token ends an assistant turn" in finding.text
    chat.tokenizer.chat_template = None
    assert "no chat template" in same_template(chat, DEMOS).text


def test_a_template_that_opens_the_turn_otherwise_in_training_fails(chat):
    class Thinking(Chat):  # sampling starts with <think>, training does not
        def prompt_tokens(self, prompt):
            return [*super().prompt_tokens(prompt), *b"<think>"]

    finding = same_template(Thinking(chat.tokenizer, chat.template, None, chat.end_of_turn), DEMOS)
    assert not finding.ok
    assert "training and sampling open 'hi' differently" in finding.text


def test_rows_must_fit_the_positions(tiny):
    assert within_context({"policy": tiny[0]}, 4096).ok
    finding = within_context({"policy": tiny[0]}, 4097)
    assert not finding.ok
    assert finding.text == "longest row 4,097 tokens, policy reads 4,096"


def test_models_that_read_the_same_ids_need_the_same_vocabulary(tiny):
    model, tokenizer = tiny
    value = new_scalar_model(make_tiny(vocabulary=300)[0].model)
    assert one_vocabulary({"policy": model, "value": new_scalar_model(make_tiny(seed=1)[0].model)}, tokenizer).ok
    assert not one_vocabulary({"policy": model, "value": value}, tokenizer).ok
    assert one_vocabulary({"value": value}, tokenizer).ok
    tokenizer.add_tokens(["<more>"])  # an id without an embedding
    assert not one_vocabulary({"policy": model}, tokenizer).ok


# --- laws on the model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [GRPO(group_size=2), PPO(group_size=2)], ids=["grpo", "ppo"])
def test_a_sound_run_passes_with_a_plan(tiny, chat, algorithm):
    module = policy_of(tiny[0])
    task = rl_task(module, chat, algorithm)
    if "value" in algorithm.needs:
        value = new_scalar_model(add_lora(make_tiny()[0].model, LoRA(rank=2)))
        task = replace(
            task, trained={**task.trained, "value": value}, models=replace(task.models, value=HeadedModel(value))
        )
    found = examine(task, chat, PROMPTS)
    assert failed(found) == []
    assert found.plan is not None
    assert [phase.name for phase in found.plan.phases] == ["sample", "prepare", "update"]
    # a step: prompts of 21 and 31 tokens, 4 answers of at most 12
    assert found.plan.phases[0].tokens == 21 + 31 + 48
    assert found.plan.phases[2].tokens == getattr(algorithm, "passes", 1) * 100
    gradient = next(finding for finding in found.findings if finding.name == "gradient")
    assert "LoRA on 14 modules" in gradient.text  # two layers of q, k, v, o, gate, up, down


def test_a_sampler_with_other_weights_fails_and_one_at_another_temperature_does_not(tiny, chat):
    """Every answer carries the temperature it was drawn at, and the trainer reads it at that one; weights it cannot carry."""
    module = policy_of(tiny[0])
    assert failed(examine(rl_task(module, chat, temperature=0.7), chat, PROMPTS)) == []
    task = rl_task(module, chat)
    stale = policy_of(make_tiny(seed=1)[0])
    source = replace(task.draw, sampler=Decoder(stale, chat.stop_tokens, chat.decode))
    assert failed(examine(replace(task, draw=source), chat, PROMPTS)) == ["sampler"]


def test_the_tolerance_is_that_of_the_precision(tiny, chat):
    module = policy_of(tiny[0])
    sampled = try_sampler(rl_task(module, chat).draw).sampled
    off = replace(sampled, sampler_logprobs=sampled.sampler_logprobs + 0.01 * sampled.answers.mask)
    assert not sampler_agrees(CausalModel(module), off, torch.float32).ok
    assert sampler_agrees(CausalModel(module), off, torch.bfloat16).ok
    assert sampler_agrees(CausalModel(module), off, torch.float32, rough=True).ok, "in fewer bits it is corrected"
    far = replace(sampled, sampler_logprobs=sampled.sampler_logprobs + 0.3 * sampled.answers.mask)
    assert not sampler_agrees(CausalModel(module), far, torch.float32, rough=True).ok


def test_an_adapter_that_has_moved_fails_at_step_0(tiny, chat):
    module = policy_of(tiny[0])
    with torch.no_grad():
        next(p for name, p in module.named_parameters() if "lora_B" in name).fill_(0.01)
    assert failed(examine(rl_task(module, chat), chat, PROMPTS)) == ["step 0"]


def noisy(module):
    """Dropout left on: every forward draws from the global random state."""
    return module.register_forward_hook(lambda m, inputs, out: out + 1e-3 * torch.randn_like(out))


def test_dropout_fails_at_step_0(tiny, chat):
    module = policy_of(tiny[0])
    task, collated = sft_task(module, chat)
    assert failed(examine(task, chat, DEMOS, collated)) == []
    noisy(tiny[0].model.embed_tokens)
    assert failed(examine(task, chat, DEMOS, collated)) == ["step 0"]


def test_a_reward_model_passes_and_fails_with_dropout(tiny, chat):
    value = new_scalar_model(add_lora(tiny[0].model, LoRA(rank=2)))
    collated = comparisons(PAIRS, chat, 100)
    task, _ = sft_task(value, chat)
    task = replace(
        task, algorithm=BradleyTerry(), models=Models(reward=HeadedModel(value)), draw=lambda step: (collated.batch, {})
    )
    assert failed(examine(task, chat, PAIRS, collated)) == []
    noisy(value.head)
    assert failed(examine(task, chat, PAIRS, collated)) == ["step 0"]


def test_an_adapter_that_training_does_not_reach_fails(tiny, chat):
    module = policy_of(tiny[0])
    off, collated = sft_task(module, chat, models=Models(policy=CausalModel(module, context=reference_mode)))
    assert failed(examine(off, chat, DEMOS, collated)) == ["gradient"]
    another = Models(policy=CausalModel(policy_of(make_tiny()[0])))
    assert failed(examine(replace(off, models=another), chat, DEMOS, collated)) == ["gradient"]
    module.requires_grad_(False)
    assert failed(examine(off, chat, DEMOS, collated)) == ["gradient"]


# --- rehearsal and plan ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "full"])
def test_weights_and_random_state_stay_bit_for_bit(tiny, chat, adapter):
    module = policy_of(tiny[0], adapter)
    noisy(tiny[0].model.embed_tokens)
    task, collated = sft_task(module, chat)
    before, state = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    examine(task, chat, DEMOS, collated)
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in module.parameters())


def test_packed_tokens_count_shared_prompts_and_the_answers_of_pairs_once(chat):
    batch = sequences([[1, 2, 3], [4]], [0, 0, 0, 1], [[5, 6], [5, 6], [7], [8]])
    assert packed_tokens(batch) == 3 + 2 + 2 + 1 + 1 + 1  # sampled twice, computed twice
    collated = comparisons([PAIRS[0], Comparison(user("hi"), Answer("yes"), Answer("perhaps"))], chat, 100)
    assert packed_tokens(collated.batch) == 21 + 4 + 3 + 8  # "hi" opened, yes, no, perhaps, each ended


def test_the_heaviest_micro_batch_is_the_longest_row_and_what_fits_beside_it():
    rows = [[9] * n for n in (1, 30, 4, 10, 22)]
    batch = sequences([[p] for p in range(5)], range(5), rows)  # 2, 31, 5, 11 and 23 tokens
    assert heaviest(batch, 40, 8).lengths.tolist() == [30, 4, 1]  # 31 + 5 + 2; 23 and 11 do not fit
    assert heaviest(batch, 40, 2).lengths.tolist() == [30, 4]  # a step has two rows
    assert heaviest(batch, 20, 8).lengths.tolist() == [30]  # a row may exceed a pass
    group = sequences([[1], [2, 3]], [0, 1, 1, 1], [[9] * 20, [8] * 18, [7] * 17, [6] * 13])
    assert heaviest(group, 40, 8).lengths.tolist() == [18, 17, 13]  # 2 + 48 tokens stay together, 1 + 20 + 2 + 13 fit
    assert heaviest(group, 39, 8).lengths.tolist() == [18, 17]  # not 50 tokens: 39 * 1.25 is less; 37 are more than 36


def test_a_step_of_sampling_is_imagined_at_its_longest(tiny, chat):
    source = rl_task(policy_of(tiny[0]), chat).draw
    one = imagined(source, [[1, 2, 3, 4], [5, 6]], 2, 23)
    assert packed_tokens(one) == 4 + 2 * 12  # a group of two answers of twelve tokens to the longer prompt
    shorter = imagined(source, [[1, 2, 3, 4], [5, 6]], 2, 20)
    assert packed_tokens(shorter) == 4 + 2 * 10  # at most 25 tokens stay together; two answers of twelve would not
    assert (
        packed_tokens(imagined(source, [[1, 2, 3, 4], [5, 6]], 2, 10)) == 4 + 2 * 12
    )  # nor one row: 16 are more than 12
    side = imagined(source, [[1, 2, 3, 4], [5, 6]], 2, 30)
    assert packed_tokens(side) == 4 + 2 + 4 * 6  # two groups in a piece of 30
    both = imagined(source, [[1, 2, 3, 4], [5, 6]], 2, 1000)
    assert packed_tokens(both) == 4 + 2 + 4 * 12
    assert both.rewards.tolist() == [0, 1, 0, 1]  # groups differ, or no advantage would reach the weights


def test_the_plan_by_hand(tiny, chat):
    module = policy_of(tiny[0])
    task = replace(rl_task(module, chat, GRPO(group_size=2, passes=2)), steps=10)
    seen = Rehearsal(tokens=64, prepare=0.001, update=0.004, peak=2**30, reached={})
    sampled = imagined(task.draw, [[1, 2]], 1, 1)
    found = plan(task, seen, Tried(sampled, rows=4, per_prompt_token=0.01, per_step=0.5), [])
    # 52 prompt tokens and 4 rows of 12 a step: 0.52 + 12 * 0.5 s; 100 * 1 ms; two passes of 100 * 4 ms
    assert [phase.seconds for phase in found.phases] == pytest.approx([6.52, 0.1, 0.8])
    moments = 2 * 4 * sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert found.memory == 2**30 + moments
    assert found.line() == (
        "plan: 10 steps, at most 1 min 14 s: sample 1 min 05 s (1,000 tokens), prepare 1 s (1,000 tokens), "
        "update 8 s (2,000 tokens); memory 1.0 GiB (rewards and evaluation not counted)"
    )


def test_out_of_memory_is_a_finding_and_other_errors_are_not():
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory. Tried")).name == "memory"
    assert not ran_out(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")).ok
    with pytest.raises(RuntimeError, match="shapes"):
        ran_out(RuntimeError("shapes cannot be multiplied"))


class Hungry(SFT):
    def losses(self, models, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def test_all_that_fails_is_said_at_once_and_before_a_folder_is_made(tiny, chat):
    task, collated = sft_task(policy_of(tiny[0]), chat, algorithm=Hungry())
    noisy(tiny[0].model.embed_tokens)
    with pytest.raises(ValueError, match="preflight") as error:
        preflight(task, chat, DEMOS, collated)
    lines = str(error.value).splitlines()
    assert [line.split(":")[0].split()[1:] for line in lines[1:]] == [["step", "0"], ["memory"]]
    assert "--optimization.tokens-per-pass" in lines[2]


def test_a_good_preflight_is_noted_in_the_run(tiny, chat, tmp_path, capsys):
    task, collated = sft_task(policy_of(tiny[0]), chat)
    found = preflight(task, chat, DEMOS, collated)
    out = capsys.readouterr().out
    assert "⟦yes<|im_end|>⟧" in out
    assert "plan: 4 steps, about " in out
    run = Run.open(tmp_path / "run", SETTINGS, "sft", False)
    found.note(run)
    noted = json.loads((tmp_path / "run" / "environment.json").read_text())["choices"]["preflight"]
    assert noted["seconds"] == found.seconds > 0
    assert noted["plan"]["steps"] == 4


# --- examples --------------------------------------------------------------------------------------------------------


def test_trained_tokens_are_marked_turn_by_turn(chat):
    turns = [("user", "hi"), ("assistant", "yes"), ("user", "why?"), ("assistant", "so")]
    row = demonstrations([Demonstration(tuple(Message(r, t) for r, t in turns))], chat, 200).batch
    assert marked(chat, row, 0, False) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n⟦yes<|im_end|>⟧\n"
        "<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n⟦so<|im_end|>⟧"
    )
    assert marked(chat, row, 0, True).count("\x1b[4;32m") == 2


def test_what_is_shown_cannot_steer_the_terminal_and_is_short(chat):
    row = demonstrations([said("a" * 1000, "\x1b[2Jx")], chat, 2000).batch
    text = marked(chat, row, 0, False)
    assert "⟦\\x1b[2Jx<|im_end|>⟧" in text
    assert len(text) < 500


def test_both_sides_of_a_pair_and_the_place_of_a_sampled_answer(chat, capsys):
    collated = comparisons(PAIRS, chat, 100)
    show_examples(chat, shown_rows(chat, PAIRS, collated), 1)
    out = capsys.readouterr().out
    assert "example 1, chosen" in out
    assert "⟦yes<|im_end|>⟧" in out
    assert "⟦no<|im_end|>⟧" in out
    show_examples(chat, shown_rows(chat, PROMPTS), 2)
    assert capsys.readouterr().out.count("<|im_start|>assistant\n⟦...⟧\n") == 2
