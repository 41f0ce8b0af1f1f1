"""kill -9 at any moment, then --resume: the run goes on as if nothing had happened, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tutelage.models.load import save_policy
from tutelage.models.tiny import tiny

STEPS = 6


def command(model: str, data: Path, out: Path, algorithm: str, new_tokens: int) -> list[str]:
    flags = [
        *("--model", model, "--data", str(data), "--out", str(out), "--algorithm", algorithm, "--reward", "brevity"),
        *(
            "--steps",
            str(STEPS),
            "--batch-size",
            "2",
            "--max-new-tokens",
            str(new_tokens),
            "--algorithm.group-size",
            "2",
        ),
        *("--optimization.save-every", "1", "--optimization.tokens-per-pass", "192"),
    ]
    return [sys.executable, "-m", "tutelage.cli", "rl", *flags]


def prompts(path: Path) -> Path:
    file = path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"Say something short about the number {n}."}) for n in range(8)))
    return file


def finish(arguments: list[str]) -> None:
    done = subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]


def kill_after(arguments: list[str], out: Path, seconds: float) -> bool:
    """Start, wait until the run has begun and then `seconds` more, SIGKILL; True if it was still running."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while not (out / "config.yaml").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(seconds)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return alive


def result(out: Path) -> tuple[list[dict], dict[str, torch.Tensor]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    plain = [{k: v for k, v in row.items() if not k.startswith("time/") and "per_second" not in k} for row in rows]
    return plain, load_file(out / "policy" / "model.safetensors")


def check_killed_equals_undisturbed(
    model: str, path: Path, algorithm: str, new_tokens: int, waits: list[float]
) -> None:
    data = prompts(path)
    finish(command(model, data, path / "whole", algorithm, new_tokens))
    broken = command(model, data, path / "broken", algorithm, new_tokens)
    kills = 0
    for wait in waits:
        started = (path / "broken" / "config.yaml").exists()
        kills += kill_after(broken + (["--resume"] if started else []), path / "broken", wait)
    if not (path / "broken" / "finished.json").exists():
        finish([*broken, "--resume"])
    assert kills > 0, "the run was over before any kill: nothing was tested"
    rows, weights = result(path / "whole")
    again, resumed = result(path / "broken")
    assert [row["step"] for row in again] == list(range(STEPS)), "a step is missing or stands twice"
    assert again == rows
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "reinforce"])
def test_sigkill_and_resume_on_a_tiny_model(algorithm: str, tmp_path: Path) -> None:
    model, tokenizer = tiny()
    save_policy(model, tokenizer, tmp_path / "model")
    rng = random.Random(0)
    waits = [rng.uniform(0, 0.6) for _ in range(5)]
    check_killed_equals_undisturbed(str(tmp_path / "model"), tmp_path, algorithm, 12, waits)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.demo_model
def test_sigkill_and_resume_with_ppo_and_its_value_model_on_the_demo_model(demo_model: Path, tmp_path: Path) -> None:
    check_killed_equals_undisturbed(str(demo_model), tmp_path, "ppo", 8, [4.0, 14.0])
