"""The pages' figures: their numbers by hand, drawn without an error, small, and each of them on a page with its command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import figures
import sums
from tutelage.statistics import wilson

ROOT = Path(__file__).resolve().parents[1]
PAGES = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))


def test_the_rules_by_hand() -> None:
    """50 words: 1 / (1 + 50 / 50). 150 words: half of the way from 100 to 200."""
    curves = figures.rule_curves()
    words, scores = curves["brevity"]
    assert dict(zip(words, scores, strict=True))[50] == 0.5
    words, scores = curves["length_penalty"]
    assert dict(zip(words, scores, strict=True))[150] == -0.5


def test_rows_that_fit_by_hand() -> None:
    assert figures.fitting([3, 5, 8, 9], 5) == 0.5


def test_agreement_is_that_of_the_table() -> None:
    """The table in docs/gold-rule.md: more of the prompt's words 65.3 %, fewer sentences 63.6 %."""
    found = figures.agreement()
    assert found["prompt_words"] == pytest.approx(0.653, abs=5e-4)
    assert found["sentences"] == pytest.approx(0.636, abs=5e-4)


def test_what_the_pages_say_of_picks() -> None:
    assert wilson(14, 20).low < 0.5 < wilson(17.5, 25).low


@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_is_small_and_on_a_page_with_its_command(name: str) -> None:
    assert f"](../benchmarks/results/figures/{name}.svg)" in PAGES
    assert f"benchmarks/figures.py {name}`" in PAGES or f"benchmarks/figures.py {name})" in PAGES
    assert (figures.FOLDER / f"{name}.svg").stat().st_size < 100_000


def test_a_drawing_says_what_its_axes_are(tmp_path: Path) -> None:
    svg = figures.draw("quickstart", tmp_path).read_text(encoding="utf-8")
    for text in ("steps of GRPO", "preferred to the reference", "by the reward model"):
        assert text in svg


def test_an_unknown_figure_is_refused_by_name() -> None:
    with pytest.raises(SystemExit, match=r"no such figure: rewrds; there are: quickstart, recipes, evaluate, rewards"):
        figures.main(["rewrds"])


def test_a_line_is_the_mean_of_the_last_steps():
    assert figures.smoothed([1.0, 0.0, 0.5, 1.0], window=2) == [1.0, 0.5, 0.25, 0.75]


def test_sums_are_learnt_in_every_seed():
    """The number that the recipe asks for itself, and those that its page tells."""
    runs = json.loads((figures.ROOT / "benchmarks" / "results" / "sums.json").read_text())["runs"]
    page = (figures.ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert [run["command"].split()[-1] for run in runs] == ["0", "1", "2"]
    for run in runs:
        assert run["rise"]["low"] > 0
        low, estimate, high = (round(100 * run["rise"][key], 1) for key in ("low", "estimate", "high"))
        assert f"+{estimate}" in page
        assert f"[{low}, {high}]" in page


def test_what_a_run_folder_holds_is_read(tmp_path):
    for exam, right in zip(sums.EXAMS.values(), (0.1, 0.4, 0.7), strict=True):
        judged = {"judges": {"sums": {"score": {"estimate": right}, "difference": {"estimate": 0.3}}}, "kl": None}
        (tmp_path / exam).mkdir()
        (tmp_path / exam / "evaluation.json").write_text(json.dumps(judged))
    (tmp_path / "grpo").mkdir()
    (tmp_path / "grpo" / "environment.json").write_text(json.dumps({"environment": {"cpu": "a CPU", "threads": 2}}))
    (tmp_path / "grpo" / "config.yaml").write_text("seed: 7\n")
    (tmp_path / "grpo" / "metrics.jsonl").write_text('{"step": 0, "reward/sums": 0.5}\n{"step": 0, "checkpoint": 1}\n')
    found = sums.read(tmp_path, "abc")
    assert found["command"] == "tutelage run recipes/sums.yaml --seed 7"
    assert [score["estimate"] for score in found["exams"].values()] == [0.1, 0.4, 0.7]
    assert found["curve"] == [[0, 0.5]]
    assert found["rise"] == {"estimate": 0.3}
