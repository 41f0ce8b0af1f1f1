"""The least seconds that a step's phases could have taken on this machine, and the share of it that they reached."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from tutelage.models import floors
from tutelage.models.floors import FORWARD, Network
from tutelage.models.hardware import Machine, measure
from tutelage.training.work import Key, Work

PATIENCE = 100
"""F and BW are measured anew after this many times the seconds that it takes: 1 % of the run, and the best counts."""


@dataclass
class Step:
    """What the floors of a step are made of."""

    work: Mapping[str, Work]
    networks: Mapping[int, Network | None]
    """By the first part of `Work`'s keys; the policy is the first."""
    said: list[tuple[list[int], list[list[int]]]] = field(default_factory=list)
    """For each time that the policy was sampled: tokens of each prompt, tokens of each of its answers."""
    trained: int = 0
    """Parameters that the optimiser moves."""
    updates: int = 1
    """Optimiser steps."""


def step_floors(machine: Machine, step: Step) -> dict[str, float]:
    """Phase -> the least seconds it could take; phases without work that has a floor are left out.

    Networks in a narrower precision than F was measured in are left out too, for F is not theirs.
    """
    width = getattr(torch, machine.dtype).itemsize

    def seconds(work: Work, key: Key) -> float:
        network = step.networks[key[0]]
        if network is None or network.weight_bytes < width:
            return 0.0
        return floors.passes(machine, network, work.needed(key), work.labels, None if key[1] else FORWARD)

    found = {name: sum(seconds(work, key) for key in work.through) for name, work in step.work.items()}
    if "optimizer" in step.work:
        found["optimizer"] = floors.optimizer(machine, step.trained, step.updates)
    policy = next(iter(step.networks.values()), None)
    if policy is not None and policy.weight_bytes >= width:
        found["sample"] = sum(_sampling(machine, policy, *said) for said in step.said)
    return {name: value for name, value in found.items() if value > 0}


def _sampling(machine: Machine, policy: Network, prompts: list[int], answers: list[list[int]]) -> float:
    """Prompts read once, then all answers at once: more rows at a time read the weights less often."""
    rows = sum(map(len, answers))
    return floors.prefill(machine, policy, sum(prompts)) + floors.decode(machine, policy, prompts, answers, rows)


class Limit:
    """The machine as the run knows it so far: what disturbs a measurement only slows it, so the best one counts."""

    def __init__(self, machine: Machine, on_better: Callable[[Machine], None] = lambda machine: None) -> None:
        self.machine = machine
        self._on_better = on_better
        self._measured, self._cost = time.perf_counter(), 0.5

    def fractions(self, step: Step, whole: float) -> dict[str, float]:
        """`fraction_of_limit`, of the `whole` step's seconds, and of each phase.

        A phase below its floor proves that the machine was busy when it was measured: then it is measured again.
        """
        found = step_floors(self.machine, step)
        below = any(step.work[name].seconds < seconds for name, seconds in found.items())
        if below or time.perf_counter() - self._measured > PATIENCE * self._cost:
            self.measure_again()
            found = step_floors(self.machine, step)
        if not found or not whole:
            return {}
        parts = {f"fraction_of_limit/{n}": s / step.work[n].seconds for n, s in found.items() if step.work[n].seconds}
        return {"fraction_of_limit": sum(found.values()) / whole, **parts}

    def measure_again(self) -> None:
        """F and BW anew; the better of both is kept and told."""
        begun = time.perf_counter()
        place = torch.device(self.machine.device)
        found = self.machine.best(measure(getattr(torch, self.machine.dtype), place))
        self._measured = time.perf_counter()
        self._cost = self._measured - begun
        if found != self.machine:
            self.machine = found
            self._on_better(found)
