"""`rl --greso.on --pods M`, `--require-packed` and hardware.json: what saves work, and what says how near the limit it came."""

from __future__ import annotations

import json

import pytest

from tutelage.config import build
from tutelage.models.hardware import Machine
from tutelage.models.heads import new_scalar_model, save_reward_model
from tutelage.models.load import load_backbone, save_policy
from tutelage.records import read_jsonl
from tutelage.stages.rl import RL, main
from tutelage.stages.rl_settings import check_settings

PROMPTS = [{"prompt": f"Say {n}"} for n in range(6)]


@pytest.fixture
def place(tiny, tmp_path):
    module, tokenizer = tiny
    save_policy(module, tokenizer, tmp_path / "model")
    save_reward_model(new_scalar_model(load_backbone(tmp_path / "model"), seed=5), tokenizer, tmp_path / "judge")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    return tmp_path


def settings(place, **changes) -> RL:
    plain = {
        "model": str(place / "model"),
        "data": [str(place / "prompts.jsonl")],
        "reward": ["brevity"],
        "out": str(place / "run"),
        "steps": 3,
        "batch_size": 2,
        "max_new_tokens": 5,
        "device": "cpu",
        "dtype": "float32",
        "algorithm": {"name": "grpo", "group_size": 4},
    }
    return build(RL, {**plain, **changes}, "test")


@pytest.mark.slow
def test_a_run_says_what_it_skips_what_it_trains_on_and_how_near_the_limit_it_comes(place, capsys):
    changes = {"greso": {"on": True}, "pods": 2, "require_packed": True}
    folder = main(settings(place, reward=["brevity", str(place / "judge")], **changes))
    machine = Machine(**json.loads((folder / "hardware.json").read_text()))
    assert machine.flops > 1e8
    assert (machine.dtype, machine.device) == ("float32", "cpu")
    said = capsys.readouterr().out
    assert f"this machine: {machine.name}, {machine.threads} thread" in said
    assert "decoding steps by PyTorch's operations" in said
    rows = list(read_jsonl(folder / "metrics.jsonl"))
    assert len(rows) == 3
    for row in rows:
        assert all(0 < v <= 1 for k, v in row.items() if k.startswith("fraction_of_limit")), row
        phases = {k.partition("/")[2] for k in row if k.startswith("fraction_of_limit")}
        assert phases == {"", "sample", "reward", "prepare", "update", "optimizer"}
        assert row["fallback"] == 0
        assert 0 <= row["sample/skipped"] < 1
    history = list(read_jsonl(folder / "prompt_history.jsonl"))
    assert [row["step"] for row in history] == [0, 1, 2]
    assert all(len(row["prompts"]) == 2 for row in history)
    samples = list(read_jsonl(folder / "samples.jsonl"))
    assert all(len(row["answers"]) == 4 for row in samples), "all answers are kept in the log"
    first = [answer["reward"] for row in samples[:2] for answer in row["answers"]]
    assert rows[0]["reward/sampled"] == pytest.approx(sum(first) / 8)


@pytest.mark.slow
def test_a_resumed_run_keeps_the_machine_it_measured(place):
    folder = main(settings(place, steps=1))
    kept = json.loads((folder / "hardware.json").read_text()) | {"flops": 1e15, "bandwidth": 1e14}
    (folder / "hardware.json").write_text(json.dumps(kept))
    main(settings(place, steps=2, resume=True))
    assert json.loads((folder / "hardware.json").read_text()) == kept, (
        "nothing better was measured, and nothing forgotten"
    )
    first, second = read_jsonl(folder / "metrics.jsonl")
    assert second["fraction_of_limit"] < first["fraction_of_limit"], "against a limit of a thousand times as much"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pods": 4}, "got 4 of 4"),
        ({"pods": 2, "process_reward": ["brevity"]}, "got 2 of 4 with process rewards"),
        ({"pods": 2, "algorithm": {"name": "ppo"}}, "they are for grpo; got algorithm ppo"),
        ({"greso": {"on": True}, "algorithm": {"name": "rloo"}}, "they are for grpo"),
        ({"greso": {"on": True}, "process_reward": ["brevity"]}, "got 0, 0 and True"),
        ({"algorithm": {"name": "dapo"}, "process_reward": ["brevity"]}, "got 0.2, 3 and False: say 0, 0 and no greso"),
        ({"algorithm": {"name": "dr_grpo", "kl_coefficient": 0.0}, "reference": "x"}, "reference: nothing looks at x"),
        ({"algorithm": {"name": "ppo", "kl_coefficient": 0.0}, "reference": "x"}, "ppo as it is set has no KL to it"),
    ],
)
def test_settings_that_mean_nothing_are_refused(place, changes, message):
    with pytest.raises(ValueError, match=message):
        check_settings(settings(place, **changes))
