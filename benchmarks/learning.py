"""The learning table: every method on one small task, against its start and against the same run with permuted rewards.

make learn                                      every row that is not there yet, then the table and the curves
make learn ARGS="--only grpo dpo"               some rows
make learn ARGS="--only grpo --redo"            a row anew
make learn ARGS="--report"                      the table and the curves of the rows that are there
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from checkout import ROOT, commit
from learning_report import write_report
from learning_rows import ROWS
from learning_tasks import Row, learn
from learning_world import CACHE, Sizes, World
from tutelage.config import to_dict
from tutelage.training.files import write_whole

RESULTS = ROOT / "benchmarks" / "results" / "learning"
PAGES = ROOT / "docs" / "algorithms"
SEEDS = (1, 2, 3, 6, 7, 8)
"""Those of the table, of which a row takes its first few. The settings of learning_rows.py were chosen on seeds 0, 4 and 5."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    known = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=known, default=known, metavar="ROW", help=", ".join(known))
    parser.add_argument("--redo", action="store_true", help="run rows again that are there")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where rows, table and curves are kept")
    given = parser.parse_args(arguments)
    for row in [row for row in ROWS if row.name in given.only and not given.report]:
        run_row(row, given.results, redo=given.redo)
    write_report(given.results, known, PAGES if given.results == RESULTS else None)
    return 0


def run_row(row: Row, results: Path, *, sizes: Sizes | None = None, redo: bool = False) -> dict[str, Any]:
    """A row on every seed, beside its control, seed by seed into `results`/ROW.json; seeds that are there stay."""
    sizes, path = sizes or Sizes(), results / f"{row.name}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() and not redo else described(row, sizes)
    if found["settings"] != described(row, sizes)["settings"]:
        raise ValueError(f"{path}: made with other settings; run it again with --redo")
    for seed in SEEDS[: row.seeds]:
        if str(seed) in found["seeds"]:
            continue
        clock = time.process_time()
        world = World.make(sizes, seed, CACHE)
        curves = {"trained": learn(row, world, permuted=False), "permuted": learn(row, world, permuted=True)}
        seconds = round(time.process_time() - clock, 1)
        found["seeds"][str(seed)] = {"seconds": seconds, **{name: rounded(curve) for name, curve in curves.items()}}
        results.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(found) + "\n")
        ends = ", ".join(f"{name} {sum(curve[-1][1]) / len(curve[-1][1]):.3f}" for name, curve in curves.items())
        print(f"{row.name}, seed {seed}: {ends} ({seconds} s of a core)", flush=True)
    return found


def described(row: Row, sizes: Sizes) -> dict[str, Any]:
    """What a row was made with and by."""
    settings = {
        "command": f"tutelage {row.command}",
        "method": to_dict(row.method),
        "learning_rate": row.rate,
        "steps": max(1, round(row.steps * sizes.steps)),
        "sizes": to_dict(sizes),
        **({"variant": row.variant} if row.variant else {}),
    }
    return {
        "row": row.name,
        "command": f'make learn ARGS="--only {row.name}"',
        "commit": commit(),
        "settings": json.loads(json.dumps(settings)),
        "seeds": {},
    }


def rounded(curve: list[tuple[int, list[float]]]) -> list[tuple[int, list[float]]]:
    """Four digits are more than a seed tells."""
    return [(step, [round(value, 4) for value in scores]) for step, scores in curve]


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
