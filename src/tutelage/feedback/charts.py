"""Inline SVG for the quality pages: no style, script or colour of its own that a page's theme could not set.

Text takes `currentColor`; marks have classes (`mark`, `band`, `rule`, `good`, `warn`, `bad`) and, where a page has no style for
them, their own readable colours as attributes, which a style sheet overrides and a content security policy allows.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tutelage.statistics import Interval

COLOURS = {"green": "#18794e", "amber": "#b26a00", "red": "#b3261e", "": "#3557c8"}
CLASSES = {"green": "good", "amber": "warn", "red": "bad", "": "mark"}
WIDTH, LEFT, RIGHT, ROW, TOP = 640, 190, 96, 26, 34


@dataclass(frozen=True)
class Bar:
    """A row of a forest plot: an estimate with its interval; `light` colours it."""

    label: str
    interval: Interval | None
    light: str = ""


def forest(
    title: str, rows: Sequence[Bar], *, low: float = 0.0, high: float = 1.0, reference: float | None = None
) -> str:
    """Estimates as points on their intervals, one row each, with the numbers beside; a dashed line at `reference`."""
    height = TOP + ROW * len(rows) + 26
    parts = [_axis(low, high, height)]
    if reference is not None:
        x = _x(reference, low, high)
        parts.append(_line(x, TOP - 8, x, height - 24, 'class="rule" stroke="currentColor" stroke-dasharray="4 4"'))
    for number, row in enumerate(rows):
        parts.append(_bar(row, TOP + ROW * number + ROW / 2, low, high))
    return _svg(title, WIDTH, height, parts)


def heat_map(title: str, names: Sequence[str], values: Sequence[Sequence[float | None]]) -> str:
    """A square of agreement between every two people; empty where they share no items. Values lie in [-1, 1]."""
    cell, left = 46, 150
    size = left + cell * len(names) + 16
    parts = []
    for i, name in enumerate(names):
        parts.append(_text(left - 8, TOP + cell * i + cell / 2 + 4, _short(name, 20), "end"))
        parts.append(_text(left + cell * i + cell / 2, TOP - 10, _short(name, 6), "middle", 10))
        for j, value in enumerate(values[i]):
            if value is None or math.isnan(value):
                continue
            x, y, colour = left + cell * j, TOP + cell * i, COLOURS["" if value >= 0 else "red"]
            parts.append(
                f'<rect class="{CLASSES["" if value >= 0 else "red"]}" x="{x}" y="{y}" width="{cell - 2}" '
                f'height="{cell - 2}" rx="4" fill="{colour}" fill-opacity="{0.08 + 0.5 * min(1.0, abs(value)):.2f}"/>'
            )
            parts.append(_text(x + cell / 2 - 1, y + cell / 2 + 4, f"{value:.2f}", "middle", 12))
    return _svg(title, size, TOP + cell * len(names) + 12, parts)


def sparks(title: str, curves: Sequence[tuple[str, Sequence[float]]], *, low: float = 0.0, high: float = 1.0) -> str:
    """One small curve for each name, all on the same scale, with its last value."""
    row = 44
    parts = []
    for number, (name, values) in enumerate(curves):
        top = TOP + row * number
        span, width = (high - low) or 1.0, WIDTH - LEFT - RIGHT
        points = [
            f"{LEFT + width * i / max(1, len(values) - 1):.1f},{top + 34 - 30 * (min(high, max(low, v)) - low) / span:.1f}"
            for i, v in enumerate(values)
        ]
        parts.append(_line(LEFT, top + 34, WIDTH - RIGHT, top + 34, 'class="rule" stroke="currentColor" opacity="0.2"'))
        curve = (
            f'<polyline class="mark" points="{" ".join(points)}" fill="none" stroke="{COLOURS[""]}" stroke-width="2"/>'
        )
        parts += [curve, _text(LEFT - 10, top + 24, _short(name), "end")]
        if values:
            parts.append(_text(WIDTH - RIGHT + 10, top + 24, f"{values[-1]:.2f}", "start"))
    return _svg(title, WIDTH, TOP + row * len(curves) + 10, parts)


def _bar(row: Bar, y: float, low: float, high: float) -> str:
    label = _text(LEFT - 10, y + 4, _short(row.label), "end")
    if row.interval is None or math.isnan(row.interval.estimate):
        return label + _text(LEFT + 8, y + 4, "nothing to tell it from", "start", 12)
    found, colour, kind = row.interval, COLOURS[row.light], CLASSES[row.light]
    x = _x(found.estimate, low, high)
    left, right = (low if math.isnan(e) else e for e in (found.low, found.high))
    band = _line(_x(left, low, high), y, _x(right, low, high), y, f'class="{kind}" stroke="{colour}" stroke-width="3"')
    point = f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>'
    return label + band + point + _text(WIDTH - RIGHT + 10, y + 4, f"{found.estimate:.2f} (n {found.n})", "start", 12)


def _axis(low: float, high: float, height: float) -> str:
    parts = []
    for step in range(5):
        value = low + (high - low) * step / 4
        x = _x(value, low, high)
        parts.append(_line(x, TOP - 8, x, height - 24, 'class="rule" stroke="currentColor" opacity="0.15"'))
        parts.append(_text(x, height - 8, f"{value:g}", "middle", 11))
    return "".join(parts)


def _x(value: float, low: float, high: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (min(high, max(low, value)) - low) / (high - low)


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _text(x: float, y: float, text: str, anchor: str, size: int = 13) -> str:
    safe = html.escape(text)
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="currentColor">{safe}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, look: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {look}/>'


def _svg(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    safe = html.escape(title)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
        f'role="img" aria-label="{safe}" font-family="inherit"><title>{safe}</title>{"".join(parts)}</svg>'
    )
