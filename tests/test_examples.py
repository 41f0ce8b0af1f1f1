"""The examples run as they stand, and what they train is learnt."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))


def example(name: str) -> ModuleType:
    """The file `examples/NAME.py` as a module; it is not installed, so it is loaded by its path."""
    path = next(path for path in EXAMPLES if path.stem == name)
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.slow
def test_sft_learns_what_is_shown(tmp_path: Path) -> None:
    losses, answers = example("sft").main(tmp_path / "run")
    # 259 tokens; the random model is near ln 259 = 5.6 and ends far below ln 2, half the probability on the right token
    assert losses[0] > 4
    assert losses[-1] < 0.1
    assert answers == ["CAT", "DOG", "SUN", "SEA"]


@pytest.mark.slow
def test_dpo_learns_what_is_preferred(tmp_path: Path) -> None:
    rows = example("dpo").main(tmp_path / "run")
    # Before the first update the policy is the reference: -log sigmoid(0) = ln 2, and no margin
    assert rows[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert rows[0]["reward/margin"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["accuracy/implicit"] == 1.0
    assert rows[-1]["reward/margin"] > 1


@pytest.mark.slow
def test_grpo_raises_the_reward(tmp_path: Path) -> None:
    rows = example("grpo_rule_reward").main(tmp_path / "run")
    # 26 of 259 tokens are small letters
    assert rows[0]["reward/mean"] < 0.25
    assert sum(row["reward/mean"] for row in rows[-3:]) / 3 > 0.6
    assert rows[0]["policy/kl"] == pytest.approx(0, abs=1e-3)
    assert rows[-1]["policy/kl"] > 0
    samples = (tmp_path / "run" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(samples) == 25 * 3
