"""Best-of-N and language feedback from the command on a tiny model: sample and keep, refine, and what trains on the results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tutelage.algorithms.best_of_n import BestOfN
from tutelage.algorithms.online_dpo import OnlineDPO
from tutelage.config import build, parse
from tutelage.models.load import save_policy
from tutelage.models.tiny import tiny as make_tiny
from tutelage.records import Answer, AnswerGroup, Critique, read_jsonl, to_json, user, write_jsonl
from tutelage.rewards.rules import brevity
from tutelage.stages.prefer import Prefer
from tutelage.stages.prefer import main as prefer
from tutelage.stages.refine import REQUEST, Refine, best_refinement, request_of
from tutelage.stages.refine import main as refine
from tutelage.stages.rl import RL
from tutelage.stages.rl import main as rl
from tutelage.stages.sample import Sample
from tutelage.stages.sample import main as sample
from tutelage.stages.selection import chosen, curve, kept_of, write_demonstrations
from tutelage.stages.sft import Sft
from tutelage.stages.sft import main as sft

SHORT = {"max_new_tokens": 12, "seed": 1}


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that a few steps of SFT have taught to say few words and to stop."""
    folder = tmp_path_factory.mktemp("speaker")
    save_policy(*make_tiny(), folder / "start")
    rows = [{"prompt": f"Say {i}", "completion": "a b c d e"[:n]} for i in range(6) for n in (1, 3, 5, 7, 9)]
    write_jsonl(folder / "demos.jsonl", rows)
    options = {"model": str(folder / "start"), "data": [str(folder / "demos.jsonl")], "out": str(folder / "model")}
    quick = {"full": True, "steps": 40, "optimization": {"learning_rate": 0.01, "save_every": 40}}
    return sft(build(Sft, {**options, **quick}, "test")) / "policy"


@pytest.fixture
def place(tmp_path: Path, speaker: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The speaker as `model`, prompts and critiques; the working directory."""
    (tmp_path / "model").symlink_to(speaker)
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"Say {i}"} for i in range(6)])
    rows = [{"prompt": f"Say {i}", "response": "word " * 60, "critique": "Shorter!"} for i in range(6)]
    write_jsonl(tmp_path / "critiques.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(*texts: str) -> AnswerGroup:
    return AnswerGroup(
        user("q"), tuple(Answer(t.removesuffix("..."), stop_reason="length" if "..." in t else "stop") for t in texts)
    )


def test_the_best_that_can_be_imitated_is_chosen():
    group = said("a", "cut...", "", "b", "c")
    scores = [1.0, 9.0, 8.0, 3.0, 2.0]
    assert [a.text for a in chosen(group, scores, 1, None, "0")] == ["b"]
    assert [a.text for a in chosen(group, scores, 2, None, "0")] == ["b", "c"]
    assert [a.text for a in chosen(group, scores, 5, 2.0, "0")] == ["b", "c"]
    assert chosen(group, scores, 5, 3.5, "0") == []
    equal = {chosen(said("a", "b"), [1.0, 1.0], 1, None, str(lot))[0].text for lot in range(20)}
    assert equal == {"a", "b"}, "equals by lot"
    assert [kept_of(keep, 8) for keep in ("best", 0.1, 0.25, 1.0)] == [1, 1, 2, 8]


def test_the_curve_by_hand():
    """0, 1 and 2: 1, (2 + 2 + 1)/3, 2; beside a prompt where all are 1."""
    found = curve([[0.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
    assert [row["reward"]["estimate"] for row in found] == pytest.approx([1.0, (5 / 3 + 1) / 2, 1.5])
    assert [row["kl_at_most"] for row in found] == pytest.approx([0.0, 0.193147, 0.431946], abs=1e-6)
    assert curve([[0.0, 1.0]])[0]["reward"]["low"] is None, "one prompt has no interval"


def test_nothing_to_keep_is_an_error_that_says_why(tmp_path: Path):
    with pytest.raises(ValueError, match=r"none of 2 answers can be kept \(\{'cut': 1, 'below at_least': 1\}\)"):
        write_demonstrations(tmp_path, [said("x...", "y")], [[1.0, 0.0]], "best", at_least=0.5, seed=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_sample_keeps_the_best_and_sft_reads_them(place: Path):
    """Each demonstration is the highest-scored finished answer to its prompt in answers.jsonl."""
    options = {"model": "model", "data": ["prompts.jsonl"], "answers": 6, **SHORT}
    sample(build(Sample, {**options, "out": "best", "reward": ["brevity"]}, "test"))
    groups = {row["prompt"]["messages"][-1]["content"]: row["answers"] for row in read_jsonl("best/answers.jsonl")}
    rows = list(read_jsonl("best/demonstrations.jsonl"))
    assert rows
    for row in rows:
        asked, answered = (m["content"] for m in row["messages"])
        fit = [a["text"] for a in groups[asked] if a.get("stop_reason") == "stop" and a.get("text", "").strip()]
        scores = brevity(user(asked), [Answer(text) for text in fit])
        assert brevity(user(asked), [Answer(answered)]) == [max(scores)]
        assert answered in fit
    report = json.loads(Path("best/best_of_n.json").read_text())
    estimates = [row["reward"]["estimate"] for row in report["curve"]]
    assert len(estimates) == 6
    assert estimates == sorted(estimates), "the best of more is better"
    assert estimates[0] < estimates[-1]
    assert report["kept"] == len(rows)
    folder = sft(
        build(Sft, {"model": "model", "data": ["best/demonstrations.jsonl"], "out": "sft", "steps": 1}, "test")
    )
    assert (folder / "policy" / "model.safetensors").is_file()


@pytest.mark.slow
def test_sample_takes_a_share_from_the_command_line_and_refuses_a_choice_without_a_reward(place: Path):
    cfg = parse(Sample, ["--model", "model", "--data", "prompts.jsonl", "--keep", "0.5", "--at-least", "0.1"])
    assert (cfg.keep, cfg.at_least) == (0.5, 0.1)
    with pytest.raises(ValueError, match="give --reward"):
        sample(cfg)
    with pytest.raises(ValueError, match="keep"):
        build(Sample, {"keep": 1.5}, "test")
    assert not (place / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", [BestOfN(group_size=4), OnlineDPO(group_size=4)], ids=lambda m: m.name)
def test_rl_trains_on_the_groups_own_answers(place: Path, method: Any):
    """Two steps from the command: the adapter moves, and the figures of the method are logged."""
    options = {"model": "model", "data": ["prompts.jsonl"], "reward": ["brevity"], "steps": 2, "batch_size": 3, **SHORT}
    folder = rl(build(RL, {**options, "out": "rl", "algorithm": {"name": method.name, "group_size": 4}}, "test"))
    rows = list(read_jsonl(folder / "metrics.jsonl"))
    assert all(row["optim/gradient_norm"] > 0 for row in rows)
    if isinstance(method, BestOfN):
        assert rows[0]["best_of_n/1"] == pytest.approx(rows[0]["reward/mean"], abs=1e-6)
        assert rows[0]["best_of_n/4"] > rows[0]["best_of_n/1"]
    else:
        assert 0 < rows[0]["loss"] < 0.694, "log 2 at the start, and less where a group was skipped"
        assert rows[0]["policy/kl"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.slow
def test_self_improvement_rests_where_no_majority_is(place: Path):
    """Random answers end with no number: every step is without a label, and nothing moves, without an error."""
    options = {
        "model": "model",
        "data": ["prompts.jsonl"],
        "reward": ["majority"],
        "steps": 1,
        "batch_size": 3,
        **SHORT,
    }
    write_jsonl(place / "prompts.jsonl", [{"prompt": f"{i} + {i}?"} for i in range(3)])  # no solution anywhere
    folder = rl(build(RL, {**options, "out": "self", "algorithm": {"name": "best_of_n", "group_size": 2}}, "test"))
    (row,) = read_jsonl(folder / "metrics.jsonl")
    assert row["best_of_n/groups_used"] == 0.0
    assert row["optim/gradient_norm"] == 0.0


def test_a_refinement_must_win_be_finished_and_be_new():
    original = Answer("long answer")
    tried = [Answer("long answer"), Answer("cut", stop_reason="length"), Answer("a"), Answer("b")]
    assert best_refinement(original, tried, [0.5, 9.0, 9.0, 0.6, 0.7]) == Answer("b", author="refined")
    assert best_refinement(original, tried, [0.7, 9.0, 9.0, 0.6, 0.7]) is None, "a tie keeps the original"
    assert best_refinement(original, tried, None) == Answer("a", author="refined")
    assert best_refinement(original, tried[:2], None) is None


def test_the_request_goes_on_with_the_conversation():
    prompt = request_of(Critique(user("q", solution="7"), Answer("a"), "wrong {x}"), REQUEST)
    assert [(m.role, m.content.split("\n")[0]) for m in prompt.messages] == [
        ("user", "q"), ("assistant", "a"), ("user", "About your answer: wrong {x}"),
    ]  # fmt: skip
    assert prompt.solution == "7"


@pytest.mark.slow
def test_refine_then_sft_and_prefer(place: Path):
    """Critique -> refinement by the policy -> kept by the reward -> both ways of training on it, end to end."""
    options = {"model": "model", "data": ["critiques.jsonl"], "reward": ["brevity"], **SHORT}
    target = refine(build(Refine, {**options, "out": "refined", "max_tokens": 4000}, "test"))
    rows = list(read_jsonl(target))
    assert rows
    for row in rows:
        before, after = (brevity(user("?"), [Answer(row[key]["text"])])[0] for key in ("answer", "rewritten"))
        assert after > before
        assert "tokens" not in row["rewritten"], "its ids were said behind the critique"
    report = json.loads(Path("refined/refine.json").read_text())
    assert report["kept"] == len(rows) <= report["critiques"] == 6
    assert report["reward/refined"]["estimate"] > report["reward/original"]["estimate"]
    training = {"model": "model", "data": [str(target)], "steps": 1, "max_tokens": 4000}
    sft(build(Sft, {**training, "out": "sft"}, "test"))
    folder = prefer(build(Prefer, {**training, "out": "prefer", "heldout_share": 0.0}, "test"))
    (row,) = read_jsonl(folder / "metrics.jsonl")
    assert row["loss"] == pytest.approx(0.693147, abs=1e-3), "log 2: pi is still the reference"
    answers = [AnswerGroup(user(f"Say {i}"), (Answer("word " * 60),)) for i in range(3)]
    write_jsonl(place / "answers.jsonl", map(to_json, answers))
    principle = {**options, "data": ["answers.jsonl"], "critique": "Be brief.", "max_tokens": 4000}
    said_of = list(read_jsonl(refine(build(Refine, {**principle, "out": "principle"}, "test"))))
    assert {row["critique"] for row in said_of} == {"Be brief."}
    assert json.loads(Path("principle/refine.json").read_text())["critiques"] == 3, (
        "an empty answer cannot be criticised"
    )
    with pytest.raises(ValueError, match=r"needs \{critique\}"):
        refine(build(Refine, {**options, "out": "no", "request": "Again."}, "test"))
    assert not (place / "no").exists()
