"""What every test may ask for, and the rule about skips: counted by reason, and in CI an absent input is a failure."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

DEMO_MODEL = "builtin:smollm2-135m-instruct"
BESIDE_THE_CHECKOUT = Path(__file__).resolve().parents[2] / "shared" / "data"
ALLOWED_IN_CI = ("hardware:", "platform:")
"""How the reason of a skip begins that is right in CI too: a graphics card or an operating system cannot be installed."""

HEAVY = {"demo_model", "shared_data", "serving", "own_server", "postgres"}
"""Fixtures that load a real model, read real data or start a server: the quick gate does without."""


def _set_environment() -> None:
    """Before torch is imported, and inherited by subprocesses: the workers share the cores, and nobody asks the hub."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        if (
            "PYTEST_XDIST_WORKER" in os.environ
        ):  # it inherits what the controller, which saw one worker, has set for itself
            os.environ[name] = threads
        os.environ.setdefault(name, threads)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if "TUTELAGE_DATA" not in os.environ and BESIDE_THE_CHECKOUT.is_dir():
        os.environ["TUTELAGE_DATA"] = str(BESIDE_THE_CHECKOUT)


_set_environment()


@pytest.fixture(scope="session")
def shared_data() -> Callable[..., Path]:
    """`shared_data("gsm8k", "test.jsonl")` -> that path under $TUTELAGE_DATA; skips where it is absent."""

    def find(*parts: str) -> Path:
        root = os.environ.get("TUTELAGE_DATA")
        if not root:
            pytest.skip("shared data absent: TUTELAGE_DATA is not set")
        path = Path(root, *parts)
        if not path.exists():
            pytest.skip(f"shared data absent: no {'/'.join(parts) or 'folder'} under TUTELAGE_DATA")
        return path

    return find


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The directory of SmolLM2-135M-Instruct, converted on first use; skips where its package is not installed."""
    from tutelage.models.builtin import PACKAGED, package_folder
    from tutelage.models.load import resolve_model

    if package_folder(PACKAGED[DEMO_MODEL.partition(":")[2]]) is None:
        pytest.skip("demo model absent: make installs its package")
    return Path(resolve_model(DEMO_MODEL))


@pytest.fixture
def tiny() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A fresh random two-layer model (float32, seed 0) and its byte tokenizer."""
    from tutelage.models.tiny import tiny as make

    return make()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that asks for something heavy is slow; for the demo model or the shared data, it carries that marker too.

    Those that may take longest begin first: a worker with one of them at the end would keep the others waiting.
    """
    items.sort(key=lambda item: -max((s for mark in item.iter_markers("timeout") for s in mark.args[:1]), default=0))
    for item in items:
        asked = HEAVY & set(getattr(item, "fixturenames", ()))
        for name in (asked & {"demo_model", "shared_data"}) | ({"slow"} if asked else set()):
            item.add_marker(name)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


def _refuse_skip(report: Any) -> None:
    """With CI=true, turns a skip into a failure; an expected failure (xfail) is no skip."""
    if os.environ.get("CI") != "true" or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = _reason(report)
    if not reason.startswith(ALLOWED_IN_CI):
        report.outcome = "failed"
        report.longrepr = f"skipped with CI=true: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """In CI a skipped test fails."""
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    """In CI a file that skips itself as a whole fails."""
    report = yield
    _refuse_skip(report)
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The skips by reason, most frequent first; a line also where there are none."""
    counts = Counter(_reason(report) for report in terminalreporter.stats.get("skipped", []))
    terminalreporter.write_line(f"skipped: {counts.total()}")
    for reason, count in counts.most_common():
        terminalreporter.write_line(f"  {count:4d}  {reason}")
