"""Recipes of several stages: checked before anything runs, references filled in, finished stages kept, interruptions resumed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from tutelage.config import read_yaml
from tutelage.models.load import save_policy
from tutelage.models.tiny import tiny
from tutelage.stages.recipe import plan
from tutelage.stages.run import main, run_stages
from tutelage.training import loop
from tutelage.training.interrupt import Interrupted


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny model and data for sft and rl, which is the working directory too."""
    model, tokenizer = tiny(hidden=16, heads=2, kv_heads=1)
    save_policy(model, tokenizer, tmp_path / "model")
    shown = [{"prompt": f"Say {word}.", "completion": f"{word}!"} for word in ("ash", "oak", "elm", "fir")]
    (tmp_path / "shown.jsonl").write_text("\n".join(map(json.dumps, shown)))
    (tmp_path / "asked.jsonl").write_text("\n".join(json.dumps({"prompt": row["prompt"]}) for row in shown))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(**stages: dict[str, Any]) -> dict[str, Any]:
    """sft -> rl from its policy -> answers of the result, with changes to the stages named in `stages`."""
    given: dict[str, dict[str, Any]] = {
        "sft": {"command": "sft", "data": ["shown.jsonl"], "steps": 3, "optimization": {"save_every": 1}},
        "rl": {
            "command": "rl",
            "model": "@sft",
            "data": ["asked.jsonl"],
            "reward": ["brevity=0.5"],
            "steps": 2,
            "max_new_tokens": 4,
            "algorithm": {"name": "grpo", "group_size": 2},
        },
        "answers": {
            "command": "sample",
            "model": "@rl/policy",
            "data": ["asked.jsonl"],
            "answers": 2,
            "max_new_tokens": 4,
        },
    }
    for name, changes in stages.items():
        given[name] = given.get(name, {}) | changes
    return {"model": "model", "seed": 3, "batch_size": 2, "stages": given}


def written(content: dict[str, Any], name: str = "recipe.yaml") -> str:
    Path(name).write_text(yaml.safe_dump(content, sort_keys=False))
    return name


def digest(*paths: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def settings(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "config.yaml").read_text())


@pytest.mark.slow
def test_stages_run_in_order_on_what_earlier_ones_made(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([written(recipe()), "--out", "out", "--seed", "5"]) == 0
    out = Path("out")
    assert settings(out / "sft")["model"] == "model"
    assert settings(out / "rl")["model"] == "out/sft"
    assert settings(out / "rl")["seed"] == 5  # the flag stands over the file
    assert settings(out / "rl")["batch_size"] == 2  # the shared key
    model, trained, final = digest(
        inputs / "model" / "model.safetensors",
        out / "sft" / "policy" / "model.safetensors",
        out / "rl" / "policy" / "model.safetensors",
    )
    assert len({model, trained, final}) == 3
    rows = [json.loads(line) for line in (out / "answers" / "answers.jsonl").read_text().splitlines()]
    assert [len(row["answers"]) for row in rows] == [2, 2, 2, 2]
    printed = capsys.readouterr().out
    assert [printed.index(f"Stage {name} ({n} of 3)") for n, name in enumerate(("sft", "rl", "answers"), 1)] == sorted(
        printed.index(f"Stage {name} (") for name in ("sft", "rl", "answers")
    )


@pytest.mark.slow
def test_finished_stages_are_kept_and_the_rest_runs(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path("out")
    run_stages(recipe(), out, False, "test", only="sft")
    before = (out / "sft" / "policy" / "model.safetensors").stat().st_mtime_ns
    assert sorted(path.name for path in out.iterdir()) == ["sft", "stages.json"]
    with pytest.raises(ValueError, match="out already holds sft; go on with --resume"):
        run_stages(recipe(), out, False, "test")
    found = run_stages(recipe(), out, True, "test")
    assert found == {name: out / name for name in ("sft", "rl", "answers")}
    assert (out / "sft" / "policy" / "model.safetensors").stat().st_mtime_ns == before
    assert "sft: finished before, kept" in capsys.readouterr().out


@pytest.mark.slow
def test_an_interrupted_recipe_resumes_to_the_same_bits(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_stages(recipe(), Path("whole"), False, "test")
    original, calls = loop.one_step, []

    def press(task: Any, progress: Any, *rest: Any) -> Any:
        calls.append(task.label)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(task, progress, *rest)

    monkeypatch.setattr(loop, "one_step", press)
    with pytest.raises(Interrupted) as stopped:
        main([written(recipe()), "--out", "my out", "--device", "cpu"])
    assert stopped.value.command == "tutelage run 'my out/config.yaml' --out 'my out' --resume"
    assert len(calls) == 2
    assert read_yaml("my out/config.yaml")["device"] == "cpu"
    assert main(["my out/config.yaml", "--out", "my out", "--resume"]) == 0
    assert len(calls) == 2 + 1 + 2  # the third step of sft, both of rl
    names = ("sft/policy/model.safetensors", "rl/policy/model.safetensors", "answers/answers.jsonl")
    assert digest(*(Path("my out") / name for name in names)) == digest(*(Path("whole") / name for name in names))


@pytest.mark.slow
def test_a_stage_that_stops_says_which_and_how_to_go_on(inputs: Path) -> None:
    path = written(recipe(rl={"data": ["absent.jsonl"]}))
    with pytest.raises(ValueError, match=r"stage rl \(rl\) stopped: absent.jsonl") as error:
        main([path, "--out", "out"])
    assert str(error.value).endswith("go on with: tutelage run out/config.yaml --out out --resume")
    assert sorted(json.loads(Path("out/stages.json").read_text())) == ["sft"]


@pytest.mark.slow
def test_bad_input_to_the_first_stage_leaves_no_folder(inputs: Path) -> None:
    with pytest.raises(ValueError, match="stage sft") as error:
        main([written(recipe(sft={"data": ["absent.jsonl"]})), "--out", "out"])
    assert "--resume" not in str(error.value)
    assert not Path("out").exists()


@pytest.mark.slow
def test_a_bug_keeps_its_traceback_and_names_the_stage(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("ours")

    monkeypatch.setattr(loop, "one_step", broken)
    with pytest.raises(KeyError, match="ours") as error:
        main([written(recipe()), "--out", "out"])
    (note,) = error.value.__notes__
    assert note.startswith("in stage sft (sft)\nwhat is done is kept; go on with: tutelage run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rl": {"model": "@sfft"}},
            "r.yaml: stages.rl.model: @sfft is no stage of this recipe; stages before this one: sft",
        ),
        ({"rl": {"reward": ["@answers=0.5"]}}, "r.yaml: stages.rl.reward.0: @answers does not come before this stage"),
        ({"sft": {"model": "@sft"}}, "r.yaml: stages.sft.model: @sft does not come before this stage"),
        ({"rl": {"monitor": {"against": "@no/a.jsonl"}}}, "r.yaml: stages.rl.monitor.against: @no is no stage"),
        ({"rl": {"command": "rll"}}, "r.yaml: stages.rl: command: unknown command 'rll'; known: sft, reward"),
        ({"rl": {"command": "chat"}}, "r.yaml: stages.rl: command: unknown command 'chat'"),
        ({"rl": {"stesp": 1}}, "r.yaml: stages.rl: unknown key `stesp`; known keys: model"),
        ({"rl": {"algorithm": {"name": "grpo", "clip": 1}}}, "r.yaml: stages.rl: unknown key `algorithm.clip`"),
        ({"rl": {"steps": -2}}, "r.yaml: stages.rl: steps: "),
        ({"answers": {"out": "x"}}, "r.yaml: stages.answers: out: a stage runs in OUT/NAME"),
        ({"a/b": {"command": "sft"}}, "r.yaml: stages.a/b: a stage's name is its folder"),
        ({"x": {"data": []}}, "r.yaml: stages.x: command: unknown command None"),
    ],
)
def test_everything_is_checked_before_anything_runs(inputs: Path, changes: dict[str, Any], message: str) -> None:
    path = written(recipe(**changes), "r.yaml")
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the whole message is compared)
        main([path, "--out", "out"])
    assert str(error.value).startswith(message)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**recipe(), "lernrate": 1}, "r.yaml: unknown key `lernrate`: no stage has it; known keys: algorithm"),
        ({**recipe(), "out": "x"}, "r.yaml: out: a stage runs in OUT/NAME"),
        ({**recipe(), "command": "sft"}, "r.yaml: has both `command` and `stages`"),
        ({"stages": []}, "r.yaml: stages: expected NAME"),
        ({"stages": {"sft": ["a"]}}, "r.yaml: stages.sft: expected a mapping"),
        ({"stages": {"sft": {"command": "sft"}}, "answers": 3}, "r.yaml: unknown key `answers`"),
        ({"command": "stf"}, "r.yaml: command: unknown command 'stf'"),
        ({"data": ["a"]}, "r.yaml: command: unknown command None"),
    ],
)
def test_the_top_of_a_recipe(inputs: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the whole message is compared)
        main([written(content, "r.yaml")])
    assert str(error.value).startswith(message)


def test_references_are_filled_in_anywhere_and_only_references(inputs: Path) -> None:
    """Weights, files inside, several in one text, nested keys; `@@`, addresses and hub revisions are left alone."""
    content = recipe(
        rl={
            "reward": ["@sft=0.5", "brevity", "rules:f"],
            "monitor": {"against": "@sft/answers.jsonl", "judges": ["gold", "@sft"]},
            "system": "@@all: write to me@home.org, a/b@main, or see @sft, @sft/policy",
        }
    )
    stage = plan(content, "test")[1]
    built = stage.configuration(Path("o"))
    assert stage.uses == ("sft",)
    assert built.model == "o/sft"
    assert built.reward == ("o/sft=0.5", "brevity", "rules:f")
    assert built.monitor.against == "o/sft/answers.jsonl"
    assert built.monitor.judges == ("gold", "o/sft")
    assert built.system == "@all: write to me@home.org, a/b@main, or see o/sft, o/sft/policy"
    assert built.out == "o/rl"
    assert not built.resume


def test_shared_keys_reach_the_stages_that_have_them(inputs: Path) -> None:
    content = {**recipe(answers={"seed": 9}), "temperature": 0.5, "on_error": "0"}
    by_name = {one.name: one.configuration(Path("o")) for one in plan(content, "test")}
    assert not hasattr(by_name["sft"], "on_error")
    assert by_name["rl"].on_error == "0"
    assert by_name["rl"].temperature == by_name["answers"].temperature == 0.5
    assert (by_name["rl"].seed, by_name["answers"].seed) == (3, 9)


@pytest.mark.slow
def test_changed_settings_and_stale_results_are_refused(inputs: Path) -> None:
    out = Path("out")
    run_stages(recipe(), out, False, "test")
    with pytest.raises(ValueError, match=r"out/rl was made with other settings \(steps: was 2, is 4\)"):
        run_stages(recipe(rl={"steps": 4}), out, True, "test")
    (out / "sft" / "config.yaml").rename("kept.yaml")
    for path in sorted((out / "sft").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match="stage rl was made from sft, which is to run anew; remove out/rl too"):
        run_stages(recipe(), out, True, "test")
    assert not any((out / "sft").iterdir())


@pytest.mark.slow
def test_one_stage_alone(inputs: Path) -> None:
    path = written(recipe())
    with pytest.raises(ValueError, match="stage rl uses @sft, which is not finished in out; run that first"):
        main([path, "--out", "out", "--only", "rl"])
    assert not Path("out").exists()
    with pytest.raises(ValueError, match="no stage 'r1'; stages: sft, rl, answers"):
        main([path, "--out", "out", "--only", "r1"])
    assert main([path, "--out", "out", "--only", "sft"]) == 0
    with pytest.raises(ValueError, match="out is not empty; go on with it by --resume"):
        main([path, "--out", "out"])
    assert main([path, "--out", "out", "--resume", "--only", "rl"]) == 0
    assert not Path("out/answers").exists()


@pytest.mark.slow
def test_a_recipe_of_one_command_is_that_command(inputs: Path) -> None:
    sft = {"command": "sft", "model": "model", "data": ["shown.jsonl"], "steps": 2, "batch_size": 2}
    assert main([written(sft), "--out", "one", "--steps", "1"]) == 0
    assert settings(Path("one"))["steps"] == 1
    assert (Path("one") / "policy" / "model.safetensors").is_file()


def test_an_unquoted_reference_gets_a_hint(inputs: Path) -> None:
    Path("r.yaml").write_text("stages:\n  rl: {command: rl, model: @sft}\n")
    try:
        read_yaml("r.yaml")
    except ValueError:
        with pytest.raises(ValueError, match='quotes around a reference: model: "@sft"'):
            main(["r.yaml"])
    else:  # the reader takes it: then the reference itself is what is wrong
        with pytest.raises(ValueError, match="@sft is no stage"):
            main(["r.yaml"])


def test_the_recipe_comes_first(inputs: Path) -> None:
    for args in ([], ["--out", "x"]):
        with pytest.raises(ValueError, match="The file comes first"):
            main(args)
    with pytest.raises(ValueError, match="--resume needs the folder"):
        main([written(recipe()), "--resume"])
