"""The stopwatch of a step: seconds of each phase, tokens a second, memory, and how near to the machine's limit they come."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

from tutelage.data.batch import Rows
from tutelage.models.hardware import peak_memory, settle
from tutelage.records import Answer
from tutelage.training.limits import Limit, Step
from tutelage.training.work import Passes, Work, real_tokens

MEASURED = ("time/", "answer/tokens_per_second", "tokens_per_second", "fraction_of_limit", "memory_gb")
"""How names of metrics begin that depend on the machine and its load; all others repeat with the seed."""


class Meter:
    """`with meter.phase("update")` around each phase; `finish` gives the step's metrics and begins the next one.

    Without a limit nothing is compared with one; seconds, tokens and memory are counted all the same.
    """

    def __init__(self, passes: Passes, limit: Limit | None = None, trained: int = 0) -> None:
        self.passes, self.limit, self.trained = passes, limit, trained
        self.work: dict[str, Work] = {}
        self._phase = ""
        self._said: list[tuple[list[int], list[list[int]]]] = []

    def attached(self) -> AbstractContextManager[None]:
        """Inside, every forward of the networks is counted."""
        return self.passes.counted(self)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Inside, seconds and forwards are those of the phase `name`; phases do not nest."""
        assert not self._phase, f"{name} begins inside {self._phase}"
        self._phase, begun = name, time.perf_counter()
        try:
            yield
        finally:
            settle(self.passes.place)
            self._of(name).seconds += time.perf_counter() - begun
            self._phase = ""

    def present(self, scores: bool) -> Work | None:
        """Where a forward that begins now is put down: a reward model's while the batch is drawn, the others' later.

        While drawing, the policy decodes: that is counted by what it says.
        """
        if scores:
            return self._of("reward") if self._phase == "draw" else None
        return self._of(self._phase) if self._phase in ("prepare", "update") else None

    def _of(self, name: str) -> Work:
        return self.work.setdefault(name, Work())

    def need(self, batch: Rows) -> None:
        """Rows that the present phase has to compute once."""
        work = self._of(self._phase)
        tokens, labels = real_tokens(batch)
        work.tokens += tokens
        work.labels += labels

    def said(self, prompts: Sequence[Sequence[int]], groups: Sequence[Sequence[Answer]], *, exact: bool = True) -> None:
        """Answers [P][G] that the policy gave to prompts (as token ids).

        Where it was not `exact` (a sampler in fewer bits, or on another machine) they count and have no floor.
        """
        lengths = [[len(answer.tokens) for answer in group] for group in groups]
        if exact:
            self._said.append(([len(prompt) for prompt in prompts], lengths))
        self._of("sample").tokens += sum(map(sum, lengths))

    def finish(self, drawn: Mapping[str, float], updates: int) -> dict[str, float]:
        """The metrics of a step that drew `drawn` and took `updates` optimiser steps."""
        whole = sum(work.seconds for work in self.work.values())
        metrics = {f"time/{name}": work.seconds for name, work in self.work.items() if work.seconds}
        for name in ("sample", "reward"):  # parts of the drawing, which its source has timed
            if f"time/{name}" in drawn and name in self.work:
                self.work[name].seconds = drawn[f"time/{name}"]
        metrics |= self._layout()
        if self.limit is not None:
            metrics |= self.limit.fractions(self.step(updates), whole)
        metrics["memory_gb"] = peak_memory(self.passes.place) / 1e9
        self.work, self._said = {}, []
        self.passes.next_step()
        return metrics

    def step(self, updates: int) -> Step:
        """What the floors of the present step are made of."""
        return Step(self.work, self.passes.networks, self._said, self.trained, updates)

    def _layout(self) -> dict[str, float]:
        """Speed, the share of passes that ran padded, and the share of an update's tokens that it computed needlessly."""
        metrics = {}
        for name, work in self.work.items():
            tokens = sum(work.own.values()) or work.tokens
            if tokens and work.seconds and (work.through or name == "sample"):
                metrics[f"tokens_per_second/{name}"] = tokens / work.seconds
        passes = sum(work.passes for work in self.work.values())
        if passes:
            metrics["fallback"] = sum(work.padded for work in self.work.values()) / passes
        if (update := self.work.get("update", Work())).computed:
            metrics["recomputed"] = 1 - min(1.0, update.tokens / update.computed)
        return metrics
