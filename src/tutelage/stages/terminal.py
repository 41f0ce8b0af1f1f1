"""A conversation at the terminal: lines in, text out as it grows, and a Ctrl-C that ends an answer but not the program."""

from __future__ import annotations

import signal
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

UNFINISHED = "\ufffd"
"""What decoding shows for a letter whose bytes have not all come yet."""


class Typist:
    """Shows a text that grows at its end; a letter waits until all its bytes are there."""

    def __init__(self) -> None:
        self._shown = ""

    def show(self, text: str, whole: bool = False) -> None:
        """Write what is new; `whole`: nothing more will come."""
        ready = text if whole else text.rstrip(UNFINISHED)
        if ready.startswith(self._shown):
            write(ready[len(self._shown) :])
            self._shown = ready
        elif whole:  # the tokenizer changed what it had said before
            write("\n" + ready)


def edit_lines() -> None:
    """Arrow keys and history while typing, where the system has them."""
    if sys.stdin.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401


def read_line(prompt: str) -> str:
    """A line of the person's, stripped; EOFError at the end. Piped input is echoed, so a log reads like the session."""
    if sys.stdin.isatty():
        line = input(prompt)
    else:
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        write(prompt + line.rstrip("\n") + "\n")
    return line.encode("utf-8", "replace").decode("utf-8").strip()


def write(text: str) -> None:
    """Text on stdout at once. Control characters are not passed on: what a model says must not command the terminal."""
    text = "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else UNFINISHED for c in text)
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C makes the yielded function true (the next stops at once); off the main thread, nothing."""
    pressed: list[int] = []

    def press(number: int, frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: bool(pressed)
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
