"""Numbers -> inline SVG in the colours of the page, light or dark; every drawing carries the table of its numbers."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tutelage.evaluation.page import Drawing, inline_svg, number, percent, within

# Drawn in these colours, then named by the page's variables, so that one drawing serves light and dark. The hues are
# Okabe and Ito's for colour-blind readers; line styles differ as well.
SERIES = ("#0072b2", "#d55e00", "#00805d", "#a8467f", "#7a6400", "#5a5ac8")
INK, MUTED, GRID, CARD = "#1d2329", "#59646e", "#dfe3e6", "#fefefe"
VARIABLES: dict[str, str] = dict(
    zip((INK, MUTED, GRID, CARD, *SERIES), ("ink", "muted", "line", "card", "s1", "s2", "s3", "s4", "s5", "s6"))
)
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), "-.", (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))
DOTTED = (0, (2, 2))
MARKERS = ("o", "s", "^", "D", "v", "P")
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": 11, "text.color": INK, "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID, "xtick.color": MUTED, "ytick.color": MUTED, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.8, "axes.axisbelow": True, "lines.linewidth": 2,
    "xtick.major.size": 0, "ytick.major.size": 0, "legend.frameon": False, "legend.fontsize": 10.5, "text.parse_math": False,
}  # fmt: skip
MOST_POINTS, MOST_ROWS, LONGEST_LABEL = 400, 24, 38
STEPS = (1, 2, 2.5, 5, 10)
PATCH = {"facecolor": CARD, "edgecolor": "none", "pad": 1.2}

Row = tuple[str, Mapping[str, Any]]
"""A label and an interval: `estimate`, and `low` and `high` where they are known."""


@dataclass(frozen=True)
class Line:
    """A curve; `y` may hold None or NaN (a gap); `low` and `high` bound its band where they are given."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()


def lines(
    title: str, curves: Sequence[Line], *, x: str = "step", shares: bool = False, reference: float | None = None,
    steps: Sequence[int] = (),
) -> Drawing:  # fmt: skip
    """Curves over `x` with their bands; many points are averaged in runs and the average is drawn over the raw curve.

    `steps` names the points of the first curve where `x` is something else (a path through the checkpoints of a run).
    """
    show = percent if shares else number
    with mpl.rc_context(SETTINGS):
        figure, axes = _canvas(x, show, vertical=True)
        if reference is not None:
            axes.axhline(reference, color=MUTED, linewidth=1.2, linestyle=DOTTED)
        for place, curve in enumerate(curves):
            _curve(axes, curve, place)
        above = 7 if len(curves) == 1 else -14
        for step, at, value in _spread([p for p in zip(steps, curves[0].x, curves[0].y) if p[2] is not None], most=7):
            axes.annotate(f"{step}", (at, value), (0, above), textcoords="offset points", ha="center", fontsize=9.5,
                          color=MUTED)  # fmt: skip
        if len(curves) > 1:
            _legend(figure)
        head = (x, *(curve.label + (" [95 % interval]" if curve.low else "") for curve in curves))
        if steps:
            cells = [[within(point, show) for _, point in _points(curve)] for curve in curves]
            names = [f"{number(at)} (step {step})" for step, at in zip(steps, curves[0].x, strict=True)]
            return _finish(figure, title, head, _spread(list(zip(names, *cells, strict=True))))
        columns = [{at: within(point, show) for at, point in _points(curve)} for curve in curves]
        places = sorted({at for column in columns for at in column})
        rows = [(number(at), *(column.get(at, "–") for column in columns)) for at in _spread(places)]
        return _finish(figure, title, head, rows)


def intervals(title: str, rows: Sequence[Row], *, reference: float | None = 0.5) -> Drawing:
    """Shares as dots with whiskers, one a line, each under its own words, beside a reference (50 %: a coin)."""
    ends = [v for _, r in rows for v in (r.get("estimate"), r.get("low"), r.get("high"), reference) if v is not None]
    with mpl.rc_context(SETTINGS):
        figure, axes = _canvas("", percent, height=0.7 + 0.52 * len(rows))
        for place, (label, row) in enumerate(rows):
            colour = SERIES[place % len(SERIES)]
            _whisker(axes, row, place, color=colour, linewidth=3)
            if row.get("estimate") is not None:
                axes.plot([row["estimate"]], [place], MARKERS[place % len(MARKERS)], color=colour, markersize=8)
            axes.text(0.01, place - 0.28, f"{_short(label)}: {within(row)}", transform=axes.get_yaxis_transform(),
                      bbox=PATCH, fontsize=10.5)  # fmt: skip
        _mark(axes, reference, "a coin", "left")
        low, high = min(ends, default=0.0), max(ends, default=1.0)
        axes.set(xlim=(max(-0.01, low - 0.06), min(1.01, high + 0.06)), ylim=(len(rows) - 0.6, -0.75), yticks=[])
        axes.spines["left"].set_visible(False)
        return _finish(figure, title, ("", "share [95 % interval]"), [(label, within(row)) for label, row in rows])


def bars(
    title: str, rows: Sequence[Row], *, reference: float | None = None, ceiling: float | None = None, shares: bool = True
) -> Drawing:  # fmt: skip
    """Horizontal bars with their values written out; whiskers where bounds are known; lines for reference and ceiling."""
    show = percent if shares else number
    values = [row.get("estimate") or 0.0 for _, row in rows]
    with mpl.rc_context(SETTINGS):
        figure, axes = _canvas("", show, height=0.75 + 0.34 * len(rows))
        axes.barh(range(len(rows)), values, height=0.62, color=SERIES[0], alpha=0.85)
        _mark(axes, reference, "a coin", "right")
        _mark(axes, ceiling, "best possible", "left" if (ceiling or 1) < 0.75 else "center")
        for place, (_, row) in enumerate(rows):
            _whisker(axes, row, place, color=INK, linewidth=1.8)
            end = max(values[place], row.get("high") or 0.0)
            axes.annotate(show(row.get("estimate")), (end, place), (6, 0), textcoords="offset points", va="center",
                          bbox=PATCH, zorder=5)  # fmt: skip
        axes.set_yticks(range(len(rows)), [_short(label) for label, _ in rows], color=INK)
        axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(0, 1.12 if shares else 1.15 * max(values, default=0) or 1))
        axes.grid(False, axis="y")
        head = ("", "share [95 % interval]" if shares else "count")
        return _finish(figure, title, head, [(label, within(row, show)) for label, row in rows])


def reliability(title: str, bins: Sequence[Mapping[str, Any]]) -> Drawing:
    """Predicted probability against the share observed (`estimate`): on the diagonal a prediction means what it says."""
    with mpl.rc_context(SETTINGS):
        figure, axes = _canvas("predicted", percent, vertical=True)
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2, linestyle=DOTTED)
        bounded = [b for b in bins if b.get("low") is not None and b.get("high") is not None]
        at, low, high = ([b[key] for b in bounded] for key in ("predicted", "low", "high"))
        axes.vlines(at, low, high, color=SERIES[0], linewidth=1.6, alpha=0.6)
        axes.plot([b["predicted"] for b in bins], [b["estimate"] for b in bins], "o", color=SERIES[0], markersize=6)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="observed")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(round(value, 6))))
        rows = [(percent(b["predicted"]), within(b), number(b.get("n"))) for b in bins]
        return _finish(figure, title, ("predicted", "observed [95 % interval]", "comparisons"), rows)


def histogram(title: str, values: Sequence[float], *, x: str) -> Drawing:
    """How often each size occurs, in at most twelve equal bins."""
    finite = [value for value in values if math.isfinite(value)]
    with mpl.rc_context(SETTINGS):
        figure, axes = _canvas(x, number, vertical=True)
        bins = min(12, max(1, len(set(finite))))
        counts, edges, _ = axes.hist(finite, bins=bins, color=SERIES[0], alpha=0.85, rwidth=0.94)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        rows = [(f"{number(a)} to {number(b)}", number(float(n))) for (a, b), n in zip(pairwise(edges), counts)]  # type: ignore[arg-type]
        return _finish(figure, title, (x, "count"), rows)


def stacked(title: str, parts: Sequence[tuple[str, float]], *, unit: str = "") -> Drawing:
    """One bar cut into the shares of a total, each named in the legend with its size."""
    total = sum(value for _, value in parts) or 1.0
    with mpl.rc_context(SETTINGS):
        figure, axes = _canvas("", percent, height=0.75 + 0.24 * len(parts))
        left = 0.0
        for place, (label, value) in enumerate(parts):
            share, size = value / total, f"{number(value)} {unit}, " if unit else ""
            text = f"{_short(label)}: {size}{percent(share)}"
            axes.barh(0, share, left=left, color=SERIES[place % len(SERIES)], edgecolor=CARD, linewidth=1.5, label=text)
            left += share
        axes.set(xlim=(0, 1), yticks=[])
        axes.grid(False)
        axes.spines[:].set_visible(False)
        _legend(figure, columns=1)
        rows = [(label, number(value), percent(value / total)) for label, value in parts]
        return _finish(figure, title, ("", unit or "part", "of all"), rows)


def _canvas(x: str, show: Any, *, vertical: bool = False, height: float = 2.9) -> tuple[Figure, Axes]:
    """An empty figure whose value axis speaks as `show` does; `vertical`: the values go up."""
    figure = Figure(figsize=(4.9, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    values, other = (axes.yaxis, "x") if vertical else (axes.xaxis, "y")
    values.set_major_formatter(FuncFormatter(lambda value, _: show(round(value, 9))))
    values.set_major_locator(MaxNLocator(5, steps=STEPS))
    if vertical:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=x == "step", steps=STEPS))
    axes.grid(False, axis=other)  # type: ignore[arg-type]
    return figure, axes


def _curve(axes: Axes, curve: Line, place: int) -> None:
    colour, dash = SERIES[place % len(SERIES)], DASHES[place % len(DASHES)]
    values = [math.nan if v is None else v for v in curve.y]
    marker = MARKERS[place % len(MARKERS)] if len(values) <= 20 else ""
    low, high = ([math.nan if v is None else v for v in bound] for bound in (curve.low, curve.high))
    if low and high:
        axes.fill_between(curve.x, low, high, color=colour, alpha=0.16, linewidth=0)
    if len(values) > 40:
        axes.plot(*_thinned(curve.x, values, MOST_POINTS), color=colour, linewidth=0.9, alpha=0.4)
        axes.plot(*_thinned(curve.x, values, 20), color=colour, linestyle=dash, label=curve.label)
    else:
        axes.plot(curve.x, values, color=colour, linestyle=dash, marker=marker, markersize=5, label=curve.label)


def _thinned(x: Sequence[float], y: Sequence[float], most: int) -> tuple[list[float], list[float]]:
    """Means of equal runs of points, at most `most` of them; a run without a finite value stays a gap."""
    if len(x) <= most:
        return list(x), list(y)
    cuts = [round(i * len(x) / most) for i in range(most + 1)]
    kept = [[v for v in y[a:b] if math.isfinite(v)] for a, b in pairwise(cuts)]
    return [sum(x[a:b]) / (b - a) for a, b in pairwise(cuts)], [sum(v) / len(v) if v else math.nan for v in kept]


def _points(curve: Line) -> list[tuple[float, dict[str, Any]]]:
    bounds = (curve.low or [None] * len(curve.x), curve.high or [None] * len(curve.x))
    return [(x, {"estimate": y, "low": a, "high": b}) for x, y, a, b in zip(curve.x, curve.y, *bounds, strict=True)]


def _spread(items: Sequence[Any], most: int = MOST_ROWS) -> list[Any]:
    """At most `most` of the items, evenly chosen, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _whisker(axes: Axes, row: Mapping[str, Any], place: int, **style: Any) -> None:
    if row.get("low") is not None and row.get("high") is not None:
        axes.plot([row["low"], row["high"]], [place, place], solid_capstyle="round", **style)


def _mark(axes: Axes, value: float | None, label: str, align: Literal["left", "center", "right"]) -> None:
    if value is not None:
        axes.axvline(value, color=MUTED, linewidth=1.4, linestyle=DOTTED)
        axes.text(value, 1.02, f"{label} {percent(value)}", transform=axes.get_xaxis_transform(), ha=align,
                  fontsize=10, color=MUTED)  # fmt: skip


def _short(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"


def _legend(figure: Figure, columns: int = 3) -> None:
    figure.legend(loc="outside upper left", ncols=columns, handlelength=1.8, columnspacing=1.4, borderaxespad=0.2)


def _finish(figure: Figure, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Drawing:
    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": title}):  # the same numbers give the same file, byte for byte
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    last = "; ".join(", ".join(f"{name} {cell}".strip() for name, cell in zip(head, row)) for row in rows[-3:])
    svg = inline_svg(out.getvalue(), f"{title}. {last}", VARIABLES)
    return Drawing(title, svg, tuple(head), tuple(map(tuple, rows)))
