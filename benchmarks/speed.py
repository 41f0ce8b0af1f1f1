"""Speed: our steps and decoder against TRL's trainers, transformers' `generate` and vLLM, in one run, alternating.

make bench                                      every row that is not there yet, then docs/performance.md
make bench ARGS="--only dpo sft"                some rows
make bench ARGS="--only dpo --again"            a row anew
make bench ARGS="--report"                      the page of the rows that are there
make bench ARGS="--against REV --only sft"      ours against ours at another revision
make bench ARGS="--smoke"                       everything on a tiny model: whether it works, not how fast it is
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import speed_growth
from speed_against import short, worktree
from speed_data import Source
from speed_measure import Sides, measure_row
from speed_report import write_report
from speed_rows import ROWS, Row
from speed_smoke import small, tiny_model
from tutelage.console import say, warn

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "speed"
PAGE = ROOT / "docs" / "performance.md"
CACHE = ROOT / "build" / "speed"
MODEL = "builtin:smollm2-135m-instruct"
GROWTH = "growth"


@dataclass(frozen=True)
class Plan:
    """What is to be run."""

    rows: tuple[Row, ...]
    growth: bool
    again: bool
    repetitions: int
    results: Path


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    given = _parser().parse_args(arguments)
    if given.repetitions < 1 or given.threads < 1:
        raise SystemExit("speed: --repetitions and --threads take a number from 1 on")
    known = [*(row.name for row in ROWS), GROWTH]
    chosen = given.only or known
    plan = Plan(
        tuple(row for row in ROWS if row.name in chosen and not given.report),
        GROWTH in chosen and not given.report and not given.against,
        given.again,
        given.repetitions,
        given.results or RESULTS,
    )
    with contextlib.ExitStack() as stack:
        source = Source(MODEL, Path() if given.smoke or given.report else _data(), CACHE, given.threads)
        if given.smoke:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="speed-")))
            source = Source(tiny_model(folder), Path(), folder / "cache", 1)
            plan = replace(plan, rows=tuple(small(row, folder) for row in plan.rows), growth=False)
            plan = plan if given.results else replace(plan, results=folder)
        other = None
        if given.against:
            revision = short(ROOT, given.against)
            other = str(stack.enter_context(worktree(ROOT, revision)) / "src")
            plan = replace(plan, rows=tuple(ours_twice(row, revision) for row in plan.rows))
        failed = _run(plan, source, other)
        write_report(plan.results, PAGE if plan.results == RESULTS else plan.results / PAGE.name)
    return 1 if failed else 0


def ours_twice(row: Row, revision: str) -> Row:
    """The row with our own side at another revision in the rival's place."""
    return replace(
        row,
        name=f"{row.name}-against-{revision}",
        rival=row.ours,
        rival_name=f"ours at {revision}",
        variants=row.variants[:0],
        target=1.0,
        stretch=None,
        python="own",
    )


def _run(plan: Plan, source: Source, other: str | None) -> int:
    """Every row of the plan; returns how many failed. One that fails does not keep the others from running."""
    failed = 0
    for row in plan.rows:
        path = plan.results / f"{row.name}.json"
        if path.is_file() and not plan.again:
            say(f"{row.name}: there already ({path.name}); --again runs it anew")
            continue
        try:
            ratio = measure_row(row, source, Sides(path, plan.repetitions, other))["ratio"]
        except RuntimeError as error:
            failed += 1
            warn(f"{row.name} failed: {error}")
            continue
        say(f"{row.name}: {ratio['median']:.2f} x {row.rival_name} [{ratio['min']:.2f}, {ratio['max']:.2f}]")
    if plan.growth:
        speed_growth.run(source, plan.results, again=plan.again)
    return failed


def _data() -> Path:
    """Where the shared data lie."""
    folder = Path(os.environ.get("TUTELAGE_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "gsm8k").is_dir():
        raise SystemExit(f"speed: no gsm8k/ and hh-rlhf-harmless-test/ in {folder}; set TUTELAGE_DATA")
    return folder


def _parser() -> argparse.ArgumentParser:
    names = [*(row.name for row in ROWS), GROWTH]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, metavar="ROW", help=", ".join(names))
    parser.add_argument("--again", action="store_true", help="run rows anew that are there")
    parser.add_argument("--report", action="store_true", help="run nothing, write the page")
    parser.add_argument("--against", metavar="REV", help="ours now against ours at a git revision")
    parser.add_argument("--smoke", action="store_true", help="on a tiny model, into a folder that is thrown away")
    parser.add_argument("--repetitions", type=int, default=3, help="units of each side")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of every side")
    parser.add_argument("--results", type=Path, help="where rows (and then the page) are kept")
    return parser


if __name__ == "__main__":
    sys.exit(main())
