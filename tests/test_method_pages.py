"""The pages of docs/algorithms are whole: equation and function, a record in and out, curve, mistakes, recipe; all of it real."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from learning_pages import PAGES, complete, curve_section, seeds_on
from learning_rows import ROWS
from tutelage.config import parse
from tutelage.stages.recipe import settings_of

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "algorithms"
CURVES = "../../benchmarks/results/learning/curves"
WITHOUT_CURVE = {"simpo-orpo-hinge": "functions; no command trains with them"}
WITHOUT_RECIPE = {"simpo-orpo-hinge"}
EVERY_PAGE = sorted(path.stem for path in FOLDER.glob("*.md"))
FUNCTION = re.compile(r"`(\w+)(?:\.(\w+))?` in \[`[^`]+`\]\(([^)]+\.py)\)")
"""`name` or `Class.method`, and the file that is linked behind it."""

each_page = pytest.mark.parametrize("page", EVERY_PAGE)


def text_of(page: str) -> str:
    return (FOLDER / f"{page}.md").read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    """What stands under the one heading that matches, up to the next of its level."""
    found = re.findall(rf"^## (?:{heading})\n(.*?)(?=^## |\Z)", text_of(page), re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"{page}.md has {len(found)} sections `## {heading}`"
    return found[0]


def test_every_method_has_a_page_with_its_curve() -> None:
    assert {row.name for row in ROWS} == {name for names in PAGES.values() for name in names}
    assert set(EVERY_PAGE) == set(PAGES) | set(WITHOUT_CURVE)
    assert not set(PAGES) & set(WITHOUT_CURVE)


@each_page
def test_equation_and_function(page: str) -> None:
    told = section(page, "Equation and function")
    assert re.search(r"^```|^\$\$|^\|.*\d.*\||m\(y\) =", told, re.MULTILINE), "no equation"
    assert "](../../src/tutelage/" in text_of(page)
    if page not in WITHOUT_RECIPE:
        assert FUNCTION.search(told) or "](../../src/tutelage/functional/" in told, "no function"


@each_page
def test_functions_are_where_the_page_says(page: str) -> None:
    wrong = []
    for name, inside, link in FUNCTION.findall(text_of(page)):
        source = (FOLDER / link).read_text(encoding="utf-8")
        defined = re.search(rf"^\s*(?:def|class) {name}\b", source, re.MULTILINE)
        if not defined or (inside and not re.search(rf"^    (?:def {inside}\b|{inside}:)", source, re.MULTILINE)):
            wrong.append(f"{name}.{inside} in {link}")
    assert wrong == []


@each_page
def test_a_record_in_and_out(page: str) -> None:
    told = section(page, "One [a-z]+ in and out")
    assert re.search(r"\d\.\d", told), "no number"


@each_page
def test_the_commonest_mistakes(page: str) -> None:
    assert len(re.findall(r"^- ", section(page, "Commonest mistakes"), re.MULTILINE)) >= 3


def results() -> list[dict[str, Any]]:
    """The rows of the learning table that have been run."""
    found = [FOLDER / CURVES / ".." / f"{row.name}.json" for row in ROWS]
    return [json.loads(path.read_text(encoding="utf-8")) for path in found if path.is_file()]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_curve_and_its_command(page: str) -> None:
    """As soon as all rows of a page have their seeds; the learning table names the rows that have not."""
    if page not in complete(results()):
        told = (FOLDER / CURVES / ".." / "table.md").read_text(encoding="utf-8")
        assert any(name in told.partition("Not run yet")[2] or "seeds)" in told for name in PAGES[page])
        return
    assert section(page, "Curve").strip() == curve_section(page).partition("\n")[2].strip()
    drawn = (FOLDER / CURVES / f"{page}.svg").read_text(encoding="utf-8")
    assert {row.seeds for row in ROWS if row.name in PAGES[page]} == {seeds_on(page)}
    assert re.findall(rf">(\w+) \({seeds_on(page)} seeds\)<", drawn) == list(PAGES[page])


def test_the_images_are_small() -> None:
    assert sum(path.stat().st_size for path in (FOLDER / CURVES).glob("*")) < 1_000_000


@pytest.mark.parametrize("page", [page for page in EVERY_PAGE if page not in WITHOUT_RECIPE])
def test_the_recipe(page: str) -> None:
    told = section(page, "Recipes?")
    assert "](../../recipes/" in told or "tutelage " in told


def commands(page: str) -> list[list[str]]:
    """The commands of a page that are written out, in blocks and in the text."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(tutelage [^`]+)`", text_of(page))
    whole = [line for line in lines if line.startswith("tutelage ") and "..." not in line and "|" not in line]
    words = [shlex.split(line, comments=True)[1:] for line in whole]
    return [command for command in words if len(command) > 1]


@pytest.mark.slow
@each_page
def test_its_commands_would_run(page: str) -> None:
    for command, *arguments in commands(page):
        if not arguments[0].startswith("-"):
            assert arguments[0] == "RUN/pool/step-000010" or (ROOT / arguments[0]).is_file(), arguments
        else:
            parse(settings_of(command), arguments, {}, page, prog=f"tutelage {command}")


def test_commands_are_found() -> None:
    found = [command for page in EVERY_PAGE for command in commands(page)]
    assert {command[0] for command in found} >= {"run", "rl", "sft", "reward", "prefer", "sample", "refine", "evaluate"}


def test_the_learning_page_has_the_table_of_the_results() -> None:
    results = (ROOT / "benchmarks" / "results" / "learning" / "table.md").read_text(encoding="utf-8")
    rows = [line for line in results.splitlines() if line.startswith("| ")]
    assert len(rows) > 30
    assert "\n".join(rows[1:]) in (ROOT / "docs" / "learning.md").read_text(encoding="utf-8")
