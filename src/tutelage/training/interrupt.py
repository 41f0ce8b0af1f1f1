"""Ctrl-C: the first one finishes the step and saves, the second one stops at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NOTICE = b"\nfinishing this step, then saving; press again to stop at once\n"


class Interrupted(Exception):  # noqa: N818  (it reports a wish, not an error)
    """The run was asked (or had) to stop and has saved; `command` is the command line that goes on with it."""

    def __init__(self, command: str) -> None:
        super().__init__(f"stopped and saved; go on with: {command}")
        self.command = command


class Paused(Exception):  # noqa: N818  (it reports a wait, not an error)
    """A step cannot be drawn yet, and nothing of it has happened: the loop saves and stops, to go on later."""


class Interrupt:
    """While open, the first SIGINT or SIGTERM sets `requested` and says so; the next raises KeyboardInterrupt.

    The handlers that were there before come back at the end. Off the main thread, where Python allows no signal handlers,
    it does nothing.

    >>> with Interrupt() as interrupt:
    ...     while not interrupt.requested: ...
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it was not set from Python
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        os.write(2, NOTICE)  # print() may be interrupted in the middle of itself and refuses to be entered again
