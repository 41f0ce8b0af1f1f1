"""The floor of a unit of work on this machine, from the best F and BW that were measured beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from speed_work import Work
from tutelage.models.floors import FORWARD, Network, decode, optimizer, passes, prefill
from tutelage.models.hardware import Machine, measure

CPU = torch.device("cpu")


class Limits:
    """Measures the machine again and again; what disturbs a measurement only ever slows it, so the best one counts."""

    def __init__(self) -> None:
        self.machine: Machine = measure(torch.float32, CPU)

    def look(self) -> Machine:
        """The best so far, with a new measurement."""
        self.machine = self.machine.best(measure(torch.float32, CPU))
        return self.machine

    def floors(self, kind: str, work: Work, module: nn.Module) -> dict[str, Any]:
        """Seconds of the floor by phase for `kind` of unit, and the machine they hold for."""
        machine, network = self.look(), Network.of(module)
        assert network is not None
        phases = {"decode": _decode, "grpo": _grpo, "sft": _update, "dpo": _dpo, "reward": _scores}[kind]
        return {"machine": machine.to_json(), "floor": phases(machine, network, work)}


def _decode(machine: Machine, network: Network, work: Work) -> dict[str, float]:
    prompts = [len(prompt) for prompt in work.prompts]
    said = [[len(answer) for answer in group] for group in work.answers]
    said = said or [[work.max_tokens] * work.group for _ in prompts]
    rows = sum(map(len, said))
    return {
        "prefill": prefill(machine, network, sum(prompts)),
        "decode": decode(machine, network, prompts, said, rows),
    }


def _update(machine: Machine, network: Network, work: Work) -> dict[str, float]:
    counts = work.counts
    return {
        "update": passes(machine, network, counts["tokens"], counts["answer_tokens"]),
        "optimizer": optimizer(machine, network.trained),
    }


def _grpo(machine: Machine, network: Network, work: Work) -> dict[str, float]:
    return {**_decode(machine, network, work), **_update(machine, network, work)}


def _dpo(machine: Machine, network: Network, work: Work) -> dict[str, float]:
    counts = work.counts
    reference = passes(machine, network, counts["tokens"], counts["answer_tokens"], FORWARD)
    return {"reference": reference, **_update(machine, network, work)}


def _scores(machine: Machine, network: Network, work: Work) -> dict[str, float]:
    """A scalar head is read once an answer: nothing beside the body."""
    return {
        "update": passes(machine, network, work.counts["tokens"], 0),
        "optimizer": optimizer(machine, network.trained),
    }
