"""The floor of a unit of work on this machine, from the best F and BW that were measured beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from speed_work import Work
from tutelage.models.floors import FORWARD, Network, decode, optimizer, passes, prefill
from tutelage.models.gemm import Gemm, missing, multiplying
from tutelage.models.hardware import Machine, measure

CPU = torch.device("cpu")


class Limits:
    """Measures the machine again and again; what disturbs a measurement only ever slows it, so the best one counts.

    F is that of PyTorch's products, which both sides have; beside it that of the matrix unit's, where there is one.
    """

    def __init__(self) -> None:
        self.machine: Machine = _measured("default")
        self.unit: Machine | None = None if missing("amx", CPU) else _measured("amx")

    def look(self) -> Machine:
        """The best so far, with a new measurement."""
        self.machine = self.machine.best(_measured("default"))
        self.unit = self.unit and self.unit.best(_measured("amx"))
        return self.machine

    def floors(self, kind: str, work: Work, module: nn.Module) -> dict[str, Any]:
        """Seconds of the floor by phase for `kind` of unit, and the machine they hold for."""
        machine, network = self.look(), Network.of(module)
        assert network is not None
        phases = {"decode": _decode, "grpo": _grpo, "sft": _update, "dpo": _dpo, "reward": _scores}[kind]
        found: dict[str, Any] = {"machine": machine.to_json(), "floor": phases(machine, network, work)}
        if self.unit is not None:
            found |= {"unit_flops": self.unit.flops, "floor_of_unit": phases(self.unit, network, work)}
        return found


def _measured(gemm: Gemm) -> Machine:
    with multiplying(gemm):
        return measure(torch.float32, CPU)


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
