"""The first Ctrl-C asks, the second stops, and afterwards everything is as before."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tutelage.training import interrupt as module
from tutelage.training.interrupt import Interrupt, Interrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_second_stops(number: signal.Signals, capfd) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interrupt() as interrupt:
        assert not interrupt.requested
        signal.raise_signal(number)
        assert interrupt.requested
        assert "finishing this step, then saving; press again to stop at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_off_the_main_thread_it_does_nothing() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with Interrupt() as interrupt:
            seen.extend([signal.getsignal(signal.SIGINT) is before, interrupt.requested])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True, False]


def test_the_error_carries_the_command() -> None:
    error = Interrupted("tutelage rl runs/a/config.yaml --out runs/a --resume")
    assert error.command == "tutelage rl runs/a/config.yaml --out runs/a --resume"
    assert error.command in str(error)


def test_a_process_finishes_its_step_and_leaves_by_itself() -> None:
    script = """
import time
from tutelage.training.interrupt import Interrupt
with Interrupt() as interrupt:
    print("ready", flush=True)
    for step in range(10**6):
        time.sleep(0.01)
        if interrupt.requested:
            break
print("saved", flush=True)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=200)
    assert (out, process.returncode) == ("saved\n", 0)
    assert "finishing this step" in err
