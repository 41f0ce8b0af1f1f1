"""The house keeps its own rules: sizes, docstrings, floors, light rooms, package data, and nothing of one machine."""

from __future__ import annotations

import ast
import fnmatch
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "tutelage"
MODULES = sorted(SOURCE.rglob("*.py"))
EVERY_FILE = sorted(p for folder in ("src", "tests", "examples", "benchmarks") for p in (ROOT / folder).rglob("*.py"))
FILE_LINES, FUNCTION_LINES, POSITIONAL = 250, 60, 5
Function = ast.FunctionDef | ast.AsyncFunctionDef


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """A command's exit status and output, as text."""
    return subprocess.run(command, check=False, capture_output=True, text=True, **options)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(_text(path))


def long_functions(tree: ast.AST, limit: int = FUNCTION_LINES) -> list[str]:
    """Functions of more than `limit` lines, as `name (lines)`; decorators do not count."""
    sizes = ((f.name, (f.end_lineno or f.lineno) - f.lineno + 1) for f in ast.walk(tree) if isinstance(f, Function))
    return [f"{name} ({size})" for name, size in sizes if size > limit]


def crowded_functions(tree: ast.AST, limit: int = POSITIONAL) -> list[str]:
    """Functions with more than `limit` positional parameters; `self` and `cls` do not count."""
    found = []
    for function in ast.walk(tree):
        if isinstance(function, Function):
            given = [a.arg for a in (*function.args.posonlyargs, *function.args.args) if a.arg not in ("self", "cls")]
            if len(given) > limit:
                found.append(f"{function.name} ({len(given)})")
    return found


def opening(tree: ast.Module) -> str:
    """The first line of a file's docstring, empty where there is none."""
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def beyond_limits(path: Path) -> list[str]:
    """What in a file is too long or too crowded."""
    lines = _text(path).count("\n")
    found = [f"{lines} lines"] if lines > FILE_LINES else []
    return found + long_functions(_tree(path)) + crowded_functions(_tree(path))


def left_undone(path: Path) -> list[str]:
    """Marks of work that somebody meant to do later."""
    words = ["TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error"]
    return re.findall(rf"\b(?:{'|'.join(words)})\b", _text(path))


def test_the_measures_measure() -> None:
    body = "\n".join(f"    x = {i}" for i in range(4))
    tree = ast.parse(f'"""Job."""\n\ndef f(self, a, b, *, c):\n{body}\n')
    assert long_functions(tree, 4) == ["f (5)"]
    assert long_functions(tree, 5) == []
    assert crowded_functions(tree, 1) == ["f (2)"]
    assert crowded_functions(tree, 2) == []
    assert opening(tree) == "Job."
    assert opening(ast.parse("x = 1")) == ""


def test_the_measures_measure_files(tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.py", tmp_path / "good.py"
    body = "\n".join(f"    x = {i}" for i in range(FUNCTION_LINES))
    bad.write_text(f"def f(a, b, c, d, e, g):\n{body}\n" + "# TO" + "DO\n" + "\n" * FILE_LINES)
    good.write_text('"""Job."""\n')
    assert beyond_limits(bad) == [f"{FUNCTION_LINES + 2 + FILE_LINES} lines", f"f ({FUNCTION_LINES + 1})", "f (6)"]
    assert left_undone(bad) == ["TO" + "DO"]
    assert beyond_limits(good) == left_undone(good) == []


def test_limits() -> None:
    assert {_name(path): found for path in MODULES if (found := beyond_limits(path))} == {}


def test_the_first_line_is_the_files_one_job() -> None:
    assert [_name(path) for path in EVERY_FILE if not opening(_tree(path))] == []


def test_nothing_is_left_undone() -> None:
    assert {_name(path): found for path in EVERY_FILE if (found := left_undone(path))} == {}


def test_every_folder_of_modules_is_a_package() -> None:
    """import-linter does not look into a folder without __init__.py: every import in it would be allowed."""
    assert sorted({_name(p.parent) for p in MODULES if not (p.parent / "__init__.py").is_file()}) == []


def test_imports_go_down_only() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    assert program.exists(), "import-linter is missing: pip install '.[test]'"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = run([str(program), "--no-logo", "--no-cache"], cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Contracts: \d+ kept, 0 broken", done.stdout), done.stdout


@pytest.mark.parametrize(
    "modules",
    ["tutelage", "tutelage.records, tutelage.config, tutelage.statistics, tutelage.feedback"],
    ids=["package", "light rooms"],
)
def test_light_imports_leave_torch_out(modules: str) -> None:
    script = f"import sys, {modules}; print(sorted({{'torch', 'transformers', 'peft'}} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = run([sys.executable, "-c", script], env=environment)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_every_data_file_is_package_data() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    globs = settings["tool"]["setuptools"]["package-data"]["*"]
    data = [p for p in SOURCE.rglob("*") if p.is_file() and p.suffix != ".py" and "__pycache__" not in p.parts]
    missed = [_name(p) for p in data if not any(fnmatch.fnmatch(p.name, glob) for glob in globs)]
    assert missed == [], "an installed copy would lack these; extend package-data in pyproject.toml"


def canonical(name: str) -> str:
    """A distribution's name as the package index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared_dependencies() -> set[str]:
    """What pyproject.toml asks for, with and without extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(x for extra in project["optional-dependencies"].values() for x in extra)]
    return {canonical(re.split(r"[\[<>=! ;]", x)[0]) for x in asked} - {"tutelage"}


def third_party_imports() -> dict[str, str]:
    """Every top-level module from outside that the package imports -> one file that does so."""
    found: dict[str, str] = {}
    for path in MODULES:
        for node in ast.walk(_tree(path)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            found.update({name.partition(".")[0]: _name(path) for name in names})
    return {k: v for k, v in found.items() if k not in sys.stdlib_module_names and k != "tutelage"}


def test_every_import_is_a_declared_dependency() -> None:
    providers, declared = importlib.metadata.packages_distributions(), declared_dependencies()
    undeclared = {
        f"{module} in {path}"
        for module, path in third_party_imports().items()
        if not {canonical(name) for name in providers.get(module, [module])} & declared
    }
    assert undeclared == set()


def committed_files() -> list[Path]:
    """What git tracks; pytest runs from a checkout."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("git checkout absent: the committed files cannot be listed")
    done = run([git, "ls-files", "-z"], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


OF_ONE_MACHINE = {
    "registry host": r"pypi\.org|pythonhosted\.org|registry\.npmjs|npmmirror|index-url\s*=",
    "machine path": r"(?<![\w.])/(?:work|root|opt|home)/\w|file://" + r"/\w",
    "access token": r"\bhf_[A-Za-z0-9]{30,}|\bghp_[A-Za-z0-9]{30,}",
}


@pytest.mark.parametrize("kind", OF_ONE_MACHINE)
def test_nothing_committed_belongs_to_one_machine(kind: str) -> None:
    pattern = re.compile(OF_ONE_MACHINE[kind])
    found = []
    for path in committed_files():
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if match := pattern.search(line):
                found.append(f"{_name(path)}:{number}: {match[0]}")
    assert found == []


def test_the_machine_patterns_match_what_they_name() -> None:
    assert re.search(OF_ONE_MACHINE["machine path"], "see /ro" + "ot/x")
    assert not re.search(OF_ONE_MACHINE["machine path"], "at school/wo" + "rk/home")
    assert not re.search(OF_ONE_MACHINE["machine path"], "https://example.org/work")
    assert re.search(OF_ONE_MACHINE["registry host"], "https://py" + "pi.org/simple")


def test_constraints_pin_exactly_and_name_no_build() -> None:
    lines = [x for x in (ROOT / "constraints.txt").read_text().splitlines() if x and not x.startswith("#")]
    wrong = [x for x in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", x)]
    assert wrong == []
    pinned = {canonical(x.partition("==")[0]) for x in lines}
    assert declared_dependencies() - {"wandb", "trackio"} <= pinned, "the test extra leaves out only these two"


SKIPPING = """
import pytest

def test_data():
    pytest.skip("shared data absent: gsm8k")

def test_again():
    pytest.skip("shared data absent: gsm8k")

def test_graphics_card():
    pytest.skip("hardware: no CUDA device")

@pytest.mark.xfail(strict=True)
def test_expected():
    assert False
"""
ORDERED = """
import pytest

order = []

def test_short():
    order.append("short")

def test_end():
    assert order == ["long", "short"]

@pytest.mark.timeout(900)
def test_long():
    order.append("long")

@pytest.mark.parametrize("postgres", [1])
def test_serving(request, postgres):
    assert request.node.get_closest_marker("slow")
"""
WHOLE_FILE = "import pytest\n\npytest.importorskip('no_such_module')\n"


def run_pytest(folder: Path, source: str, ci: str) -> subprocess.CompletedProcess[str]:
    """pytest on one file of `source` beside this suite's conftest."""
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    (folder / "test_inner.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_inner.py"]
    return run(command, cwd=folder, env={**os.environ, "CI": ci, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})


def test_skips_are_counted_by_reason(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, SKIPPING, ci="")
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert "3 skipped, 1 xfailed" in lines[-1]
    at = lines.index("skipped: 3")
    assert lines[at + 1 : at + 3] == ["     2  shared data absent: gsm8k", "     1  hardware: no CUDA device"]


def test_in_ci_an_absent_input_is_a_failure(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, SKIPPING, ci="true")
    assert done.returncode == 1, done.stdout
    assert "2 failed, 1 skipped, 1 xfailed" in done.stdout.splitlines()[-1]
    assert "skipped with CI=true: shared data absent: gsm8k" in done.stdout


def test_long_tests_begin_first_and_heavy_ones_are_slow(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, ORDERED, ci="")
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout


def test_in_ci_a_file_that_skips_itself_is_an_error(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, WHOLE_FILE, ci="true")
    assert done.returncode != 0, done.stdout
    assert "1 error" in done.stdout.splitlines()[-1]
