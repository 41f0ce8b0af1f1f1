"""The figures of docs/performance.md: growth of time and memory, and each row beside its floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0")


def draw_growth(found: Mapping[str, Any], path: Path) -> None:
    """A column for each size that is varied: seconds above, peak memory below."""
    axes = {name: points for name, points in found["axes"].items() if len(points) > 1}
    figure = Figure(figsize=(2.6 * len(axes), 4.2), layout="constrained")
    FigureCanvasSVG(figure)
    for column, (name, points) in enumerate(axes.items()):
        sizes = sorted(map(int, points))
        for line, (key, factor, unit) in enumerate((("seconds", 1.0, "seconds"), ("peak_mb", 1e-3, "GB"))):
            plot = figure.add_subplot(2, len(axes), line * len(axes) + column + 1)
            plot.plot(
                sizes, [points[str(size)][key] * factor for size in sizes], "o-", color=COLOURS[line], markersize=4
            )
            plot.set_ylim(bottom=0)
            plot.set_xlim(left=0)
            plot.tick_params(labelsize=7)
            if column == 0:
                plot.set_ylabel(unit, fontsize=8)
            plot.set_xlabel(name.replace("_", " "), fontsize=8)
    _save(figure, path)


def draw_phases(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Three bars a row: the floor by phase, our time, the rival's."""
    figure = Figure(figsize=(7.5, 0.9 * len(results) + 0.8), layout="constrained")
    FigureCanvasSVG(figure)
    plot = figure.add_subplot()
    names = list(dict.fromkeys(name for one in results for name in one["repetitions"][-1]["ours"]["floor"]))
    for at, result in enumerate(results):
        begin = 0.0
        for name, seconds in result["repetitions"][-1]["ours"]["floor"].items():
            colour = COLOURS[names.index(name) % len(COLOURS)]
            plot.barh(at - 0.27, seconds, 0.24, left=begin, color=colour, alpha=0.6)
            begin += seconds
        for offset, side, colour in ((0.0, "ours", "#333333"), (0.27, "rival", "#bbbbbb")):
            plot.barh(at + offset, result["seconds"][side], 0.24, color=colour)
            plot.text(result["seconds"][side], at + offset, f" {side}", va="center", fontsize=7)
        plot.text(begin, at - 0.27, " floor", va="center", fontsize=7)
    plot.set_yticks(range(len(results)), [result["row"] for result in results], fontsize=8)
    plot.invert_yaxis()
    plot.set_xlabel("seconds", fontsize=8)
    plot.tick_params(axis="x", labelsize=7)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    """Without a date inside: the same numbers give the same file."""
    figure.savefig(path, metadata={"Date": None})
