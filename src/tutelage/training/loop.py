"""The one loop: draw, prepare, update, log, save; methods are arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from tutelage.algorithms.base import Algorithm, Models, State
from tutelage.console import track, warn
from tutelage.data.batch import Rows
from tutelage.memory import Tidy
from tutelage.training.checkpoint import (
    Saved,
    load_optimizer,
    load_trainable,
    optimizer_tensors,
    trainable_tensors,
)
from tutelage.training.interrupt import Interrupt, Interrupted, Paused
from tutelage.training.meter import Meter
from tutelage.training.optim import Optimization, adamw, learning_rate, named_trainable, set_learning_rate
from tutelage.training.run import Run
from tutelage.training.update import Averages, accumulate, clip_gradients, minibatches
from tutelage.training.work import Passes

Draw = Callable[[int], tuple[Rows, Mapping[str, float]]]
"""Step -> the step's batch and what drawing it measured; the same step gives the same batch (for the same weights)."""


@dataclass(frozen=True)
class Hook:
    """Something to do after every `every`-th step and after the last, such as an evaluation; returns metrics."""

    every: int
    run: Callable[[int], Mapping[str, float]]


def due(hooks: Sequence[Hook], step: int, steps: int) -> list[Hook]:
    """The hooks whose turn it is after `step` of `steps`."""
    return [hook for hook in hooks if step % hook.every == 0 or step == steps]


@dataclass(frozen=True)
class Beside:
    """A second term of every optimiser step's loss: `coefficient` times another method on rows of its own.

    With SFT on pretraining text it is the mix of PPO-ptx (arXiv:2203.02155, eq. 2). `draw` gives the rows of the n-th
    optimiser step; the method holds nothing fixed from step to step.
    """

    name: str
    algorithm: Algorithm
    draw: Callable[[int], Rows]
    coefficient: float


@dataclass(frozen=True)
class Task:
    """What is trained, how and for how long. `trained` names the modules whose trainable weights move.

    `own_reference` is False where the reference is not the policy's start, so that their KL is not 0 at step 0.
    """

    models: Models
    algorithm: Algorithm
    draw: Draw
    trained: Mapping[str, nn.Module]
    steps: int
    peak: float
    settings: Optimization
    seed: int = 0
    label: str = "training"
    beside: Beside | None = None
    own_reference: bool = True


@dataclass
class Progress:
    """Where a task stands: the next step, the method's state, the optimiser."""

    step: int
    state: State
    optimizer: torch.optim.Optimizer


def train(
    task: Task,
    run: Run,
    hooks: tuple[Hook, ...] = (),
    resume_command: str = "",
    meter: Meter | None = None,
    *,
    logged: Callable[[int], None] = lambda step: None,
) -> State:
    """Run (or go on with) a task; every step is logged, checkpoints are saved and Ctrl-C saves before it stops.

    `meter` compares each step with the machine's limits; the default one only takes its time. `logged` is called with the
    number of steps done once the step's metrics can be read back (to draw them, say).

    Raises Interrupted after a Ctrl-C or where a step has to wait (`Paused`), ValueError for a batch that trains nothing
    or a gradient that is not finite.
    """
    missing = task.models.missing((*task.algorithm.needs, *(task.beside.algorithm.needs if task.beside else ())))
    assert not missing, f"{type(task.algorithm).__name__} needs {missing}"
    progress, meter, tidy = _start(task, run), meter or Meter(Passes(task.models)), Tidy()
    with Interrupt() as interrupt, meter.attached(), track(task.steps, task.label) as bar:
        bar.advance(progress.step)
        while progress.step < task.steps:
            step = progress.step
            try:
                metrics = one_step(task, progress, meter)
            except Paused as paused:
                save(task, progress, run)
                warn(f"step {step}: {paused}")
                raise Interrupted(resume_command) from None
            progress.step = step + 1
            for hook in due(hooks, progress.step, task.steps):
                metrics |= hook.run(progress.step)
            run.log(step, metrics)
            logged(progress.step)
            bar.advance(1, **_headline(metrics))
            tidy()
            saved = progress.step % task.settings.save_every == 0 or progress.step == task.steps
            if saved or interrupt.requested:
                save(task, progress, run)
            if interrupt.requested and progress.step < task.steps:
                raise Interrupted(resume_command)
    return progress.state


def one_step(task: Task, progress: Progress, meter: Meter | None = None) -> dict[str, float]:
    """One step of the loop: a batch, what it holds fixed, and one or several optimiser steps on it."""
    meter = meter or Meter(Passes(task.models))
    with meter.phase("draw"):
        batch, drawn = task.draw(progress.step)
        batch = batch.to(next(iter(named_trainable(task.trained).values())).device)
    with meter.phase("prepare"):
        meter.need(batch)
        batch, state, prepared = task.algorithm.prepare(task.models, batch, progress.state)
    updated, updates = _update(task, progress, batch, meter)
    progress.state = state
    return {**drawn, **prepared, **updated, **meter.finish(drawn, updates)}


def _update(task: Task, progress: Progress, batch: Rows, meter: Meter) -> tuple[dict[str, float], int]:
    """The metrics of the optimiser steps on a batch, and how many they were."""
    parameters = list(named_trainable(task.trained).values())
    rate = learning_rate(task.settings, progress.step, task.steps, task.peak)
    set_learning_rate(progress.optimizer, rate)
    loss, norms, averages, second = 0.0, [], Averages(), Averages()
    passes, parts = getattr(task.algorithm, "passes", 1), getattr(task.algorithm, "minibatches", 1)
    budget = task.settings.pass_tokens
    for turn in range(passes):
        for part, rows in enumerate(minibatches(len(batch), parts, f"{task.seed}/{progress.step}/{turn}")):
            with meter.phase("update"):
                progress.optimizer.zero_grad(set_to_none=True)
                value, measured = accumulate(task.algorithm, task.models, batch[rows], budget, need=meter.need)
                if task.beside is not None:
                    second.join(_beside(task, task.beside, (progress.step * passes + turn) * parts + part, meter))
            with meter.phase("optimizer"):
                norms.append(clip_gradients(parameters, task.settings.max_grad_norm))
                progress.optimizer.step()
            loss += value / (passes * parts)
            averages.join(measured)
    progress.optimizer.zero_grad(set_to_none=True)
    beside = {} if task.beside is None else {f"{task.beside.name}/{k}": v for k, v in second.means().items()}
    return {
        **averages.means(),
        **beside,
        "loss": loss,
        "optim/gradient_norm": sum(norms) / len(norms),
        "optim/learning_rate": rate,
    }, len(norms)


def _beside(task: Task, term: Beside, number: int, meter: Meter) -> Averages:
    """Gradients of the second term of the `number`-th optimiser step, added to those that are there."""
    place = next(iter(named_trainable(task.trained).values())).device
    rows, _, _ = term.algorithm.prepare(task.models, term.draw(number).to(place), term.algorithm.initial_state())
    budget = task.settings.pass_tokens
    return accumulate(term.algorithm, task.models, rows, budget, scale=term.coefficient, need=meter.need)[1]


def _start(task: Task, run: Run) -> Progress:
    named = named_trainable(task.trained)
    assert named, "nothing is trainable"
    progress = Progress(0, task.algorithm.initial_state(), adamw(named.values(), task.settings))
    saved = run.checkpoints.latest()
    if saved is not None:
        restore(task, progress, saved)
    run.truncate(progress.step)
    return progress


def save(task: Task, progress: Progress, run: Run) -> None:
    """A checkpoint from which the next step is bit-identical: weights, optimiser, method state, position."""
    tensors, info = optimizer_tensors(progress.optimizer, named_trainable(task.trained))
    groups = {name: trainable_tensors(module) for name, module in task.trained.items()}
    run.checkpoints.save(
        progress.step, {**groups, "optimizer": tensors}, {"state": asdict(progress.state), "optimizer": info}
    )


def restore(task: Task, progress: Progress, saved: Saved) -> None:
    """Put a checkpoint back into a task's modules, optimiser and state."""
    for name, module in task.trained.items():
        load_trainable(module, saved.tensors(name))
    info: Any = saved.info
    load_optimizer(progress.optimizer, named_trainable(task.trained), saved.tensors("optimizer"), info["optimizer"])
    progress.state = type(progress.state)(**info["state"])
    progress.step = saved.step


def _headline(metrics: Mapping[str, float]) -> dict[str, float]:
    """The few figures that a progress bar has room for."""
    wanted = ("loss", "reward/mean", "policy/kl", "accuracy/comparison", "accuracy/implicit", "answer/finished")
    wanted += ("fraction_of_limit", "memory_gb")
    return {name.split("/")[-1]: metrics[name] for name in wanted if name in metrics}
