"""The pages' figures: their numbers by hand, drawn without an error, small, and each of them on a page with its command."""

from __future__ import annotations

from pathlib import Path

import pytest

import figures
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
    with pytest.raises(SystemExit, match=r"no such figure: rewrds; there are: quickstart, rewards"):
        figures.main(["rewrds"])
