"""Tests that start processes leave none behind: not after a failure, and not when they are killed themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from processes import output, python, session

FORKS = r"import os, time; os.write(1, b'%d\n' % os.fork()); time.sleep(300)"
"""A process with a child; each prints what fork gave it, the child's number or 0."""
SLEEPS = "import os, time; print(os.getpid(), flush=True); time.sleep(300)"
KILLED = f"""
import subprocess, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from processes import python, session
with session(python("-c", {SLEEPS!r}), stdout=sys.stdout):
    time.sleep(300)
"""


def gone(pid: int) -> bool:
    """Whether a process has ended within ten seconds (one that nobody has waited for yet counts as ended)."""
    for _ in range(1000):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        state = Path(f"/proc/{pid}/stat")
        if state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.01)
    return False


def test_a_failing_test_leaves_no_grandchild() -> None:
    found = []

    def fails() -> None:
        with session(python("-c", FORKS), stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            found.append(max(int(process.stdout.readline()) for _ in range(2)))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert gone(found[0])


@pytest.mark.skipif(sys.platform != "linux", reason="platform: only Linux ends a child with its parent")
def test_a_killed_test_leaves_no_child() -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert Path(f"/proc/{child}").exists()
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert gone(child)


def test_output_is_what_it_says_and_a_failure_is_one() -> None:
    assert output(python("-c", "import sys; print(sys.argv[1:])", "a", "b")) == "['a', 'b']\n"
    with pytest.raises(AssertionError, match="no luck"):
        output(python("-c", "raise SystemExit('no luck')"))
    with pytest.raises(subprocess.TimeoutExpired):
        output(python("-c", "import time; time.sleep(60)"), timeout=0.3)
