"""What README and the pages promise: links that lead somewhere, and a library example that runs as it is printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tutelage.config import read_yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(page: str) -> set[str]:
    """The names under which a page's headings can be linked to."""
    heads = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        if file.startswith(("http://", "https://")):
            continue
        path = (page.parent / file).resolve() if file else page
        if not path.exists() or (anchor and anchor not in anchors(path.read_text(encoding="utf-8"))):
            broken.append(target)
    assert broken == []


def test_every_file_that_a_recipe_reads_has_a_source() -> None:
    recipes = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "recipes").glob("*.yaml"))
    files = set(re.findall(r"\$\{TUTELAGE_DATA\}/([\w./-]+)", recipes))
    table = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert len(files) >= 7
    assert {file for file in files if f"`{file}`" not in table} == set()


def test_a_recipe_without_its_data_says_where_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUTELAGE_DATA", raising=False)
    with pytest.raises(ValueError, match=r"export TUTELAGE_DATA=/path/to/data; docs/recipes.md lists the files"):
        read_yaml(ROOT / "recipes" / "sft.yaml")


def library_example() -> str:
    """The README's only Python."""
    (example,) = re.findall(r"```python\n(.+?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return example


def test_the_library_example_has_twenty_lines() -> None:
    lines = [line for line in library_example().splitlines() if line.strip()]
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 120


def test_the_library_example_runs_as_printed(demo_model: Path, tmp_path: Path) -> None:
    example = library_example()
    shorter, changed = re.subn(r"steps=\d+", "steps=1", example)
    assert changed == 1
    (tmp_path / "example.py").write_text(shorter, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "example.py"]
    done = subprocess.run(command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search("Warning|Loading weights|Writing model", done.stderr), done.stderr
    from transformers import AutoModelForCausalLM

    before = AutoModelForCausalLM.from_pretrained(demo_model).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "brevity" / "policy").state_dict()
    assert before.keys() == after.keys()
    assert any(not before[name].equal(after[name]) for name in before), "the example trained nothing"
