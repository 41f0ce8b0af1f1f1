"""What people read: which stream, how often, and an estimate that is right."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tutelage import console
from tutelage.console import Bar, duration, say, stage, track, warn


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_results_go_to_stdout_and_warnings_to_stderr(capsys) -> None:
    say("[bold] `cmd --flag` " + "x" * 200)
    stage("2. Feedback", "Three simulated labellers rank the answers. [They] are not people.")
    warn("disk nearly full")
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "[bold] `cmd --flag` " + "x" * 200  # neither markup nor wrapping
    assert lines[1:3] == ["", "2. Feedback"]
    assert " ".join(line.strip() for line in lines[3:]) == (
        "Three simulated labellers rank the answers. [They] are not people."
    )
    assert err == "warning: disk nearly full\n"


def test_letters_that_the_terminal_lacks_are_replaced(tmp_path: Path, monkeypatch) -> None:
    with (tmp_path / "out").open("w", encoding="ascii") as file:
        monkeypatch.setattr(sys, "stdout", file)
        say("naïve 🙂")
    assert (tmp_path / "out").read_bytes() == b"na?ve ?\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (250, "4 min 10 s"),
        (3599.9, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_estimate_is_the_pace_since_the_first_advance() -> None:
    clock = Clock()
    bar = Bar(14, "training", "step", clock)
    bar.advance(4)  # a resumed run: these four cost nothing now
    assert bar.left is None
    clock.now += 20
    bar.advance(2, loss=0.31234, name="a")
    assert bar.left == pytest.approx(8 * 20 / 2)  # eight to go at ten seconds each
    assert bar.line() == "training: 6/14 steps, 20 s, about 1 min 20 s left, loss 0.312, name a"
    clock.now += 80
    bar.advance(8, loss=0.25)
    assert bar.left == 0
    assert bar.line() == "training: 14/14 steps, 1 min 40 s, loss 0.25, name a"


def test_a_log_gets_a_line_every_ten_seconds_and_fewer_later(capsys) -> None:
    clock = Clock()
    bar = console._PlainBar(100_000, "training", "step", clock)
    bar.advance(0)
    for _ in range(100):
        clock.now += 1
        bar.advance(1)
    early = capsys.readouterr().err.splitlines()
    assert len(early) == 10
    assert early[0] == "training: 10/100000 steps, 10 s, about 27 h 46 min left"
    for _ in range(36_000):
        clock.now += 1
        bar.advance(1)
    later = len(capsys.readouterr().err.splitlines())
    assert 36_000 / 60 <= later < 36_000 / 60 + 60  # about one a minute over ten hours


def test_short_tasks_leave_a_log_alone_and_long_ones_end_with_a_line(capsys, monkeypatch) -> None:
    for seconds, lines in [(3, []), (12, ["sampling: 1/1 answers, 12 s, kept 1"])]:
        clock = Clock()
        monkeypatch.setattr(console, "_PlainBar", lambda *a, clock=clock: _plain(a[0], a[1], a[2], clock))
        with track(1, "sampling", unit="answer") as outer:
            with track(5, "inner") as inner:
                inner.advance(5)
            clock.now += seconds
            outer.advance(1, kept=1)
        assert [line for line in capsys.readouterr().err.splitlines() if "sampling" in line] == lines


_plain = console._PlainBar


def test_a_failure_inside_a_track_is_passed_on(capsys) -> None:
    with pytest.raises(KeyError), track(2, "x"):
        raise KeyError("y")
    assert capsys.readouterr().err == ""


NESTED = """
import sys, time
from tutelage.console import say, track
with track(2, "outer [x]") as outer:
    for _ in range(2):
        with track(3, "inner") as inner:
            for i in range(3):
                time.sleep(0.3)  # bars are redrawn ten times a second
                inner.advance(1, loss=0.5)
        say("result")
        outer.advance(1, reward=1.25)
"""


@pytest.mark.slow
@pytest.mark.parametrize("piped", [False, True])
def test_nested_bars_on_a_terminal(piped: bool) -> None:
    """A real terminal: both bars are drawn, and what is said reaches stdout even when that is a pipe."""
    master, slave = pty.openpty()
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(console.__file__).parents[1]),
        "TERM": "xterm",
        "COLUMNS": "100",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", NESTED], stdout=subprocess.PIPE if piped else slave, stderr=slave, env=environment
    )
    os.close(slave)
    drawn = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:  # Linux says so when the other side has closed
            part = b""
        if not part:
            break
        drawn += part
    out = process.communicate(timeout=200)[0]
    os.close(master)
    screen = drawn.decode()
    assert process.returncode == 0, screen
    for text in ("outer [x]", "inner", "2/3", "loss 0.5", "reward 1.25", "left"):
        assert text in screen
    said = out.decode() if piped else screen
    assert said.count("result") == 2
    assert piped is (out == b"result\nresult\n")
