"""The rows of the speed table -> docs/performance.md and its figures: target, measured, met, and everything that was tried."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speed_figures import draw_growth, draw_phases
from speed_growth import AXES, straightness
from speed_rows import ROWS, Row

NEAR = 0.85
"""A measured value of at least this share of its target is a small miss."""
Result = Mapping[str, Any]
TEXT = Path(__file__).with_name("speed_page.md")


def write_report(results: Path, page: Path) -> None:
    """The page of the rows that are there; the others are named as not run."""
    found = {row.name: json.loads(path.read_text()) for row in ROWS if (path := results / f"{row.name}.json").is_file()}
    grown = json.loads(path.read_text()) if (path := results / "growth.json").is_file() else None
    others = [json.loads(path.read_text()) for path in sorted(results.glob("*-against-*.json"))]
    missing = [row.name for row in ROWS if row.name not in found] + ["growth"] * (grown is None)
    levers = [found.pop(row.name) for row in ROWS if row.alone and row.name in found]
    figures = page.with_suffix("")
    figures.mkdir(parents=True, exist_ok=True)
    if not found:
        page.write_text(_filled({}), encoding="utf-8")
        return
    parts = {
        "machine": machine(list(found.values())),
        "table": table(found),
        "missing": f"Not run yet: {', '.join(missing)}.\n" if missing else "Every row has been run.\n",
        "memory": memory(found),
        "agreement": agreement(list(found.values())),
        "tried": tried(list(found.values())),
        "growth": growth(grown, figures) if grown else "Not run yet.\n",
        "phases": phases(list(found.values()), figures),
        "against": against([*levers, *others]),
    }
    page.write_text(_filled(parts), encoding="utf-8")


def _filled(parts: Mapping[str, str]) -> str:
    """The page with its parts in their places; a part that is absent has not been run."""
    return re.sub(r"<!-- (\w+) -->\n", lambda place: parts.get(place[1], "Not run yet.\n"), TEXT.read_text("utf-8"))


def verdict(measured: float, target: float, *, at_most: bool = False) -> str:
    """`met`, or by how much it is missed."""
    share = target / measured if at_most else measured / target
    if share >= 1:
        return "met"
    return f"missed by {1 - share:.0%}" + ("" if share >= NEAR else " (more than 15 %)")


def table(found: Mapping[str, Result]) -> str:
    """One line for each target."""
    lines = ["| row | against | ours | rival | ratio [range] | target | |", "|---|---|---|---|---|---|---|"]
    for row in ROWS:
        if row.name in found:
            lines += _lines(row, found[row.name])
    return "\n".join(lines) + "\n"


def _lines(row: Row, result: Result) -> list[str]:
    ours, rival = result["seconds"]["ours"], result["seconds"]["rival"]
    ratio = result["ratio"]
    name = f"{result['rival']['name']} {result['rival']['version']}"
    times = f"{ours:.1f} s | {rival:.1f} s | **{ratio['median']:.2f}** [{ratio['min']:.2f}, {ratio['max']:.2f}]"
    aim = f">= {row.target:g}" + (f" (stretch {row.stretch:g})" if row.stretch else "")
    lines = [f"| {row.title} | {name} | {times} | {aim} | {verdict(ratio['median'], row.target)} |"]
    if row.limit and "fraction_of_limit" in result:
        share = result["fraction_of_limit"]
        floor = sum(result["repetitions"][-1]["ours"]["floor"].values())
        cells = f"{ours:.1f} s | {floor:.1f} s | **{share:.0%}** | >= {row.limit:.0%} | {verdict(share, row.limit)}"
        lines.append(f"| the same, as a share of the limit | the floor | {cells} |")
    if row.limit and "fraction_of_unit" in result:
        last = result["repetitions"][-1]["ours"]
        floor, rate = sum(last["floor_of_unit"].values()), last["unit_flops"] / 1e9
        cells = f"{ours:.1f} s | {floor:.1f} s | {result['fraction_of_unit']:.0%} | |"
        lines.append(f"| the same, where the matrix unit's {rate:.0f} GFLOP/s are the limit | the floor | {cells} |")
    return lines


def memory(found: Mapping[str, Result]) -> str:
    """Peaks of both processes, for every row."""
    lines = ["| row | ours | rival | ours / rival | target | |", "|---|---|---|---|---|---|"]
    for row in ROWS:
        if row.name in found:
            ours, rival = (found[row.name]["peak_mb"][side] for side in ("ours", "rival"))
            aim = f"<= {row.memory:g} | {verdict(ours / rival, row.memory, at_most=True)}" if row.memory else " | "
            lines.append(f"| {row.name} | {ours:,.0f} MB | {rival:,.0f} MB | {ours / rival:.2f} | {aim} |")
    return "\n".join(lines) + "\n"


def agreement(results: Sequence[Result]) -> str:
    """What both sides got, and how far apart it may be."""
    lines = ["| row | figure | ours | rival | may differ by |", "|---|---|---|---|---|"]
    for result in results:
        for name, pair in result["agreement"].items():
            cells = f"{pair['ours']:.6g} | {pair['rival']:.6g} | {pair['allowed']:.1g}"
            lines.append(f"| {result['row']} | {name.replace('_', ' ')} | {cells} |")
    return "\n".join(lines) + "\n"


def tried(results: Sequence[Result]) -> str:
    """Every setting of the rivals, with its time; the chosen one in bold."""
    lines = ["| row | settings | seconds | peak | |", "|---|---|---|---|---|"]
    for result in results:
        rival = result["rival"]
        for one in rival["tried"]:
            chosen = (one["settings"], one["environment"]) == (rival["settings"], rival["environment"])
            lines.append(_try_line(result["row"], one, "**taken**" if chosen else "trial"))
        for one in rival["listed"]:
            times = result["seconds"]["ours"]
            lines.append(
                _try_line(result["row"], one, f"whole unit; {one['why']}: {one['seconds'] / times:.2f} x ours")
            )
    return "\n".join(lines) + "\n"


def _try_line(row: str, one: Mapping[str, Any], remark: str) -> str:
    said = {**one["settings"], **one["environment"]}
    settings = ", ".join(f"{name} {value}" for name, value in said.items()) or "as they come"
    if "failed" in one:
        return f"| {row} | {settings} | - | - | does not run: {one['failed'][:120].replace('|', '/')} |"
    return f"| {row} | {settings} | {one['seconds']:.1f} | {one['peak_mb']:,.0f} MB | {remark} |"


def machine(results: Sequence[Result]) -> str:
    """What the rows were measured on; rows that were measured elsewhere are named."""
    lines = []
    for result in results:
        if "machine" not in result:
            continue
        it = result["machine"]
        line = (
            f"{it['name']}, {result['threads']} threads, {it['memory'] / 1e9:.0f} GB, {it['dtype']}, "
            f"PyTorch {result['facts']['ours']['environment']['packages']['torch']}"
        )
        measured = f"F {it['flops'] / 1e9:.0f} GFLOP/s, BW {it['bandwidth'] / 1e9:.1f} GB/s"
        lines.append(f"| {result['row']} | {line} | {measured} | {result['commit']} | `{result['command']}` |")
    head = ["| row | machine | best F and BW of the run | commit | command |", "|---|---|---|---|---|"]
    return "\n".join([*head, *lines]) + "\n"


def growth(found: Mapping[str, Any], figures: Path) -> str:
    """The figure, and how straight each line is."""
    lines = ["| varied | from, to | seconds | peak memory | farthest from a straight line |", "|---|---|---|---|---|"]
    for axis in AXES:
        points = sorted(((int(size), point) for size, point in found["axes"].get(axis, {}).items()), key=lambda p: p[0])
        if len(points) < 2:
            continue
        sizes, seconds = [size for size, _ in points], [point["seconds"] for _, point in points]
        peaks = [point["peak_mb"] for _, point in points]
        cells = f"{seconds[0]:.2f} to {seconds[-1]:.2f} | {peaks[0]:,.0f} to {peaks[-1]:,.0f} MB"
        bent = straightness(sizes, seconds)
        lines.append(
            f"| {axis.replace('_', ' ')} | {sizes[0]}, {sizes[-1]} | {cells} | {bent:.1%} of the largest time |"
        )
    draw_growth(found, figures / "growth.svg")
    return "\n".join(lines) + f"\n\n![Time and memory of a GRPO step]({figures.name}/growth.svg)\n"


def phases(results: Sequence[Result], figures: Path) -> str:
    """Where our time goes, beside the floor of each phase."""
    kept = [result for result in results if result["repetitions"][-1]["ours"].get("floor")]
    if not kept:
        return ""
    draw_phases(kept, figures / "phases.svg")
    return f"![Seconds of each row beside its floor]({figures.name}/phases.svg)\n"


def against(results: Sequence[Result]) -> str:
    """One lever against the same without it, and ours against ours at earlier revisions."""
    if not results:
        return "Not run yet.\n"
    lines = ["| row | against | that | this | ratio [range] |", "|---|---|---|---|---|"]
    for result in results:
        ratio, seconds = result["ratio"], result["seconds"]
        cells = f"{seconds['rival']:.1f} s | {seconds['ours']:.1f} s"
        lines.append(
            f"| {result['row']} | {result['rival']['name']} | {cells} | {ratio['median']:.2f} [{ratio['min']:.2f}, {ratio['max']:.2f}] |"
        )
    return "\n".join(lines) + "\n"
