"""The whole list of bad input at the command line: one clear message on stderr, exit code 2, no traceback, no folder left."""

import json

import pytest

from tutelage.cli import OTHERS, main
from tutelage.models.load import save_policy
from tutelage.models.tiny import tiny
from tutelage.stages import recipe

DEMO = {"prompt": "Say it", "completion": "yes"}
PAIR = {"prompt": "Say it", "chosen": "yes", "rejected": "no"}
REWARDS = """
import time
def nan(prompt, answers): return [float("nan") for _ in answers]
def raises(prompt, answers): return [1 / 0 for _ in answers]
def hangs(prompt, answers): time.sleep(60)
def short(prompt, answers): return [1.0]
def words(prompt, answers): return ["good" for _ in answers]
"""


def lines(*rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


FILES = {
    "empty.jsonl": "",
    "broken17.jsonl": lines(*[DEMO] * 16, '{"prompt": "Say', DEMO),
    "unknown_keys.jsonl": lines({"frage": "?", "antwort": "!"}),
    "wrong_type.jsonl": lines(DEMO, {"prompt": 3, "completion": "yes"}),
    "empty_prompt.jsonl": lines(DEMO, {"prompt": "", "completion": "yes"}),
    "empty_answer.jsonl": lines(DEMO, {"prompt": "Say it", "completion": ""}),
    "equal.jsonl": lines(PAIR, PAIR | {"rejected": "yes"}),
    "long.jsonl": lines({"prompt": "word " * 400}),
    "demos.jsonl": lines(*[DEMO | {"prompt": f"Say {i}"} for i in range(8)]),
    "pairs.jsonl": lines(*[PAIR | {"prompt": f"Say {i}"} for i in range(24)]),
    "prompts.jsonl": lines(*[{"prompt": f"Say {i}"} for i in range(4)]),
    "stages.yaml": "stages: {a: {command: sft}}\n",
    "broken.yaml": "model: [unclosed\n",
    "unset.yaml": "data: ['${TUTELAGE_NO_SUCH_NAME}/x.jsonl']\n",
    "other.yaml": "command: rl\n",
    "my_rewards.py": REWARDS,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny model, and one without a chat template; nothing here writes into them."""
    folder = tmp_path_factory.mktemp("models")
    module, tokenizer = tiny()
    save_policy(module, tokenizer, folder / "model")
    tokenizer.chat_template = None
    save_policy(module, tokenizer, folder / "no_template")
    return folder


@pytest.fixture
def place(models, tmp_path, monkeypatch):
    """A folder with both models and every bad file; also the working directory."""
    for model in models.iterdir():
        (tmp_path / model.name).symlink_to(model)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def run(capsys, command):
    """(exit code, stderr) of a command line."""
    with pytest.raises(SystemExit) as stopped:
        main(command.split())
    return stopped.value.code, capsys.readouterr().err


AT_THE_DOOR = [
    ("sft --data nowhere.jsonl", ["nowhere.jsonl", "no such"]),
    ("sft --data empty.jsonl", ["empty.jsonl", "empty"]),
    ("sft --data broken17.jsonl", ["broken17.jsonl:17"]),
    ("sft --data unknown_keys.jsonl", ["unknown_keys.jsonl:1", "frage"]),
    ("sft --data wrong_type.jsonl", ["wrong_type.jsonl:2", "prompt"]),
    ("sft --data empty_prompt.jsonl", ["empty_prompt.jsonl:2", "empty"]),
    ("sft --data empty_answer.jsonl", ["empty_answer.jsonl:2", "empty"]),
    ("sft --data pairs.jsonl --data nowhere.jsonl", ["nowhere.jsonl"]),
    ("sft", ["--data"]),
    ("reward --data equal.jsonl", ["equal.jsonl:2"]),
    ("prefer --data equal.jsonl", ["equal.jsonl:2"]),
    ("reward --data demos.jsonl", ["demos.jsonl"]),
    ("rl --data long.jsonl --reward finished --max-tokens 512 --max-new-tokens 8", ["word word", "2019 tokens", "504"]),
    ("rl --data prompts.jsonl", ["--reward"]),
    ("rl --data prompts.jsonl --reward no_such_rule", ["no_such_rule"]),
    ("rl --data prompts.jsonl --reward my_rewards:absent", ["absent"]),
    ("rl --data prompts.jsonl --reward finished --algorithm ppoo", ["ppoo", "ppo"]),
    ("prefer --data pairs.jsonl --algorithm grpo", ["grpo", "dpo"]),
    ("sft --data demos.jsonl --batch-size -4", ["-4", "batch"]),
    ("sft --data demos.jsonl --batch-size four", ["four", "batch"]),
    ("sft --data demos.jsonl --no-such-flag 3", ["no-such-flag"]),
    ("sft --data demos.jsonl --model nowhere", ["nowhere"]),
    ("sft --data demos.jsonl --model no_template", ["chat template", "chatml"]),
    ("sft --data demos.jsonl --resume", ["--out"]),
    ("sft stages.yaml", ["tutelage run stages.yaml"]),
    ("sft broken.yaml", ["broken.yaml"]),
    ("sft unset.yaml", ["TUTELAGE_NO_SUCH_NAME"]),
    ("sft other.yaml", ["tutelage rl"]),
    ("sft absent.yaml", ["absent.yaml"]),
    ("evaluate --against model --data nowhere.jsonl", ["nowhere.jsonl"]),
    ("report nowhere", ["nowhere"]),
    ("simulate", ["data: is needed", "out: is needed"]),
    ("sfft", ["unknown command", "sft"]),
]


@pytest.mark.parametrize("command", [*recipe.COMMANDS, *OTHERS])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    out, err = capsys.readouterr()
    assert (stop.value.code or 0, err) == (0, "")
    assert f"tutelage {command}" in out


@pytest.mark.slow
@pytest.mark.parametrize(("command", "expected"), AT_THE_DOOR, ids=[case[0].replace(" ", "_") for case in AT_THE_DOOR])
def test_bad_input_is_one_message_and_leaves_nothing(place, capsys, command, expected):
    given = command
    if command.split()[0] in ("sft", "reward", "prefer", "rl") and "--resume" not in command:
        given += " --out kept" + ("" if "--model" in command else " --model model")
    code, err = run(capsys, given)
    assert code == 2
    assert [text for text in expected if text.lower() not in err.lower()] == []
    assert "Traceback" not in err
    assert len(err) < 3000
    assert not (place / "kept").exists()
    assert not (place / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        ("nan", ["my_rewards:nan", "nan"]),
        ("raises", ["my_rewards:raises", "division by zero"]),
        ("short", ["my_rewards:short", "1"]),
        ("words", ["my_rewards:words", "good"]),
    ],
)
def test_a_broken_reward_function_stops_the_run_and_is_named(place, capsys, reward, expected):
    code, err = run(
        capsys,
        f"rl --model model --data prompts.jsonl --reward my_rewards:{reward} --out kept --steps 1 --max-new-tokens 4",
    )
    assert code == 2
    assert [text for text in expected if text not in err] == []
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_folder_with_other_things_in_it_is_refused(place, capsys):
    (place / "kept").mkdir()
    (place / "kept" / "notes.txt").write_text("mine")
    code, err = run(capsys, "sft --model model --data demos.jsonl --out kept")
    assert code == 2
    assert "kept" in err
    assert "choose another with --out" in err
    assert [path.name for path in (place / "kept").iterdir()] == ["notes.txt"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "result", "after"),
    [
        ("sft --data demos.jsonl", "policy", "tutelage chat kept"),
        ("reward --data pairs.jsonl", "reward_model", "tutelage rl --reward kept --data PROMPTS"),
    ],
)
def test_a_finished_run_says_where_it_lies_and_what_comes_next(place, capsys, command, result, after):
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--model", "model", "--steps", "1", "--out", "kept"])
    *_, where, then = capsys.readouterr().out.splitlines()
    assert stopped.value.code == 0
    assert where.startswith("in kept: ")
    assert {"config.yaml", "metrics.jsonl", "report.html", result} <= set(where.removeprefix("in kept: ").split(", "))
    assert then == f"go on with:  {after}"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["sft", "reward", "prefer", "rl --reward finished"])
def test_a_folder_in_use_is_refused_before_anything_is_read(place, capsys, command):
    (place / "kept").mkdir()
    (place / "kept" / "notes.txt").write_text("mine")
    code, err = run(capsys, f"{command} --model nowhere --data nowhere.jsonl --out kept")
    assert code == 2
    assert "kept is not empty" in err
    assert "nowhere" not in err
