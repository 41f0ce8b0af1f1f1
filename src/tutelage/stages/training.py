"""From a task to a finished run: what every training command does the same way, and what `check` looks at beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from torch import nn

from tutelage.console import say
from tutelage.data.chat import Chat
from tutelage.data.collate import Collated
from tutelage.data.readers import Loaded, load_sources
from tutelage.data.shapes import Kind
from tutelage.data.stream import Mixture, Stream
from tutelage.evaluation.report import training_report
from tutelage.stages.common import Training, open_run, resume_line
from tutelage.stages.lineage import hand_down, write_lineage
from tutelage.stages.metering import metered, open_meter
from tutelage.training.loop import Draw, Hook, Task, due, train
from tutelage.training.preflight import preflight
from tutelage.training.run import Run
from tutelage.training.work import Passes

T = TypeVar("T")
_followers: list[Callable[[], object]] = []


@runtime_checkable
class Inside(Protocol):
    """A source that writes into the run folder what it samples; without one it can be examined all the same."""

    def within(self, run: Run) -> Draw:
        """The source of an opened run."""
        ...


@dataclass(frozen=True)
class Ready(Generic[T]):
    """A task that could be trained at once, and what it was made from."""

    task: Task
    chat: Chat
    records: Sequence[T]
    collated: Collated[Any] | None = None
    scorers: tuple[nn.Module, ...] = ()
    """The reward models, whose work is part of a step's."""


def run_task(cfg: Training, command: str, ready: Ready[Any], hooks: tuple[Hook, ...] = ()) -> Run:
    """Preflight, the run folder, the loop, and a report that is drawn anew at every checkpoint and every look of a hook."""
    passes = Passes(ready.task.models, ready.scorers, require_packed=cfg.require_packed)
    passes.check()
    found = preflight(ready.task, ready.chat, ready.records, ready.collated)
    run = open_run(cfg, command)
    found.note(run)
    write_lineage(run, cfg)
    meter = open_meter(ready.task, run.folder, passes)
    task = ready.task
    if isinstance(task.draw, Inside):
        task = replace(task, draw=task.draw.within(run))
    task = metered(task, meter)

    saves = Hook(cfg.optimization.save_every, lambda step: {})

    def draw_report(step: int) -> None:
        if due((*hooks, saves), step, task.steps):
            training_report(run.folder)
            for follow in _followers:
                follow()

    train(task, run, hooks, resume_line(command, run), meter, logged=draw_report)
    training_report(run.folder)
    return run


@contextmanager
def following(call: Callable[[], object]) -> Iterator[None]:
    """Inside the block `call` is called whenever a run's report has been drawn: a report over several stages keeps up."""
    _followers.append(call)
    try:
        yield
    finally:
        _followers.remove(call)


def load(sources: tuple[str, ...], kind: Kind, bad_rows: Any, hint: str) -> tuple[Loaded, ...]:
    """Records of one kind from every source; what was left out is said. ValueError with `hint` where no source is named."""
    if not sources:
        raise ValueError(hint)
    loaded = load_sources(sources, kind, bad_rows)
    for one in loaded:
        if one.skipped:
            say(f"{one.source}: {len(one.skipped)} of {one.rows} rows left out, such as {one.skipped[0]}")
    return loaded


def records_of(loaded: Sequence[Loaded]) -> list[Any]:
    """All records, source by source."""
    return [record for one in loaded for record in one.records]


def stream_of(
    loaded: Sequence[Loaded], batch_size: int, seed: int, arrange: Callable[[Sequence[Any]], list[Any]] = list
) -> tuple[Callable[[int], list[Any]], float]:
    """(step -> items, steps an epoch): one shuffled stream, or a mixture where the sources have weights.

    `arrange` makes the items of a source's records (such as all comparisons of a prompt together).
    """
    weights = [one.weight for one in loaded]
    if all(weight is None for weight in weights):
        stream = Stream(arrange(records_of(loaded)), batch_size, seed)
        return stream.draw, stream.steps_per_epoch
    sources = [arrange(one.records) for one in loaded]
    mixture = Mixture(sources, [weight or 0.0 for weight in weights], batch_size, seed)
    return mixture.draw, sum(map(len, sources)) / batch_size


def finished(run: Run, name: str) -> Path:
    """Mark the run as done with its result; returns the folder."""
    hand_down(run.folder, name)
    run.finish({name: name})
    return run.folder
