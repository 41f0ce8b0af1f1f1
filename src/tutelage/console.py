"""What a person at the terminal reads: results on stdout; warnings and progress (bar, elapsed, time left) on stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

QUIET_SECONDS = 10.0
"""A task shorter than this leaves no progress line in a log; a longer one leaves about one line in this time."""


def say(text: str) -> None:
    """One result or remark on stdout, as it is: no markup, no wrapping (commands must survive copy and paste)."""
    _print(text, sys.stdout)


def warn(text: str) -> None:
    """Something that a person should know but that stops nothing, on stderr."""
    _print(f"warning: {text}", sys.stderr)


def stage(title: str, explanation: str) -> None:
    """A headed stage with one or two plain sentences on what happens and why, on stdout."""
    console = Console(file=sys.stdout, highlight=False, soft_wrap=False)
    with console.capture() as text:
        console.print()
        console.print(Text(title, style="bold"))
        console.print(Text(explanation))
    _print(text.get().rstrip("\n"), sys.stdout)


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows of text under their headings on stdout; the first column is words, the others are numbers."""
    drawn = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for number, name in enumerate(head):
        drawn.add_column(escape(name), justify="right" if number else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*map(escape, row))
    console = Console(file=sys.stdout, highlight=False, width=200)
    with console.capture() as text:
        console.print(drawn)
    _print("\n".join(line.rstrip() for line in text.get().splitlines()), sys.stdout)


@contextmanager
def track(total: int, label: str, unit: str = "step") -> Iterator[Bar]:
    """Progress of `total` units, on stderr: a live bar on a terminal, elsewhere one plain line about every ten seconds.

    `bar.advance(n, loss=0.3)` moves it and shows the latest figures. The first call starts the clock of the estimate, so a
    resumed task begins with `bar.advance(done_before)`. Tracks may be nested.

    >>> with track(14, "training") as bar:
    ...     bar.advance(1, loss=0.31)
    """
    kind = _LiveBar if _is_terminal(sys.stderr) else _PlainBar
    bar = kind(total, label, unit)
    bar.open()
    try:
        yield bar
    finally:
        bar.close()
    if bar.elapsed >= QUIET_SECONDS:
        _print(bar.line(), sys.stderr)


def duration(seconds: float) -> str:
    """Seconds as a person says them: `9 s`, `4 min 10 s`, `1 h 05 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Bar:
    """How far a task is, how long it took and how long it will: what every way of showing it has in common."""

    def __init__(self, total: int, label: str, unit: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.label, self.unit = total, label, unit
        self.done = 0
        self.figures: dict[str, Any] = {}
        self._clock, self._began = clock, clock()
        self._first: tuple[float, int] | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the track was opened."""
        return self._clock() - self._began

    @property
    def left(self) -> float | None:
        """Seconds to go at the pace since the first `advance`; None while that is unknown."""
        if self._first is None or self.done <= self._first[1]:
            return None
        since, before = self._first
        pace = (self._clock() - since) / (self.done - before)
        return pace * max(0, self.total - self.done)

    def advance(self, n: int = 1, **figures: Any) -> None:
        """`n` more units are done; `figures` are shown from now on, by name."""
        self.done += n
        self.figures |= figures
        self._first = self._first or (self._clock(), self.done)
        self.show()

    def line(self) -> str:
        """The whole state in one plain line."""
        parts = [f"{self.label}: {self.done}/{self.total} {self.unit}s", duration(self.elapsed)]
        if self.done < self.total:
            parts.append(self.left_text())
        return ", ".join([*parts, *self.figure_texts()])

    def left_text(self) -> str:
        """The estimate in words."""
        return "time left not known yet" if self.left is None else f"about {duration(self.left)} left"

    def figure_texts(self) -> list[str]:
        """`loss 0.312`, three digits each."""
        return [f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in self.figures.items()]

    def open(self) -> None:
        """Begin to show it."""

    def show(self) -> None:
        """Show the present state."""

    def close(self) -> None:
        """Stop showing it."""


class _PlainBar(Bar):
    """Lines for a log file. They thin out to one a minute, so that a run of many hours does not fill it."""

    _shown = 0.0

    def show(self) -> None:
        gap = min(60.0, max(QUIET_SECONDS, self.elapsed / 20))
        if self.elapsed - self._shown >= gap and self.done < self.total:  # the end has its own line
            self._shown = self.elapsed
            _print(self.line(), sys.stderr)


class _LiveBar(Bar):
    """A bar that redraws itself; `rich` draws it above or below others that are open on the same terminal."""

    def open(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
        )
        # redirecting stdout keeps printed lines above the bar, but would carry a piped stdout off to the terminal
        self._progress = Progress(
            *columns, console=_terminal(), transient=True, redirect_stdout=_is_terminal(sys.stdout)
        )
        self._task = self._progress.add_task(escape(self.label), total=self.total, note="")
        self._progress.start()

    def show(self) -> None:
        note = escape(", ".join([self.left_text(), *self.figure_texts()]))
        self._progress.update(self._task, completed=self.done, note=note)

    def close(self) -> None:
        self._progress.stop()


@cache
def _terminal() -> Console:
    """The one console of all live bars: nested bars must share it to know of each other. It looks up stderr at each use."""
    return Console(stderr=True)


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _print(text: str, stream: TextIO) -> None:
    try:
        print(text, file=stream, flush=True)
    except UnicodeEncodeError:  # a model may say what an old terminal cannot write
        encoding = stream.encoding or "ascii"
        print(text.encode(encoding, "replace").decode(encoding), file=stream, flush=True)
