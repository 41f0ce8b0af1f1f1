"""`sft --algorithm distill` on a tiny teacher: token level, on-policy share, sequence level, other tokenizers, resume."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from tutelage.algorithms.distill import Distill
from tutelage.algorithms.grpo import GRPO
from tutelage.algorithms.sft import SFT
from tutelage.data.batch import sequences
from tutelage.data.chat import Chat
from tutelage.data.collate import demonstrations
from tutelage.models.load import load_policy, load_tokenizer, save_policy
from tutelage.models.logprobs import CausalModel
from tutelage.models.tiny import tiny
from tutelage.records import Demonstration, Message
from tutelage.stages.check import main as check
from tutelage.stages.rl import RL
from tutelage.stages.rl import main as rl
from tutelage.stages.sft import Sft, main, ready
from tutelage.stages.training import load
from tutelage.training.mixed import MixedSource, joined, last_prompt
from tutelage.training.optim import Optimization

ROWS = [{"prompt": f"Say {i}", "completion": "yes" * i} for i in range(1, 7)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A student, a wider teacher with the same tokenizer, one with another tokenizer, and data; the working directory."""
    for name, settings in (("student", {"seed": 0}), ("teacher", {"seed": 5, "hidden": 32, "std": 0.4})):
        save_policy(*tiny(**settings), tmp_path / name)
    model, tokenizer = tiny(seed=6, vocabulary=270)
    tokenizer.add_tokens(["elsewhere"])
    save_policy(model, tokenizer, tmp_path / "stranger")
    (tmp_path / "demos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(**fields) -> Sft:
    plain = {
        "model": "student",
        "teacher": "teacher",
        "data": ("demos.jsonl",),
        "max_new_tokens": 8,
        "steps": 2,
        "batch_size": 4,
        "algorithm": Distill(),
    }
    return Sft(**{**plain, **fields})


def metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def distance(student: str) -> float:
    """KL(teacher || student) on the demonstrations, from plain calls."""
    tokenizer = load_tokenizer("student")
    total, count = 0.0, 0
    with torch.no_grad():
        models = [load_policy(name, dtype="float32") for name in ("teacher", student)]
        for row in ROWS:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, tokenize=False
            )
            before, said = (tokenizer(x).input_ids for x in (text, row["completion"] + "<|im_end|>"))
            ids = torch.tensor([before + said])
            p, q = (m(ids).logits[0, len(before) - 1 : -1].log_softmax(-1) for m in models)
            total, count = total + float((p.exp() * (p - q)).sum()), count + len(said)
    return total / count


@pytest.mark.slow
def test_token_level_brings_the_student_nearer(place):
    """The first step's loss is the KL on its rows; after 20 steps at a high rate the saved policy is nearer by half."""
    before = distance("student")
    cfg = settings(steps=20, batch_size=6, full=True, out="run", optimization=Optimization(learning_rate=3e-3))
    folder = main(cfg)
    rows = metrics(folder)
    assert rows[0]["loss"] == pytest.approx(before, rel=1e-4), "all six demonstrations are in the step"
    assert distance("run") < before / 2
    assert rows[-1]["accuracy/teacher"] > rows[0]["accuracy/teacher"]


@pytest.mark.slow
def test_plain_sft_asks_no_teacher(place):
    """The same command without a teacher: -log p of the demonstrations, as plain calls give it."""
    plain = {"algorithm": SFT(), "teacher": None, "max_new_tokens": 256}
    folder = main(settings(**plain, out="plain", steps=1, batch_size=6))
    chat = Chat.of(load_tokenizer("student"))
    records = load(("demos.jsonl",), "demonstration", "error", "")[0].records
    rows = demonstrations(records, chat, 1024).batch
    with torch.no_grad():
        logp = CausalModel(load_policy("student", dtype="float32")).logprobs(rows)
    assert metrics(folder)[0]["loss"] == pytest.approx(-float(logp.sum() / rows.mask.sum()), rel=1e-4)


@pytest.mark.slow
def test_on_policy_share_is_sampled_from_the_student(place):
    """With lambda 1 every row is the student's own sample, kept in samples.jsonl."""
    folder = main(settings(out="own", algorithm=Distill(on_policy=1.0, divergence="reverse_kl")))
    assert [row["sample/on_policy"] for row in metrics(folder)] == [1.0, 1.0]
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 8
    assert all(row["answers"][0]["stop_reason"] in ("stop", "length") for row in samples)


@pytest.mark.slow
def test_sequence_level_learns_what_the_teacher_said(place):
    """teacher.jsonl holds one answer a prompt; the loss is -log p of them; a resumed run reads them and asks nobody."""
    cfg = settings(out="said", algorithm=Distill(level="sequence"), batch_size=6, steps=1)
    folder = main(cfg)
    said = [json.loads(line) for line in (folder / "teacher.jsonl").read_text().splitlines()]
    assert [row["prompt"]["messages"][-1]["content"] for row in said] == [row["prompt"] for row in ROWS]
    tokenizer = load_tokenizer("student")
    prompts = [
        tokenizer(
            tokenizer.apply_chat_template(row["prompt"]["messages"], add_generation_prompt=True, tokenize=False)
        ).input_ids
        for row in said
    ]
    rows = sequences(prompts, range(6), [row["answers"][0]["tokens"] for row in said])
    with torch.no_grad():
        logp = CausalModel(load_policy("student", dtype="float32")).logprobs(rows)
    assert metrics(folder)[0]["loss"] == pytest.approx(-float(logp.sum() / rows.mask.sum()), rel=1e-4)
    (place / "teacher").rename(place / "gone")
    resumed = main(replace(cfg, resume=True, steps=2))
    assert len(metrics(resumed)) == 2


@pytest.mark.slow
def test_another_tokenizer_teaches_by_its_text(place):
    with pytest.raises(ValueError, match=r"another vocabulary.*'elsewhere'.*--algorithm.level sequence"):
        main(settings(teacher="stranger", out="no"))
    folder = main(settings(teacher="stranger", out="text", algorithm=Distill(level="sequence"), steps=1))
    said = [json.loads(line)["answers"] for line in (folder / "teacher.jsonl").read_text().splitlines()]
    assert not any("tokens" in one for answers in said for one in answers)
    assert not (place / "no").exists()


@pytest.mark.slow
def test_rl_takes_on_the_teachers_distributions_without_a_reward(place):
    """Answers are the policy's own, the loss is a divergence, and what rl cannot do is refused before anything is written."""
    cfg = RL(
        model="student", teacher="teacher", data=("demos.jsonl",), out="rl", steps=2, batch_size=3, max_new_tokens=6,
        algorithm=Distill(divergence="reverse_kl", group_size=2),
    )  # fmt: skip
    folder = rl(cfg)
    rows = metrics(folder)
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [len(row["answers"]) for row in samples] == [2] * 6
    assert "reward/mean" not in rows[0]
    assert rows[0]["loss"] > 0.01
    assert 0 < rows[0]["answer/length"] <= 6
    assert (folder / "policy" / "model.safetensors").is_file()
    for wrong in (Distill(level="sequence"), Distill(on_policy=0.5)):
        with pytest.raises(ValueError, match=r"are `tutelage sft`'s"):
            rl(replace(cfg, out="wrong", algorithm=wrong))
    with pytest.raises(ValueError, match="take --algorithm distill"):
        rl(replace(cfg, out="wrong", algorithm=GRPO(), reward=("brevity",)))
    assert not (place / "wrong").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher": None}, "give --teacher MODEL"),
        ({"algorithm": SFT()}, "take --algorithm distill"),
        ({"algorithm": Distill(level="sequence", on_policy=0.5)}, "take level token"),
        ({"algorithm": SFT(), "teacher": None, "temperature": 0.5}, "imitated at 1; got 0.5"),
        ({"algorithm": SFT(), "teacher": None, "max_new_tokens": 8}, "nothing is sampled here; got 8"),
    ],
)
def test_settings_that_mean_nothing_are_refused(place, fields, message):
    with pytest.raises(ValueError, match=message):
        main(settings(**fields))
    assert not (place / "runs").exists()


def test_check_asks_for_few_answers_and_writes_nothing(place, capsys):
    flags = ["--command", "sft", "--model", "student", "--teacher", "teacher", "--data", "demos.jsonl"]
    for more in ([], ["--algorithm.on-policy", "0.5"], ["--algorithm.level", "sequence"]):
        assert check([*flags, "--algorithm", "distill", "--max-new-tokens", "6", *more]) == 0
    assert "teacher: " in capsys.readouterr().out
    assert not (place / "runs").exists()


def test_a_share_is_decided_by_seed_and_step(place):
    """Each demonstration by itself; what is answered anew is the last turn; the rest keeps its mask."""
    cfg = settings(algorithm=Distill(on_policy=0.5), batch_size=6)
    prepared, _ = ready(cfg, load(cfg.data, "demonstration", "error", ""))
    source = prepared.task.draw.source
    assert isinstance(source, MixedSource)
    first, again = source(3), source(3)
    assert torch.equal(first[0].tokens, again[0].tokens)
    shares = [source(step)[1]["sample/on_policy"] for step in range(12)]
    assert 0.3 < sum(shares) / 12 < 0.7
    assert replace(source, share=0.0)(0)[0].tokens.shape == prepared.task.draw(0)[0].tokens.shape


def test_joined_rows_keep_their_prompts():
    first = sequences([(1, 2), (3,)], [1, 0], [[10], [11, 12]], [[True], [False, True]])
    second = sequences([(4,)], [0], [[13, 14, 15]])
    both = joined(first, second)
    assert both.prompts.tokens == ((1, 2), (3,), (4,))
    assert both.prompt_of.tolist() == [1, 0, 2]
    assert both.tokens.tolist() == [[10, 0, 0], [11, 12, 0], [13, 14, 15]]
    assert both.mask.tolist() == [[True, False, False], [False, True, False], [True] * 3]


def test_the_last_turn_is_what_is_answered_anew():
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    record = Demonstration(tuple(Message(role, text) for role, text in turns), "id")
    prompt = last_prompt(record)
    assert [m.content for m in prompt.messages] == ["a", "b", "c"]
    assert prompt.id == "id"
