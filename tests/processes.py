"""Child processes of tests that leave nothing behind, whatever happens to the test: a session of their own, ended as a whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

PYTHON = (
    sys.executable,
    "-c",
    """
import ctypes, os, runpy, signal, sys
if sys.platform == "linux":  # the kernel ends this process with the one that started it, even by SIGKILL
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        os._exit(1)  # it was gone before
how, what, sys.argv = sys.argv[2], sys.argv[3], sys.argv[3:]
if how == "-m":
    runpy.run_module(what, run_name="__main__", alter_sys=True)
else:
    exec(compile(what, "<test>", "exec"), {"__name__": "__main__"})
""",
)
"""Python that lives no longer than the test: `[*PYTHON, str(os.getpid()), "-m", MODULE, ...]`, or "-c" and a script."""


def python(how: str, what: str, *arguments: str) -> list[str]:
    """A command line: `how` is -m with a module or -c with a script, as Python's own."""
    return [*PYTHON, str(os.getpid()), how, what, *arguments]


@contextmanager
def session(arguments: Sequence[str], **popen: Any) -> Iterator[subprocess.Popen[str]]:
    """A running command with all its children; at the end of the block, SIGKILL for those that are left."""
    process = subprocess.Popen(arguments, start_new_session=True, text=True, **popen)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def output(arguments: Sequence[str], timeout: float = 900, **popen: Any) -> str:
    """What a command prints; it must end well within `timeout` seconds."""
    with session(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **popen) as process:
        out, err = process.communicate(timeout=timeout)
        assert process.returncode == 0, err[-3000:]
        return out
