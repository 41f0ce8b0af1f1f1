"""The two ends of a measurement: a worker process that stays alive, and the driver that asks it for one unit at a time.

A side (ours, or a rival) is a function `side(work, channel)`: it loads, says `ready`, and then for every unit waits, works,
says `done` and reports figures. The clock and the memory are read here, alike for every side. Standard library only: a
rival may live in another environment than ours.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

from speed_work import Work

HERE = Path(__file__).resolve().parent


class Stop(Exception):  # noqa: N818 (nothing went wrong: no more units are wanted)
    """Leaves a side's loop, through whatever trainer it runs in."""


class WorkerError(RuntimeError):
    """A worker ended without an answer; the end of its log says why."""


class Channel(Protocol):
    """What a side talks to."""

    def ready(self, **facts: Any) -> None:
        """Everything is loaded; `facts` go into the result."""

    def wait(self) -> None:
        """Until the next unit is wanted; the clock starts. Raises Stop when there is none."""

    def done(self) -> None:
        """The unit is over: the clock stops."""

    def report(self, **figures: Any) -> None:
        """Tell the unit's figures."""


Side = Callable[[Work, Channel], None]


class _Clocked:
    """Seconds of a unit, and the most memory since loading."""

    _began = _seconds = _peak = 0.0

    def _start(self) -> None:
        self._began = time.perf_counter()

    def done(self) -> None:
        """See `Channel`."""
        self._seconds = time.perf_counter() - self._began
        self._peak = peak_mb()

    def _measured(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        return {"seconds": self._seconds, "peak_mb": self._peak, **figures}


class Pipe(_Clocked):
    """A worker's end: lines of JSON out, a line in for each unit."""

    def __init__(self, asked: TextIO, told: TextIO) -> None:
        self._asked, self._told = asked, told

    def ready(self, **facts: Any) -> None:
        """See `Channel`."""
        reset_peak()
        self._tell({"ready": facts, "loaded_mb": resident_mb()})

    def wait(self) -> None:
        """See `Channel`."""
        if self._asked.readline().strip() != "go":
            raise Stop
        self._start()

    def report(self, **figures: Any) -> None:
        """See `Channel`."""
        self._tell(self._measured(figures))

    def _tell(self, what: Mapping[str, Any]) -> None:
        self._told.write(json.dumps(what) + "\n")
        self._told.flush()


@dataclass
class Local(_Clocked):
    """A channel inside one process: `units` of them, and what was said. For tests."""

    units: int
    facts: dict[str, Any] = field(default_factory=dict)
    reports: list[dict[str, Any]] = field(default_factory=list)

    def ready(self, **facts: Any) -> None:
        """See `Channel`."""
        self.facts = facts

    def wait(self) -> None:
        """See `Channel`."""
        if len(self.reports) == self.units:
            raise Stop
        self._start()

    def report(self, **figures: Any) -> None:
        """See `Channel`."""
        self.reports.append(self._measured(figures))

    @staticmethod
    def run(side: Side, work: Work, units: int = 1) -> Local:
        """What `side` says of so many units."""
        channel = Local(units)
        with contextlib.suppress(Stop):
            side(work, channel)
        return channel


class Peer:
    """A side in a process of its own, seen from the driver. Use it in a `with`: it ends with it."""

    def __init__(
        self,
        side: str,
        work: Path,
        *,
        log: Path,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.side, self.log = side, log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._words = [python, str(HERE / "speed_process.py"), side, str(work)]
        self._environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
        self.facts: dict[str, Any] = {}
        self.loaded_mb = 0.0

    def __enter__(self) -> Peer:
        with self.log.open("w") as errors:
            self._process = subprocess.Popen(
                self._words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=self._environment,
            )
        try:
            first = self._hear()
        except BaseException:
            self.__exit__()
            raise
        self.facts, self.loaded_mb = first["ready"], first["loaded_mb"]
        return self

    def unit(self) -> dict[str, Any]:
        """One measured unit."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            tail = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
            raise WorkerError(f"{self.side} ended without an answer; {self.log} ends:\n" + "\n".join(tail))
        return json.loads(line)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def resident_mb() -> float:
    """Memory of this process that is in RAM, in MB (10^6 bytes)."""
    return _status("VmRSS")


def peak_mb() -> float:
    """The most that it was since `reset_peak`, or since the process began where that cannot be reset."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Begin anew to look for the peak: what loading took and gave back is not the workload's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> float:
    path = Path("/proc/self/status")
    if path.is_file():
        found = re.search(rf"{name}:\s+(\d+) kB", path.read_text())
        assert found is not None, name
        return int(found[1]) * 1024 / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def main() -> None:
    """A worker: `speed_process.py MODULE:FUNCTION WORK.json`. What libraries print goes to stderr, the driver's log."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, _, function = sys.argv[1].partition(":")
    side: Side = getattr(importlib.import_module(module), function)
    with contextlib.suppress(Stop):
        side(Work.read(Path(sys.argv[2])), Pipe(sys.stdin, told))


if __name__ == "__main__":
    main()
