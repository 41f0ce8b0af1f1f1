"""The run folder: refused when in use, resumed only as it was, its rows cut back to the checkpoint."""

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tutelage.config import config
from tutelage.training import run as module
from tutelage.training.run import Run
from tutelage.training.sinks import SINKS, check_sinks


@config
class Method:
    name: str = "grpo"
    clip: float = 0.2


@config
class Settings:
    model: str = "m"
    algorithm: Method = Method()
    weights: tuple[float, ...] = (1.0, 0.5)
    steps: int = 10
    out: str | None = None
    resume: bool = False


def _rows(run: Run, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / name).read_text().splitlines()]


def _open(folder: Path, resume: bool = False, **settings: Any) -> Run:
    return Run.open(folder, Settings(resume=resume, **settings), "rl", resume)


def test_config_yaml_is_the_recipe_it_was_started_with(tmp_path: Path) -> None:
    run = _open(tmp_path / "a" / "b", model="modèle")
    assert yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8")) == {
        "command": "rl",
        "model": "modèle",
        "algorithm": {"name": "grpo", "clip": 0.2},
        "weights": [1.0, 0.5],
        "steps": 10,
        "out": None,
        "resume": False,
    }
    facts = json.loads((run.folder / "environment.json").read_text())
    assert facts["environment"]["packages"]["torch"].startswith(torch.__version__.split("+")[0])
    assert facts["environment"]["threads"] == torch.get_num_threads()


def test_a_folder_in_use_is_refused_and_the_message_resumes_it(tmp_path: Path) -> None:
    folder = tmp_path / "my run"
    _open(folder)
    command = f"tutelage rl '{folder}/config.yaml' --out '{folder}' --resume"
    with pytest.raises(ValueError, match="holds a run already") as error:
        _open(folder)
    assert command in str(error.value)
    assert _open(folder, resume=True).resume_command == command


def test_what_is_no_run_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("ten years")
    for resume in (False, True):
        with pytest.raises(ValueError, match="not a run folder"):
            _open(tmp_path, resume)
    with pytest.raises(ValueError, match="is a file"):
        _open(tmp_path / "thesis.tex")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a place where even root cannot write")
def test_a_place_that_cannot_be_written_is_one_clear_error() -> None:
    with pytest.raises(ValueError, match=r"^cannot write /proc/self/runs: .*$") as error:
        _open(Path("/proc/self/runs"))
    assert "\n" not in str(error.value)


def test_resume_names_every_setting_that_differs(tmp_path: Path) -> None:
    _open(tmp_path)
    with pytest.raises(ValueError, match="started with other settings") as error:
        Run.open(tmp_path, Settings(model="n", algorithm=Method(clip=0.3), weights=(1.0,), resume=True), "sft", True)
    assert str(error.value).splitlines()[1:] == [
        "  command: was 'rl', is 'sft'",
        "  model: was 'm', is 'n'",
        "  algorithm.clip: was 0.2, is 0.3",
        "  weights: was [1.0, 0.5], is [1.0]",
    ]


def test_resume_may_go_on_for_longer_and_is_then_unfinished(tmp_path: Path) -> None:
    run = _open(tmp_path)
    run.finish({"policy": tmp_path / "policy", "elsewhere": Path("/x"), "wins": 0.6})
    assert run.finished == {"policy": "policy", "elsewhere": "/x", "wins": 0.6}
    assert _open(tmp_path, resume=True, out="moved").finished == run.finished
    longer = _open(tmp_path, resume=True, steps=20)
    assert longer.finished is None
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["steps"] == 20


@pytest.mark.parametrize("left", [[], [".config.yaml.writing"]])
def test_resuming_a_run_that_was_killed_at_birth_begins_it(left: list[str], tmp_path: Path, capsys) -> None:
    for name in left:
        (tmp_path / name).write_text("comm")
    run = _open(tmp_path / "" if left else tmp_path / "new", resume=True)
    assert "starting from the beginning" in capsys.readouterr().out
    run.log(0, {"loss": 1.0})
    assert _rows(run) == [{"step": 0, "loss": 1.0}]


def test_a_choice_is_measured_once_in_the_life_of_a_run(tmp_path: Path) -> None:
    asked = []

    def measure() -> Any:
        asked.append(1)
        return {"threads": (2, len(asked))}

    first = _open(tmp_path).choice("speed", measure)
    assert first == {"threads": [2, 1]}
    assert _open(tmp_path, resume=True).choice("speed", measure) == first
    assert len(asked) == 1


def test_another_machine_is_told_and_noted(tmp_path: Path, monkeypatch, capsys) -> None:
    was = module.environment()
    _open(tmp_path)
    _open(tmp_path, resume=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(module, "environment", lambda: {**was, "cpu": "Other", "threads": was["threads"] + 1})
    _open(tmp_path, resume=True)
    told = capsys.readouterr().err
    assert f"cpu was {was['cpu']}, is Other" in told
    assert "threads was" in told
    facts = json.loads((tmp_path / "environment.json").read_text())
    assert facts["changes"][0]["cpu"] == {"was": was["cpu"], "is": "Other"}


def test_rows_are_plain_numbers_and_what_is_not_finite_is_null(tmp_path: Path, capsys) -> None:
    run = _open(tmp_path)
    run.log(0, {"reward/mean": torch.tensor(0.25), "policy/kl": math.nan, "count": 3})
    run.log(1, {"reward/mean": math.inf, "policy/kl": math.nan})
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == [
        '{"step": 0, "reward/mean": 0.25, "policy/kl": null, "count": 3}',
        '{"step": 1, "reward/mean": null, "policy/kl": null}',
    ]
    told = capsys.readouterr().err
    assert told.count("policy/kl is nan") == 1
    assert "step 1: reward/mean is inf" in told


def test_a_step_has_one_row_and_a_resumed_run_says_where_it_goes_on(tmp_path: Path) -> None:
    run = _open(tmp_path)
    run.log(0, {"a": 1.0})
    with pytest.raises(AssertionError, match="a step has one row"):
        run.log(0, {"b": 1.0})
    with pytest.raises(AssertionError, match="truncate"):
        _open(tmp_path, resume=True).log(1, {"a": 1.0})


def test_truncate_cuts_rows_of_later_steps_and_half_lines(tmp_path: Path, capsys) -> None:
    run = _open(tmp_path)
    for step in range(5):
        run.sample(step, [{"text": f"a\u2028b {i}"} for i in range(2)])
        run.log(step, {"x": float(step)})
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (tmp_path / name).open("ab") as file:
            file.write('{"step": 2, "text": "ü'.encode()[:-1])  # the kill fell inside a line, inside a letter
    run = _open(tmp_path, resume=True)
    run.truncate(3)
    assert capsys.readouterr().err == ""
    assert [row["step"] for row in _rows(run)] == [0, 1, 2]
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().split("\n")[:-1]]
    assert [(row["step"], row["text"]) for row in samples] == [(s, f"a\u2028b {i}") for s in range(3) for i in range(2)]
    run.log(3, {"x": 3.5})
    assert _rows(run)[3] == {"step": 3, "x": 3.5}
    run.truncate(6)  # say a power cut: the checkpoint reached the disk and rows did not
    assert "has 4 rows of the 6 steps" in capsys.readouterr().err


def test_a_full_disk_while_logging_is_one_clear_error(tmp_path: Path, monkeypatch) -> None:
    run = _open(tmp_path)

    def full(*args, **kwargs) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "write_jsonl", full)
    with pytest.raises(OSError, match=r"^cannot write .*metrics.jsonl: no space left on device; free some space"):
        run.log(0, {"x": 1.0})


def test_unknown_and_missing_sinks_are_refused_before_a_folder_is_made(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ValueError, match="unknown place for metrics 'csv'; known: tensorboard, wandb, trackio"):
        Run.open(tmp_path / "new", Settings(), "rl", False, sinks=["csv"])
    monkeypatch.setattr("tutelage.training.sinks.find_spec", lambda name: None)
    for name in SINKS:
        with pytest.raises(ValueError, match=rf"pip install 'tutelage\[{name}\]'"):
            check_sinks([name])
    assert not (tmp_path / "new").exists()


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resume, start, stop in [(False, 0, 4), (True, 2, 5)]:
        run = Run.open(tmp_path, Settings(resume=resume), "rl", resume, sinks=["tensorboard"])
        run.truncate(start)
        for step in range(start, stop):
            run.log(step, {"reward/mean": step + 0.5 * resume, "bad": math.nan})
        run.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["reward/mean"]
    shown = [(e.step, e.value) for e in events.Scalars("reward/mean")]
    assert shown == [(0, 0.0), (1, 1.0), (2, 2.5), (3, 3.5), (4, 4.5)]
