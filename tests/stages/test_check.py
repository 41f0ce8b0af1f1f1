"""`tutelage check` says what it recognised, marks what is trained, and its exit code is the findings'; nothing is written."""

import json
from pathlib import Path

import pytest

from tutelage.models.load import save_policy
from tutelage.stages.check import main

ROWS = {
    "demos": [{"prompt": f"Say {i}", "completion": "yes" * i} for i in range(1, 7)],
    "pairs": [{"prompt": f"Say {i}", "chosen": "yes" * i, "rejected": "no" * i} for i in range(1, 25)],
    "prompts": [{"prompt": f"Say {i}"} for i in range(1, 7)],
}


@pytest.fixture
def place(tiny, tmp_path, monkeypatch):
    """A folder with a tiny model and a file of each kind, which is also the working directory."""
    save_policy(*tiny, tmp_path / "model")
    for name, rows in ROWS.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("data", "flags", "expected"),
    [
        ("demos", [], ["tutelage sft", "6 x demonstration", "⟦yes<|im_end|>⟧", "6 kept", "stop token: 6 rows"]),
        ("pairs", [], ["tutelage prefer", "24 x comparison", "chosen", "⟦no<|im_end|>⟧", "log pi/ref| 0"]),
        (
            "pairs",
            ["--command", "reward"],
            ["tutelage reward", "answers end where the score is read, 0 do not", "two scorings differ by 0"],
        ),
        ("prompts", ["--max-new-tokens", "6"], ["tutelage rl", "no --reward given", "⟦...⟧", "sampler:", "at most"]),
        ("prompts", ["--command=rl", "--algorithm", "ppo", "--max-new-tokens", "6"], ["value: LoRA on 14 modules"]),
    ],
    ids=["sft", "prefer", "reward", "grpo", "ppo"],
)
def test_a_good_run_of_each_command(place, capsys, data, flags, expected):
    before = files(place)
    assert main(["--model", "model", "--data", f"{data}.jsonl", *flags]) == 0
    out = capsys.readouterr().out
    assert [text for text in [*expected, "plan: ", "preflight took"] if text not in out] == []
    assert "FAILS" not in out
    assert files(place) == before


def test_exit_code_1_where_no_row_learns_to_stop(place, capsys):
    # "Say 1" opens with 24 tokens: two are left for each answer, so every end of turn is cut away
    assert main(["--model", "model", "--data", "demos.jsonl", "--max-tokens", "26"]) == 1
    out = capsys.readouterr().out
    assert "FAILS stop token: 0 rows train the end-of-turn token, 6 do not (6 cut" in out
    assert "6 truncated (100.0%)" in out
    assert not (place / "runs").exists()


def test_a_recipe_names_the_command_and_flags_win(place, capsys):
    (place / "r.yaml").write_text("command: sft\nmodel: model\ndata: [demos.jsonl]\nsteps: 3\n")
    assert main(["r.yaml"]) == 0
    assert "plan: 3 steps" in capsys.readouterr().out
    assert main(["r.yaml", "--steps", "5"]) == 0
    assert "plan: 5 steps" in capsys.readouterr().out
    with pytest.raises(ValueError, match="recipe of `tutelage sft`"):
        main(["r.yaml", "--command", "rl"])


def test_a_recipe_of_stages_is_checked_where_its_inputs_are(place, capsys):
    stages = (
        "  a: {command: sft, data: [demos.jsonl], steps: 3}\n  b: {command: rl, model: '@a', data: [prompts.jsonl]}\n"
    )
    (place / "r.yaml").write_text(f"model: model\nseed: 1\nstages:\n{stages}  c: {{command: evaluate}}\n")
    assert main(["r.yaml"]) == 0
    out = capsys.readouterr().out
    assert "plan: 3 steps" in out
    assert "stage b: reads what a will make" in out


def test_data_that_no_command_trains_on_are_described(place, capsys):
    (place / "labels.jsonl").write_text('{"prompt": "Say 1", "completion": "yes", "label": true}\n')
    assert main(["--data", "labels.jsonl"]) == 0
    out = capsys.readouterr().out
    assert "1 rows, prompt/completion/label -> 1 x rating" in out
    assert "no command trains on rating rows" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data", "absent.jsonl"], "absent.jsonl"),
        (["--command", "chat", "--data", "demos.jsonl"], "known: sft, reward, prefer, rl"),
        (["--command"], "--command needs a value"),
        ([], "no source given"),
    ],
)
def test_bad_input_is_refused_at_the_door(place, args, message):
    with pytest.raises(ValueError, match=message):
        main(args)
    assert not Path("runs").exists()
