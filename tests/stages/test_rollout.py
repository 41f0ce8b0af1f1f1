"""`tutelage rl` with a sampler in fewer bits and with stop strings: wired to what they say, refused where they mean nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tutelage.algorithms.grpo import GRPO
from tutelage.algorithms.nash_md import NashMD
from tutelage.config import build
from tutelage.models.load import save_policy
from tutelage.models.tiny import tiny as make_tiny
from tutelage.records import read_jsonl
from tutelage.stages.rl import RL, main
from tutelage.stages.rollout import Rollout, check_rollout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rollout")
    save_policy(*make_tiny(), folder / "model")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"{n} + {n}?"}) + "\n" for n in range(6)))
    return folder


def run(place: Path, out: Path, **options: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    base = {
        "model": str(place / "model"), "data": [str(place / "prompts.jsonl")], "reward": ["brevity"], "steps": 1,
        "batch_size": 2, "max_new_tokens": 12, "algorithm": {"name": "grpo", "group_size": 3}, "out": str(out),
    }  # fmt: skip
    folder = main(build(RL, {**base, **options}, "test"))
    return list(read_jsonl(folder / "metrics.jsonl")), list(read_jsonl(folder / "samples.jsonl"))


@pytest.mark.slow
def test_int8_rollouts_are_corrected_and_their_mismatch_is_reported(place: Path, tmp_path: Path) -> None:
    (row,), _ = run(place, tmp_path / "int8", rollout={"precision": "int8", "cap": 1.05})
    assert 1e-4 < row["rollout/logprob_gap"] < 0.2
    assert abs(row["rollout/kl"]) < 0.01
    assert row["rollout/max_ratio"] > 1
    assert 0.99 < row["rollout/effective_share"] < 1
    (exact,), _ = run(place, tmp_path / "exact")
    assert not any(name.startswith("rollout/") for name in exact)
    assert exact["reward/mean"] == pytest.approx(row["reward/mean"], abs=0.5), "nearly the same answers"


@pytest.mark.slow
def test_stop_strings_end_answers_in_training(place: Path, tmp_path: Path) -> None:
    """Every answer without the string runs to the limit; vowels end nearly all of them before it."""
    stops = ["a", "e", "i", "o", "u", *"0123456789bcdfgh"]
    (row,), (first, second) = run(place, tmp_path / "stop", stop=stops)
    answers = [answer for sample in (first, second) for answer in sample["answers"]]
    assert {answer["stop_reason"] for answer in answers} >= {"stop"}
    assert not any(stop in answer["text"] for stop in stops for answer in answers)
    assert 0 < row["answer/finished"] <= 1


def test_methods_without_a_loss_a_token_refuse() -> None:
    check_rollout(Rollout(precision="int8"), GRPO())
    check_rollout(Rollout(), NashMD())
    with pytest.raises(ValueError, match=r"rollout\.precision int8 is corrected for in .* got algorithm nash_md"):
        check_rollout(Rollout(precision="int8"), NashMD())
