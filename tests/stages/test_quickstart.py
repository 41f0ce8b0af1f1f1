"""The quickstart end to end on the real demo model: every part runs, nothing leaves the machine, the weights move."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tutelage.config import build
from tutelage.evaluation.gold import gold_score
from tutelage.models.load import save_policy
from tutelage.models.tiny import tiny
from tutelage.records import Answer, user
from tutelage.stages import quickstart
from tutelage.stages.quickstart import Quickstart, main
from tutelage.stages.quickstart_plan import FULL, QUICK, recipe_of, split_prompts
from tutelage.stages.run import COMMANDS
from tutelage.stages.simulate import gold_reward, label_quality, shuffled

BLOCKED = """
import socket, sys
def refuse(*a, **k): raise AssertionError("the quickstart opened a network connection")
socket.socket.connect = refuse
socket.create_connection = refuse
socket.getaddrinfo = refuse
from tutelage.cli import main
main(sys.argv[1:])
"""


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, *arguments], check=False, cwd=cwd, capture_output=True, text=True, timeout=1200
    )


@pytest.mark.slow
@pytest.mark.timeout(1300)
@pytest.mark.demo_model
@pytest.mark.parametrize("algorithm", ["grpo", "ppo", "dpo"])
def test_quick_runs_without_network_and_moves_the_weights(algorithm: str, demo_model: Path, tmp_path: Path) -> None:
    done = run("quickstart", "--quick", "--algorithm", algorithm, "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not re.search("Warning|Loading weights|Writing model", done.stderr), done.stderr[-3000:]
    folder = tmp_path / "out"
    policy = folder / ("prefer" if algorithm == "dpo" else "rl") / "policy"
    before = load_file(Path(demo_model) / "model.safetensors")
    after = load_file(policy / "model.safetensors")
    moved = [
        name for name in before if name in after and not torch.equal(before[name], after[name].to(before[name].dtype))
    ]
    assert moved, "no weight differs from the reference's"
    page = (folder / "report.html").read_text()
    assert "win rate" not in page.lower()
    assert "SIMULATED" in done.stdout
    assert "preferred to the reference by" not in done.stdout.lower()
    story = json.loads((folder / "quickstart.json").read_text())
    assert story["status"] == "finished"
    assert len(story["samples"]) == QUICK.heldout_prompts


@pytest.mark.slow
@pytest.mark.timeout(1300)
@pytest.mark.demo_model
def test_real_feedback_shows_no_gold_number(demo_model: Path, tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"Name a colour that starts with {letter}.",
            "chosen": "Blue is one.",
            "rejected": f"I like {letter}.",
        }
        for letter in "abcdefgh"
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"prompt": "b", "chosen": 3}])))
    done = run("quickstart", "--quick", "--feedback", "mine.jsonl", "--bad-rows", "skip", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "gold" not in page.lower()
    assert "8 comparisons were read from the file you named" in page
    assert "1 of 9 rows of mine.jsonl could not be read, such as" in page
    assert "tutelage chat out/rl --compare" in page
    assert "gold" not in json.dumps(json.loads((tmp_path / "out" / "quickstart.json").read_text())["evaluation"])
    assert not (tmp_path / "out" / "answers").exists(), "answers for labelling are not sampled where feedback is given"
    assert "--compare" in done.stdout


def test_every_stage_of_every_algorithm_is_a_valid_recipe(tmp_path: Path) -> None:
    from importlib import import_module

    for algorithm in ("grpo", "ppo", "reinforce", "rloo", "dpo"):
        cfg = build(Quickstart, {"algorithm": algorithm}, "test")
        recipe = recipe_of(cfg, FULL, tmp_path, FULL.train_prompts)
        for settings in recipe["stages"].values():
            settings = dict(settings)
            module, name = COMMANDS[settings.pop("command")]
            extra = {"out": str(tmp_path)}
            built = build(getattr(import_module(module), name), {**settings, **extra}, algorithm)
            if name == "RL":
                assert built.algorithm.group_size == FULL.group


def test_the_reward_model_reads_the_users_comparisons_once(tmp_path: Path) -> None:
    """9 of 10 prompts, 4 a step, and never more than the default run's."""
    cfg = build(Quickstart, {"feedback": "pairs.jsonl"}, "test")
    steps = {n: recipe_of(cfg, FULL, tmp_path, n)["stages"]["reward"]["steps"] for n in (1, 100, 960, 50_000)}
    assert steps == {1: 1, 100: 22, 960: 216, 50_000: 216}


def test_bad_input_leaves_no_folder(tmp_path: Path) -> None:
    save_policy(*tiny(), tmp_path / "model")
    long = tmp_path / "long.jsonl"
    long.write_text("\n".join(json.dumps({"prompt": text}) for text in ("a", "b", "c " * 2000)))
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        '{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a", "chosen": "b", "rejected": "b"}\n'
    )
    out = tmp_path / "out"
    for wrong, said in (
        ({"model": str(tmp_path / "nowhere")}, "no such directory"),
        ({"feedback": str(pairs)}, "pairs.jsonl"),
        ({"prompts": str(long), "model": str(tmp_path / "model")}, "its prompt alone has.*leave it out of --prompts"),
    ):
        with pytest.raises(ValueError, match=said):
            main(build(Quickstart, {"out": str(out), **wrong}, "test"))
        assert not out.exists()


def test_at_least_200_heldout_prompts_none_of_them_trained_on() -> None:
    training, heldout = split_prompts(build(Quickstart, {}, "test"), FULL, [])
    assert len(heldout) >= 200
    assert not {p.text for p in training} & {p.text for p in heldout}


def test_own_prompts_are_split_by_position() -> None:
    own = [user(f"Question number {n}?") for n in range(9)]
    training, heldout = split_prompts(build(Quickstart, {"prompts": "p.jsonl"}, "test"), FULL, own)
    assert [p.text for p in heldout] == [f"Question number {n}?" for n in (6, 7, 8)]
    assert len(training) == 6


@pytest.mark.slow
def test_shuffled_labels_say_nothing_and_the_gold_reward_is_the_rule(shared_groups: list) -> None:
    from tutelage.feedback.simulated import compare_all

    records = compare_all(shared_groups, gold_score, overlap=3, seed=0)
    honest, random = label_quality(records), label_quality(shuffled(records, 0))
    assert honest["ceiling"] > 0.7
    assert abs(random["ceiling"] - 0.5) < 0.05
    prompt, answer = user("Why is the sky blue?"), Answer("The sky is blue because air scatters blue light most.")
    assert gold_reward(prompt, [answer]) == [gold_score(prompt, answer) / 0.07]  # the middle labeller's noise


@pytest.fixture
def shared_groups() -> list:
    from tutelage.records import group_from_json, read_jsonl

    path = Path(__file__).parents[1] / "data" / "reference_answers.jsonl"
    return [group_from_json(row) for row in read_jsonl(path)]


def test_minutes_of_a_stage_that_was_interrupted_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two minutes, then Ctrl-C; one more after the resume: three, for whoever reads the folder then."""
    clock = iter([0.0, 120.0, 500.0, 560.0])
    monkeypatch.setattr(quickstart.time, "perf_counter", lambda: next(clock))
    minutes = {"answers": 4.0}
    with pytest.raises(KeyboardInterrupt), quickstart.spending(minutes, "reward", tmp_path):
        raise KeyboardInterrupt
    resumed = json.loads((tmp_path / "minutes.json").read_text())
    with quickstart.spending(resumed, "reward", tmp_path):
        pass
    assert json.loads((tmp_path / "minutes.json").read_text()) == {"answers": 4.0, "reward": 3.0}
