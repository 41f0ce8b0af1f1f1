"""How numbers of label quality are said: cells of tables, tiles, traffic lights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tutelage.feedback.annotator_quality import Standing
from tutelage.feedback.judgments import Labels
from tutelage.statistics import Interval


def cell(value: Interval | float | None, digits: int = 2) -> str:
    """A number, or an estimate with its bounds and size; an en dash for what is not defined."""
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    if isinstance(value, Interval):
        if value.estimate != value.estimate:
            return "–"
        return f"{value.estimate:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}], n {value.n}"
    return f"{value:.{digits}f}"


def count_of(number: int, thing: str) -> str:
    """`1 judgment`, `2 judgments`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def names_of(labels: Labels) -> dict[str, str]:
    """What people are called on the pages: names, made different where two are equal."""
    names = {key: person.name or key for key, person in labels.people.items()}
    twice = {name for name in names.values() if list(names.values()).count(name) > 1}
    return {key: f"{name} ({key})" if name in twice else name for key, name in names.items()}


def standing_text(one: Standing | None) -> str:
    """The share of known answers, its light in words, and how many more would tell."""
    if one is None:
        return "–"
    words = {"green": "good", "red": "too low", "amber": f"not told apart from {one.threshold:.0%}: {one.needed} more"}
    return f"{cell(one.share)} ({words[one.light]})"


def tile(label: str, value: str, note: str = "", light: str = "") -> dict[str, Any]:
    """One figure at the top of the page."""
    return {"label": label, "value": value, "note": note, "light": light}


def section(title: str, text: str, svg: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    """One part of the page."""
    return {"title": title, "text": text, "svg": svg, "head": list(head), "rows": [list(row) for row in rows]}
