"""A killable child process that calls one function: deadline, memory limit, and a fresh child after a kill.

The child is a new interpreter without torch, in a session of its own (Ctrl-C reaches only the parent). Arguments go to it as
pickles; what comes back is JSON, so nothing that untrusted code returns is ever unpickled.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pickle
import signal
import subprocess
import sys
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, Pipe
from typing import Any

from tutelage.rewards.base import plain

START_SECONDS = 120.0
"""How long a child may take to import what it calls."""
GRACE_SECONDS = 1.0
START = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from tutelage.rewards.sandbox import serve; serve()"


class ChildError(Exception):
    """A call that gave no value; the message is a clause that goes behind the function's name."""


class ChildRaisedError(ChildError):
    """The function raised."""


class ChildHungError(ChildError):
    """The deadline passed; the child is dead."""


class ChildDiedError(ChildError):
    """The child ended by itself, such as by a crash or the kernel's out-of-memory killer."""


@dataclass
class Child:
    """Calls `target` ("package.module:function") elsewhere. Starts at the first call, and again after a kill. Not for threads."""

    target: str
    deadline: float
    """Seconds a call may take."""
    cpu_seconds: float | None = None
    """Processor time a call may take, or no limit but the deadline."""
    memory: int | None = None
    """Bytes of address space, or no limit."""
    keywords: Mapping[str, Any] = field(default_factory=dict)
    """Given to the function with every call."""
    here: bool = False
    """Whether the current directory is searched for the module first, as `python` does."""
    pid: int | None = None
    """Of the running child; it leads a session and a process group of that number."""
    _connection: Connection | None = None
    _end: Callable[[], Any] | None = None

    def call(self, *arguments: Any) -> Any:
        """The function's value (see `base.plain`); raises a ChildError that says what happened instead."""
        connection = self.start()
        try:
            with suppress(BrokenPipeError):  # a dead child: the reply says so
                connection.send_bytes(pickle.dumps(arguments))
            return self._reply(connection, self.deadline)
        except ChildRaisedError:
            raise
        except BaseException:  # hung, died or interrupted: a late reply must not answer the next call
            self.kill()
            raise

    def start(self) -> Connection:
        """The running child's pipe. Raises ChildRaisedError where the target cannot be imported or does not take its keywords."""
        if self._connection is not None:
            return self._connection
        ours, theirs = Pipe()
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", START, json.dumps(self._path()), self._settings(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=2,
            start_new_session=True,
        )
        theirs.close()
        self.pid, self._connection, self._end = process.pid, ours, weakref.finalize(self, _end, process, ours)
        try:
            self._reply(ours, START_SECONDS)
        except BaseException:
            self.kill()
            raise
        return ours

    def kill(self) -> None:
        """Ends the child and all it started."""
        end, self.pid, self._connection, self._end = self._end, None, None, None
        if end is not None:
            end()

    def _path(self) -> list[str]:
        return [os.getcwd(), *sys.path] if self.here else list(sys.path)

    def _settings(self, pipe: int) -> str:
        limits = {"deadline": self.deadline, "cpu_seconds": self.cpu_seconds or 0.0, "memory": self.memory}
        return json.dumps({"target": self.target, "keywords": dict(self.keywords), "pipe": pipe, **limits})

    def _reply(self, connection: Connection, seconds: float) -> Any:
        if not connection.poll(seconds):
            raise ChildHungError(f"did not answer within {seconds:g} s")
        try:
            reply = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            raise ChildDiedError("ended its process (a crash, an exit or too little memory)") from None
        if "raised" in reply:
            raise ChildRaisedError(f"raised {reply['raised']}")
        return reply["value"]


def _end(process: subprocess.Popen[bytes], connection: Connection) -> None:
    """Kill the child's whole session. Nothing it holds is worth waiting for: every reply has been read."""
    connection.close()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def serve() -> None:
    """The child's life: import the target, then answer calls until the pipe closes."""
    settings = json.loads(sys.argv[2])
    connection = Connection(settings["pipe"])
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what is printed must survive the kill
    if settings["memory"]:
        _limit_memory(settings["memory"])
    try:
        function = _find(settings["target"], settings["keywords"])
    except Exception as error:  # whatever the user's module raises, the parent says it
        _send(connection, {"raised": _describe(error)})
        return
    _send(connection, {"value": True})
    with suppress(EOFError, OSError):  # the parent is gone
        while True:
            arguments = pickle.loads(connection.recv_bytes())
            _send(connection, _answer(function, arguments, settings["deadline"], settings["cpu_seconds"]))


def _find(target: str, keywords: Mapping[str, Any]) -> Callable[..., Any]:
    module, _, name = target.partition(":")
    function: Any = importlib.import_module(module)
    for part in name.split("."):
        function = getattr(function, part)
    if not callable(function):
        raise TypeError(f"{target} is a {type(function).__name__}, not a function")
    if keywords:
        inspect.signature(function).bind_partial(**keywords)
    return partial(function, **keywords)


def _answer(
    function: Callable[..., Any], arguments: Sequence[Any], deadline: float, cpu_seconds: float
) -> dict[str, Any]:
    # The kernel's alarms end this process without its interpreter's help, and where the parent was killed and cannot
    _alarms(deadline + GRACE_SECONDS, cpu_seconds)
    try:
        return {"value": plain(function(*arguments))}
    except (Exception, SystemExit) as error:
        return {"raised": _describe(error)}
    finally:
        _alarms(0.0, 0.0)


def _alarms(seconds: float, cpu_seconds: float) -> None:
    """Die after `seconds`, or after `cpu_seconds` of processor time; 0 is never."""
    for number, timer, limit in (
        (signal.SIGALRM, signal.ITIMER_REAL, seconds),
        (signal.SIGPROF, signal.ITIMER_PROF, cpu_seconds),
    ):
        signal.signal(number, signal.SIG_DFL)
        signal.setitimer(timer, limit)


def _describe(error: BaseException) -> str:
    """`ZeroDivisionError: division by zero (rewards.py:12)`; the place is the innermost line outside this file."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__ and "importlib" not in f.filename
    ]
    place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {str(error)[:300]}{place}"


def _send(connection: Connection, reply: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(reply).encode())


def _limit_memory(size: int) -> None:
    import resource

    with suppress(ValueError, OSError):  # macOS refuses; the deadline still holds
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
