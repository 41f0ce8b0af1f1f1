"""Commands that write their files at the end: they overwrite nothing of another run, and refuse before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tutelage.config import build
from tutelage.models.load import save_policy
from tutelage.models.tiny import tiny
from tutelage.records import Answer, AnswerGroup, user
from tutelage.stages import evaluate, refine, sample, simulate
from tutelage.stages.folders import check_unused
from tutelage.stages.sample import read_groups, write_groups


def test_a_folder_in_use_is_refused_and_its_own_files_may_be_written_anew(tmp_path: Path) -> None:
    own = ("answers.jsonl",)
    check_unused(tmp_path / "new", own, resume=False)
    check_unused(tmp_path, own, resume=False)
    (tmp_path / ".answers.jsonl.writing").touch()  # a killed write's
    check_unused(tmp_path, own, resume=False)
    (tmp_path / "answers.jsonl").touch()
    with pytest.raises(ValueError, match=r"is not empty \(it holds answers.jsonl\); choose another folder with --out"):
        check_unused(tmp_path, own, resume=False)
    check_unused(tmp_path, own, resume=True)
    (tmp_path / "policy").mkdir()
    with pytest.raises(ValueError, match="it holds policy"):
        check_unused(tmp_path, own, resume=True)
    with pytest.raises(ValueError, match="is a file"):
        check_unused(tmp_path / "answers.jsonl", own, resume=True)


@pytest.mark.parametrize("command", ["sample", "evaluate", "simulate", "refine"])
def test_no_command_writes_into_another_runs_folder(command: str, tmp_path: Path) -> None:
    prompts, answers, critiques = (tmp_path / f"{name}.jsonl" for name in ("prompts", "answers", "critiques"))
    prompts.write_text(json.dumps({"prompt": "Say a colour."}))
    write_groups(answers, [AnswerGroup(user("Say a colour."), (Answer("Blue."), Answer("Red.")))])
    critiques.write_text(json.dumps({"prompt": "Say a colour.", "response": "Blue.", "critique": "Say red."}))
    run = tmp_path / "run"
    (run / "policy").mkdir(parents=True)
    (run / "config.yaml").write_text("command: rl\n")
    modules = {
        "sample": (sample, sample.Sample, {"data": (str(prompts),)}),
        "evaluate": (evaluate, evaluate.Evaluate, {"data": (str(prompts),)}),
        "simulate": (simulate, simulate.Simulate, {"data": str(answers)}),
        "refine": (refine, refine.Refine, {"data": (str(critiques),)}),
    }
    module, kind, given = modules[command]
    for resume in (False, True):
        with pytest.raises(ValueError, match="is not empty"):
            module.main(build(kind, {**given, "out": str(run), "resume": resume}, "test"))
    assert (run / "config.yaml").read_text() == "command: rl\n"
    assert sorted(p.name for p in run.iterdir()) == ["config.yaml", "policy"]


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_a_prompt_that_leaves_no_room_is_refused_before_anything_is_sampled(command: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": text}) for text in ("short", "long " * 400)))
    save_policy(*tiny(), tmp_path / "model")
    kind = {"sample": sample.Sample, "evaluate": evaluate.Evaluate}[command]
    module = {"sample": sample, "evaluate": evaluate}[command]
    out = tmp_path / "out"
    given = {"data": [str(prompts)], "model": str(tmp_path / "model"), "out": str(out)}
    with pytest.raises(ValueError, match=r"record that begins 'long .*--max-tokens"):
        module.main(build(kind, {**given, "max_tokens": 64, "max_new_tokens": 4}, "test"))
    assert not out.exists()


def test_answers_are_written_whole(tmp_path: Path) -> None:
    groups = [AnswerGroup(user("Say a colour."), (Answer("Blue."),))]
    write_groups(tmp_path / "answers.jsonl", groups)
    assert [g.answers[0].text for g in read_groups(tmp_path / "answers.jsonl")] == ["Blue."]
    assert [p.name for p in tmp_path.iterdir()] == ["answers.jsonl"]
