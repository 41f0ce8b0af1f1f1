"""kill -9 at any moment, then --resume: the run goes on as if nothing had happened, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from processes import output, python, session
from tutelage.models.load import save_policy
from tutelage.models.tiny import tiny
from tutelage.records import read_jsonl
from tutelage.training.meter import MEASURED

STEPS = 6
METHODS: dict[str, str] = {
    "ppo": "ppo --reward brevity",
    "reinforce": "reinforce --reward brevity",
    # By preference of the shorter answer; a policy joins the pool every other step and is the rival in most of them
    "nash": "nash_md --reward brevity --algorithm.mixing 0.3 --algorithm.pool-every 2 --algorithm.pool-share 0.6",
    # One word or not: often the same for both answers, and then another prompt takes the place
    "dynamic sampling": "dapo --reward brevity(above=0.97) --algorithm.attempts 2",
}
Kills = Sequence[tuple[int, float]]
"""For each kill: after so many further steps, and so many seconds."""


def command(model: str, data: Path, out: Path, method: str, new_tokens: int) -> list[str]:
    """`tutelage rl` with two answers to each of two prompts, a checkpoint a step."""
    flags = [
        *("--model", model, "--data", str(data), "--out", str(out), "--steps", str(STEPS), "--batch-size", "2"),
        *("--max-new-tokens", str(new_tokens), "--algorithm", *METHODS[method].split(), "--algorithm.group-size", "2"),
        *("--optimization.save-every", "1", "--optimization.tokens-per-pass", "192"),
        *("--gemm", "default"),  # `auto` measures, and two runs of their own may choose differently
    ]
    return python("-m", "tutelage.cli", "rl", *flags)


def prompts(path: Path) -> Path:
    file = path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"Say something short about the number {n}."}) for n in range(8)))
    return file


def steps_done(out: Path) -> int:
    """Lines of the log."""
    log = out / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def kill_after(arguments: list[str], out: Path, steps: int, seconds: float) -> bool:
    """Run until the log has `steps` more lines, and `seconds` more; SIGKILL. False if it was over before."""
    wanted = steps_done(out) + steps
    with session(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while steps_done(out) < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(seconds)
        if alive := process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        return alive


def result(out: Path) -> tuple[list[dict[str, Any]], list[Any], dict[str, torch.Tensor]]:
    """The log without times, the samples, and every tensor: of the policy, and of the pool where there is one."""
    rows = read_jsonl(out / "metrics.jsonl")
    plain = [{k: v for k, v in row.items() if not k.startswith(MEASURED)} for row in rows]
    files = sorted([*out.glob("policy/*.safetensors"), *out.glob("pool/*/*.safetensors")])
    tensors = {f"{file.relative_to(out)}/{name}": t for file in files for name, t in load_file(file).items()}
    return plain, list(read_jsonl(out / "samples.jsonl")), tensors


def check_killed_equals_undisturbed(
    model: str, path: Path, method: str, new_tokens: int, kills: Kills
) -> list[dict[str, Any]]:
    """Returns the log."""
    data, out = prompts(path), path / "broken"
    output(command(model, data, path / "whole", method, new_tokens))
    broken, killed = command(model, data, out, method, new_tokens), 0
    for steps, seconds in kills:
        resumed = ["--resume"] if (out / "config.yaml").exists() else []
        killed += kill_after(broken + resumed, out, steps, seconds)
    if not (out / "finished.json").exists():
        output([*broken, "--resume"])
    assert killed > 0, "the run was over before any kill: nothing was tested"
    (rows, samples, weights), (again, said, resumed_weights) = result(path / "whole"), result(out)
    assert [row["step"] for row in again] == list(range(STEPS)), "a step is missing or stands twice"
    assert again == rows
    assert said == samples
    assert weights.keys() == resumed_weights.keys()
    assert all(torch.equal(weights[name], resumed_weights[name]) for name in weights)
    return rows


def check_on_a_tiny_model(method: str, path: Path, kills: Kills) -> list[dict[str, Any]]:
    save_policy(*tiny(), path / "model")
    return check_killed_equals_undisturbed(str(path / "model"), path, method, 12, kills)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ppo", "reinforce"])
def test_sigkill_and_resume_on_a_tiny_model(method: str, tmp_path: Path) -> None:
    check_on_a_tiny_model(method, tmp_path, [(1, 0.03), (2, 0.0)])


@pytest.mark.slow
def test_sigkill_and_resume_with_a_pool_of_past_policies(tmp_path: Path) -> None:
    """The first kill comes when the pool has one member, the second when it has two; the rivals stay the same ones."""
    rows = check_on_a_tiny_model("nash", tmp_path, [(2, 0.0), (2, 0.02)])
    assert [row["pool/size"] for row in rows] == [1, 1, 2, 2, 3, 3]
    played = [row["pool/past_rival"] for row in rows]
    assert 1.0 in played[:3]
    assert 1.0 in played[3:]
    assert 0.0 in played
    pool = tmp_path / "broken" / "pool"
    assert sorted(member.name for member in pool.iterdir()) == ["step-000000", "step-000002", "step-000004"]


@pytest.mark.slow
def test_sigkill_and_resume_with_dynamic_sampling(tmp_path: Path) -> None:
    """Prompts are replaced before and after the kills, by the same ones as in the undisturbed run."""
    rows = check_on_a_tiny_model("dynamic sampling", tmp_path, [(2, 0.0), (2, 0.02)])
    replaced = [row["sample/replaced"] for row in rows]
    assert any(replaced[:2])
    assert any(replaced[2:4])
    assert any(replaced[4:])
    assert any(row["sample/attempts"] < 2 for row in rows), "some steps soon had answers that differ"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.demo_model
def test_sigkill_and_resume_with_ppo_and_its_value_model_on_the_demo_model(demo_model: Path, tmp_path: Path) -> None:
    check_killed_equals_undisturbed(str(demo_model), tmp_path, "ppo", 8, [(1, 1.0), (2, 2.0)])
