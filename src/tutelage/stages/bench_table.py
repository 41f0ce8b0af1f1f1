"""What `tutelage bench` makes of a measured step: a line for each phase, its floor, and the fraction of it that was reached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

from tutelage.console import Bar, say, table, warn
from tutelage.models import floors
from tutelage.models.hardware import Machine, peak_memory
from tutelage.training.limits import Limit, Step, step_floors
from tutelage.training.meter import Meter
from tutelage.training.work import Passes

PARTS = ("draw", "prepare", "update", "optimizer")
"""Phases of the loop."""
LINES = {"prefill": "prefill", "decode": "decode", "reference": "prepare", "update": "update", "optimizer": "optimizer"}
"""Lines of the table -> the loop's phases; prefill and decode are what drawing is made of."""


@dataclass(frozen=True)
class Shape:
    """How much one step is."""

    prompts: int
    answers: int
    prompt_tokens: int
    answer_tokens: int

    def __str__(self) -> str:
        return f"{self.prompts} x {self.answers} answers, {self.prompt_tokens} + {self.answer_tokens} tokens"


@dataclass(frozen=True)
class Phase:
    """A line of the table. `memory` is the largest so far, in bytes."""

    name: str
    tokens: int
    seconds: float
    floor: float
    memory: int

    @property
    def fraction(self) -> float:
        """Floor over measured."""
        return self.floor / self.seconds

    def cells(self) -> tuple[str, ...]:
        """As the table shows it."""
        speed = f"{self.tokens / self.seconds:,.0f}" if self.tokens else ""
        counted = f"{self.tokens:,}" if self.tokens else ""
        figures = (
            f"{self.seconds:,.3g}",
            speed,
            f"{self.floor:,.3g}",
            f"{self.fraction:.1%}",
            f"{self.memory / 1e9:.2f}",
        )
        return (self.name, counted, *figures)

    def to_json(self) -> dict[str, float]:
        """Plain data."""
        return {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "floor": self.floor,
            "fraction": self.fraction,
            "memory_gb": self.memory / 1e9,
        }


class Watched(Meter):
    """A meter that shows each phase as it ends, and remembers the memory and the work of the step."""

    bar: Bar | None = None

    def __init__(self, passes: Passes, limit: Limit, trained: int) -> None:
        super().__init__(passes, limit, trained)
        self.memory: dict[str, int] = {}
        self.done: list[tuple[Step, dict[str, float]]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """As the loop's, and the bar moves."""
        with super().phase(name):
            yield
        self.memory[name] = peak_memory(self.passes.place)
        if self.bar is not None:
            self.bar.advance(1, phase=name)

    def finish(self, drawn: Any, updates: int) -> dict[str, float]:
        """As the loop's; the step is kept."""
        step = self.step(updates)
        metrics = super().finish(drawn, updates)
        self.done.append((step, {name: work.seconds for name, work in step.work.items()}))
        return metrics


def phases_of(shape: Shape, machine: Machine, meter: Watched, first: float) -> list[Phase]:
    """The lines of the table: medians of the measured steps. `first` are the seconds up to each answer's first token.

    Raises ValueError for a mixture of experts.
    """
    step = meter.done[-1][0]
    network = next(iter(step.networks.values()))
    if network is None:
        raise ValueError("bench: the floors of a mixture of experts are not known")
    least = step_floors(machine, step)
    least["prefill"] = floors.prefill(machine, network, shape.prompts * shape.prompt_tokens)
    least["decode"] = least["sample"] - least["prefill"]
    seconds = {name: median(one[name] for _, one in meter.done) for name in step.work}
    seconds |= {"prefill": first, "decode": max(seconds["sample"] - first, 1e-9)}
    tokens = {name: work.tokens for name, work in step.work.items()}
    tokens |= {
        "prefill": shape.prompts * shape.prompt_tokens,
        "decode": shape.prompts * shape.answers * (shape.answer_tokens - 1),
    }
    memory = {**meter.memory, "decode": meter.memory["draw"]}
    return [Phase(name, tokens.get(key, 0), seconds[key], least[key], memory[key]) for name, key in LINES.items()]


def whole(phases: Sequence[Phase]) -> Phase:
    """The phases together."""
    return Phase("step", 0, sum(p.seconds for p in phases), sum(p.floor for p in phases), max(p.memory for p in phases))


def impossible(phases: Sequence[Phase]) -> bool:
    """Whether a phase took less than the least it can; it is said which."""
    above = [f"{phase.name} {phase.fraction:.0%}" for phase in phases if phase.fraction > 1]
    if above:
        warn(f"above the limit: {', '.join(above)}. F or BW was measured on a busy machine, or a floor is wrong")
    return bool(above)


def show(title: str, machine: Machine, phases: Sequence[Phase]) -> None:
    """The machine and the table, on stdout."""
    say(machine.line())
    head = ("phase", "tokens", "seconds", "tokens/s", "floor (s)", "fraction", "peak GB so far")
    table(title, head, [phase.cells() for phase in (*phases, whole(phases))])


def figures(machine: Machine, meter: Watched, phases: Sequence[Phase]) -> dict[str, Any]:
    """The same as plain data, and the proof that rows ran packed: tokens through the linear layers and needed ones."""
    work = meter.done[-1][0].work
    both = [work[name] for name in ("prepare", "update")]
    return {
        "machine": machine.to_json(),
        "phases": {phase.name: phase.to_json() for phase in (*phases, whole(phases))},
        "fallback": sum(one.padded for one in both) / sum(one.passes for one in both),
        "update_tokens": {"needed": work["update"].tokens, "through_linear_layers": work["update"].computed},
    }
