"""SIGKILL at random moments and before every change to the disk: a whole checkpoint, no step twice, none missing."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from processes import output, python
from tutelage.training import checkpoint

SAVES = """
import os, random, signal, sys, time, torch
from pathlib import Path
from tutelage.training import checkpoint
from tutelage.training.checkpoint import Checkpoints

PARENT = os.getpid()

def content(step):
    return {"policy": {"w": torch.full((500,), float(step))}, "optimizer": {"m": torch.arange(300) + step}}

def child(folder, report, kill_at=None):
    if kill_at is not None:  # die before the k-th change to the disk
        calls = [0]
        def deadly(function):
            def wrapped(*args, **kw):
                calls[0] += 1
                if calls[0] == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kw)
            return wrapped
        for where, name in [(os, "fsync"), (os, "rename"), (os, "mkdir"), (os, "rmdir"), (os, "unlink")]:
            setattr(where, name, deadly(getattr(where, name)))
    saved = Checkpoints(folder).latest()
    for step in range(saved.step + 1 if saved else 1, 10**9 if kill_at is None else saved.step + 4):
        if os.getppid() != PARENT:  # the script was killed: nobody is left to end this loop
            os._exit(1)
        Checkpoints(folder).save(step, content(step), {"step": step})
        os.write(report, step.to_bytes(8, "big"))
    os._exit(0)

def one(folder, kill_at=None, delay=None):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        child(folder, write, kill_at)
    os.close(write)
    if delay is not None:
        first = os.read(read, 8)
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    told = b"" if delay is None else first
    while part := os.read(read, 1 << 16):
        told += part
    os.close(read)
    saved = Checkpoints(folder).latest()
    done = int.from_bytes(told[-8:], "big")
    assert saved is not None and saved.step >= done, (saved, done)
    for group, tensors in content(saved.step).items():
        for name, value in tensors.items():
            assert torch.equal(saved.tensors(group)[name], value), (saved.step, group)
    assert saved.info == {"step": saved.step}
    for path in folder.glob("step-*"):  # a half-deleted old one must not be seen either
        checkpoint._read(path)
    return os.WIFSIGNALED(status), [p.name for p in folder.iterdir()]

folder, rng = Path(sys.argv[1]), random.Random(0)
seen, kills = set(), 0
for _ in range(25):
    killed, names = one(folder, delay=rng.uniform(0, 0.03))
    assert killed
    seen.add(any(n.startswith(".saving") for n in names))
assert seen == {True} or seen == {True, False}, "no kill fell inside save()"
for kill_at in range(1, 1000):
    killed, _ = one(folder, kill_at=kill_at)
    kills += killed
    if not killed:
        break
print("systematic kills", kills)
again = Checkpoints(folder, keep=1)  # the same step again: the old version must never be the only one and gone
last = again.latest().step
again.save(last, content(last), {"step": last})
print(sorted(p.name for p in folder.iterdir()) == [f"step-{last:06d}"])
"""

LOGS = """
import os, random, signal, sys, time, torch
from pathlib import Path
from tutelage.training.run import Run

PARENT = os.getpid()

def child(folder):
    run = Run.open(folder, {"steps": 10**6, "resume": True}, "rl", resume=True)
    saved = run.checkpoints.latest()
    step = saved.step if saved else 0
    run.truncate(step)
    while os.getppid() == PARENT:  # not when the script was killed: nobody is left to end this loop
        run.sample(step, [{"text": "x" * 3000, "row": i} for i in range(3)])
        run.log(step, {"reward/mean": step / 2, "filler": "0" and 1})
        step += 1
        if step % 2 == 0:
            run.checkpoints.save(step, {"p": {"w": torch.full((9,), float(step))}}, {})
    os._exit(1)

folder, rng, reached = Path(sys.argv[1]), random.Random(1), []
def newest():
    return max((path.name for path in folder.glob("checkpoints/step-*")), default="")

for number in range(12):
    before = newest()
    pid = os.fork()
    if pid == 0:
        child(folder)
    while number % 2 and newest() == before:  # every other time not before it has got on, however busy the machine is
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.15))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    run = Run.open(folder, {"steps": 10**6, "resume": True}, "rl", resume=True)
    saved = run.checkpoints.latest()
    reached.append(saved.step if saved else 0)
    run.truncate(reached[-1])
print(*reached)
"""


def _output(script: str, folder: Path) -> str:
    """What a script prints that forks children and kills them (in a process of its own: pytest has threads)."""
    environment = {**os.environ, "PYTHONPATH": str(Path(checkpoint.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    return output(python("-c", script, str(folder)), env=environment)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_sigkill_inside_save_always_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """25 kills at random moments of a process that only saves, then one before every single change to the disk."""
    first, second = _output(SAVES, tmp_path).splitlines()
    assert int(first.split()[-1]) >= 20
    assert second == "True"


@pytest.mark.slow
def test_sigkill_at_any_moment_leaves_no_step_twice_and_none_missing(tmp_path: Path) -> None:
    reached = [int(word) for word in _output(LOGS, tmp_path / "run").splitlines()[-1].split()]
    assert reached == sorted(reached)
    assert reached[-1] > 4, "the kills left no time for anything"
    assert [row["step"] for row in _rows(tmp_path / "run" / "metrics.jsonl")] == list(range(reached[-1]))
    assert [(row["step"], row["row"]) for row in _rows(tmp_path / "run" / "samples.jsonl")] == [
        (step, i) for step in range(reached[-1]) for i in range(3)
    ]
