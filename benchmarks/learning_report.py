"""The rows of the learning table -> verdicts with paired intervals, one table (JSON and Markdown), curves with bands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from learning_pages import draw, draw_pages, write_sections
from learning_tasks import seeds_of
from tutelage.statistics import Interval, paired_difference

HEAD = """# Learning table

Start, end and control are the mean held-out score over seeds; a difference has its paired 95 % interval, seeds being the
independent units. A row *learns* where both intervals lie above 0. docs/learning.md says what is measured.

| row | command | start | end | permuted | end - start | end - permuted | learns | core-seconds |
|---|---|---|---|---|---|---|---|---|
"""
BEGIN, END = "<!-- table: written by make learn -->", "<!-- end of the table -->"


def write_report(results: Path, known: Sequence[str], pages: Path | None = None) -> list[dict[str, Any]]:
    """table.json, table.md, curves.png and curves/PAGE.svg of the rows in `results`, in the order of `known`.

    With `pages`, the folder of the methods' pages, the section about the curve is written into those that are complete.
    """
    rows = [json.loads(path.read_text()) for name in known if (path := results / f"{name}.json").is_file()]
    table = [verdict(row) for row in rows]
    if not table:
        return []
    missing = [name for name in known if name not in {row["row"] for row in table}]
    (results / "table.json").write_text(json.dumps({"rows": table, "not_run": missing}, indent=1) + "\n")
    lines = [_line(entry) for entry in table]
    left = f"\nNot run yet: {', '.join(missing)}.\n" if missing else ""
    commits = ", ".join(sorted({entry["commit"] for entry in table}))
    (results / "table.md").write_text(
        HEAD
        + "\n".join(lines)
        + f"\n{left}\nCommand: `make learn`; commit: {commits} (+: with changes not committed yet).\n"
    )
    draw(rows, results / "curves.png", columns=min(5, len(rows)))
    draw_pages(rows, results / "curves")
    if pages is not None:
        write_sections(rows, pages)
        write_table(pages.parent / "learning.md", (results / "table.md").read_text())
    return table


def write_table(page: Path, table: str) -> None:
    """The table into the page of the task, between its two marks."""
    begin, rest = page.read_text(encoding="utf-8").split(BEGIN)
    shown = table.partition("\n| row |")
    page.write_text(
        f"{begin}{BEGIN}\n{shown[1].strip()}{shown[2].rstrip()}\n{END}{rest.partition(END)[2]}", encoding="utf-8"
    )


def verdict(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row's curves say. Items of a seed share its training run, so seeds are the clusters of the intervals."""
    start, end, control, clusters = [], [], [], []
    for seed, curves in row["seeds"].items():
        start += curves["trained"][0][1]
        end += curves["trained"][-1][1]
        control += curves["permuted"][-1][1]
        clusters += [seed] * len(curves["trained"][0][1])
    whole = len(row["seeds"]) >= seeds_of(row["settings"]["command"].removeprefix("tutelage "))
    gain, above = paired_difference(end, start, clusters), paired_difference(end, control, clusters)
    return {
        "row": row["row"],
        "command": row["settings"]["command"],
        "reproduce": row["command"],
        "commit": row["commit"],
        "seeds": len(row["seeds"]),
        "whole": whole,
        "start": float(np.mean(start)),
        "end": float(np.mean(end)),
        "permuted": float(np.mean(control)),
        "gain": _plain(gain),
        "above_permuted": _plain(above),
        "learns": bool(whole and gain.low > 0 and above.low > 0),
        "core_seconds": round(sum(curves["seconds"] for curves in row["seeds"].values()), 1),
    }


def _plain(interval: Interval) -> list[float]:
    """[estimate, low, high]; a bound that a single seed leaves open is None."""
    values = (interval.estimate, interval.low, interval.high)
    return [round(v, 4) if np.isfinite(v) else None for v in values]  # type: ignore[misc]


def _line(entry: Mapping[str, Any]) -> str:
    def shown(difference: Sequence[float | None]) -> str:
        middle, low, high = ("open" if v is None else f"{v:+.2f}" for v in difference)
        return f"{middle} [{low}, {high}]"

    cells = [
        entry["row"], f"`{entry['command']}`", f"{entry['start']:.2f}", f"{entry['end']:.2f}", f"{entry['permuted']:.2f}",
        shown(entry["gain"]), shown(entry["above_permuted"]),
        ("yes" if entry["learns"] else "no") + ("" if entry["whole"] else f" ({entry['seeds']} seeds)"),
        f"{entry['core_seconds']:.0f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"
