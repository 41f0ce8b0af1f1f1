"""The quickstart's benchmark: which stages a run takes over, and what its bounds say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import quickstart

STAGES = ("answers", "heldout", "feedback", "reward", "rl", "evaluation")
PEAK = 5.35


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with seed 0's finished run and the control's, at the commit `abc`."""
    monkeypatch.setattr(quickstart, "commit", lambda: "abc")
    for name in ("seed0", "shuffled_labels"):
        run = tmp_path / "old" / name
        for stage in ("prompts", *STAGES):
            (run / stage).mkdir(parents=True)
            (run / stage / "kept.txt").write_text(f"{name} {stage}")
        ran = {"data": f"{run}/prompts/train.jsonl", "gemm": "default", "kernels": "numba"}
        settings = {stage: {"settings": ran} for stage in STAGES}
        (run / "stages.json").write_text(json.dumps(settings))
        (run / "minutes.json").write_text(json.dumps(dict.fromkeys(STAGES, 2.0)))
        quickstart.told_of(run).write_text(json.dumps({"commit": "abc", "peak_memory_gb": PEAK}))
    return tmp_path / "old"


def folders(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir() if path.is_dir()) if run.is_dir() else []


def test_a_control_begins_with_seed_0s_stages_of_the_same_commit(finished: Path, monkeypatch: pytest.MonkeyPatch):
    run = finished / "gold_reward"
    quickstart.begin(run, None)
    assert folders(run) == ["answers", "feedback", "heldout", "prompts", "reward"]
    assert (run / "reward" / "kept.txt").read_text() == "seed0 reward"
    assert json.loads((run / "minutes.json").read_text()) == dict.fromkeys(STAGES[:4], 2.0)
    ledger = json.loads((run / "stages.json").read_text())
    assert ledger["reward"]["settings"]["data"] == f"{run}/prompts/train.jsonl"
    monkeypatch.setattr(quickstart, "commit", lambda: "another")
    quickstart.begin(finished / "ppo", None)
    assert folders(finished / "ppo") == []
    quickstart.begin(finished / "seed1", None)
    assert folders(finished / "seed1") == []


def test_a_policy_is_trained_anew_on_the_reward_model_of_an_earlier_run(finished: Path):
    for name, source in (("shuffled_labels", "shuffled_labels"), ("ppo", "seed0")):
        run = finished.with_name("new") / name
        quickstart.begin(run, finished)
        assert folders(run) == ["answers", "feedback", "heldout", "prompts", "reward"]
        assert (run / "reward" / "kept.txt").read_text() == f"{source} reward"
        told = json.loads(quickstart.told_of(run).read_text())["earlier"]
        assert (told["commit"], told["run"], told["peak_memory_gb"]) == ("abc", source, PEAK)
        assert "rl" not in told["stages"]
        assert quickstart.choices(run) == ["--gemm", "default", "--kernels", "numba"]
    assert quickstart.choices(finished.with_name("new") / "seed1") == []


def test_a_run_without_an_earlier_one_is_refused(finished: Path, tmp_path: Path):
    """Seed 1 is not seed 0, and a folder that is not there holds nothing."""
    for name, earlier in (("seed1", finished), ("ppo", tmp_path / "nowhere")):
        run = finished.with_name("new") / name
        with pytest.raises(SystemExit, match=f"no finished run that {name} could go on from"):
            quickstart.begin(run, earlier)
        assert not run.exists()
        assert not quickstart.told_of(run).exists()


def of(low: float, high: float, name: str = "seed0", minutes: float = 25.0) -> dict:
    accuracy = {"estimate": 0.72, "low": 0.7, "high": 0.74}
    return {
        "name": name,
        "peak_memory_gb": PEAK,
        "minutes_total": minutes,
        "evaluation": {"win_gold": {"low": low, "high": high}},
        "reward_model": {"accuracy": accuracy, "ceiling": 0.81, "longer_wins": 0.45, "shorter_wins": 0.55},
    }


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (of(0.72, 0.8), []),
        (of(0.58, 0.8), ["seed0: lower bound 58.0%, asked: above 60 %"]),
        (of(0.72, 0.8, minutes=33.5), ["seed0: 33.5 minutes, asked: at most 30 on a quiet machine"]),
        (of(0.48, 0.55, "shuffled_labels"), []),
        (of(0.35, 0.43, "shuffled_labels"), ["shuffled_labels: the interval leaves out 50 %"]),
        (of(0.51, 0.59, "shuffled_labels"), ["shuffled_labels: the interval leaves out 50 %"]),
    ],
)
def test_bounds(run: dict, said: list[str]):
    assert quickstart.misses(run) == said
