"""The heaviest micro-batch once, forward and backward, before anything is trained; what it cost makes the plan."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from tutelage.console import duration
from tutelage.data.batch import Rollouts, Rows, row_keys
from tutelage.models.hardware import peak_memory
from tutelage.models.packing import SLACK, micro_batches
from tutelage.records import Answer
from tutelage.training.findings import Finding, adapted_layers, row_totals
from tutelage.training.loop import Task
from tutelage.training.optim import named_trainable
from tutelage.training.rollouts import RolloutSource, rollouts
from tutelage.training.update import accumulate
from tutelage.training.work import packed_tokens

CANDIDATES = 256
"""Rows of a data set that the heaviest micro-batch is put together from: the longest, and as many over all lengths."""
TRIED_TOKENS = 5


@dataclass(frozen=True)
class Rehearsal:
    """Seconds per packed token of `prepare` and of an update, the memory at the peak, and where gradients arrived."""

    tokens: int
    prepare: float
    update: float
    peak: int
    reached: Mapping[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Tried:
    """A few sampled tokens at a step's full width: the answers, and seconds per prompt token and per decoding step."""

    sampled: Rollouts
    rows: int
    per_prompt_token: float
    per_step: float


@dataclass(frozen=True)
class Phase:
    """A part of every step."""

    name: str
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What the whole run will cost. With sampling it is an upper bound: answers may stop before the token limit."""

    steps: int
    phases: tuple[Phase, ...]
    memory: int
    bound: bool

    def line(self) -> str:
        """One line for the console; seconds and tokens of the whole run."""
        parts = [f"{p.name} {duration(self.steps * p.seconds)} ({self.steps * p.tokens:,} tokens)" for p in self.phases]
        whole = duration(self.steps * sum(phase.seconds for phase in self.phases))
        return (
            f"plan: {self.steps:,} steps, {'at most' if self.bound else 'about'} {whole}: {', '.join(parts)}; "
            f"memory {self.memory / 2**30:.1f} GiB (rewards and evaluation not counted)"
        )


@contextmanager
def untouched(task: Task) -> Iterator[None]:
    """Afterwards the random state is as before and no gradient is left; weights never move."""
    with torch.random.fork_rng():
        try:
            yield
        finally:
            for parameter in named_trainable(task.trained).values():
                parameter.grad = None


def heaviest(batch: Rows, tokens: int, rows: int) -> Rows:
    """The largest micro-batch of at most `rows` rows: what fits beside the longest, or a prompt's rows that stay together."""
    totals = torch.stack([row_totals(part) for part in batch.sequences()]).sum(0)
    order = totals.argsort(descending=True, stable=True)
    spread = order[:: max(1, len(order) // CANDIDATES)]
    chosen = torch.unique(torch.cat([order[:CANDIDATES], spread]))
    few = batch[chosen[totals[chosen].argsort(descending=True, stable=True)]]
    keys = list(zip(*(row_keys(part) for part in few.sequences()), strict=True))
    heads = [len(p) for p in few.sequences()[0].prompts.tokens]
    members: dict[int, list[int]] = {}
    for row, sides in enumerate(keys):
        members.setdefault(sides[0][0], []).append(row)

    def filled(candidates: Iterable[int], limit: int) -> tuple[int, list[int]]:
        """Packed tokens, and the rows: the first, and each other that fits."""
        piece, used, seen = [], 0, set()
        for row in candidates:
            fresh = {key for key in keys[row] if key not in seen}
            prompt = keys[row][0][0]
            cost = sum((len(key) - 1) // 2 for key in fresh) + (0 if (prompt,) in seen else heads[prompt])
            if len(piece) < rows and (not piece or used + cost <= limit):
                piece.append(row)
                used, seen = used + cost, seen | fresh | {(prompt,)}
        return used, piece

    groups = [filled(group, int(SLACK * tokens)) for group in members.values() if len(group) > 1]
    return few[max([filled(range(len(keys)), tokens), *groups], key=lambda found: found[0])[1]]


def imagined(source: RolloutSource, longest: Sequence[Sequence[int]], prompts: int, tokens: int) -> Rollouts:
    """Groups of the longest answers to the longest prompts, enough to fill a micro-batch; a step holds nothing heavier.

    Where these would lie in several pieces, lighter than one of shorter answers may be, the answers are that short.
    """
    length, size = source.decoding.max_tokens, source.group_size
    heads = list(longest[: min(prompts, -(-tokens // (size * length + len(longest[0]))))])
    room = tokens if len(heads) > 1 else int(SLACK * tokens)
    shorter = (room - sum(map(len, heads))) // (len(heads) * size)
    if len(heads[0]) + length <= room and 0 < shorter < length:
        length = shorter
    draw = random.Random(0)
    said = [[draw.choices(head, k=length) for _ in range(size)] for head in heads]
    groups = [[Answer("", tuple(ids), (0.0,) * len(ids)) for ids in group] for group in said]
    rewards = [[float(g % 2) for g in range(size)] for _ in heads]
    return rollouts(heads, groups, rewards, source.decoding.temperature)


def rehearse(task: Task, batch: Rows) -> Rehearsal:
    """One heaviest micro-batch through the method's own questions. Runs inside `untouched`; raises what runs out."""
    budget, place = task.settings.pass_tokens, next(iter(named_trainable(task.trained).values())).device
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)
    clock = time.perf_counter()
    prepared, _, _ = task.algorithm.prepare(task.models, batch.to(place), task.algorithm.initial_state())
    prepared_at = time.perf_counter()
    pieces = [prepared[piece] for piece in micro_batches(prepared, budget)]
    piece = max(pieces, key=packed_tokens)
    updating = time.perf_counter()
    accumulate(task.algorithm, task.models, piece, budget)
    updated = time.perf_counter()
    return Rehearsal(
        tokens=packed_tokens(piece),
        prepare=(prepared_at - clock) / packed_tokens(batch),
        update=(updated - updating) / packed_tokens(piece),
        peak=peak_memory(place),
        reached={name: _reached(task, name) for name in task.trained},
    )


def _reached(task: Task, name: str) -> tuple[int, int, int]:
    module = task.trained[name]
    trained = [p for p in module.parameters() if p.requires_grad]
    return adapted_layers(module), len(trained), sum(p.grad is not None and bool(p.grad.any()) for p in trained)


def ran_out(error: RuntimeError) -> Finding:
    """What stopped a rehearsal as a finding; an error of another kind is raised again."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in text or "out of memory" in text:
        fix = (
            "lower --optimization.tokens-per-pass, then --max-tokens or the group size; or train an adapter, not --full"
        )
        return Finding("memory", False, f"the heaviest micro-batch does not fit: {text.splitlines()[0]}", fix)
    if "does not require grad" in text:
        fix = "the loss does not depend on what is trained: is the adapter switched off, or another model trained?"
        return Finding("gradient", False, "no gradient reaches the trained weights", fix)
    raise error


def try_sampler(source: RolloutSource) -> Tried:
    """A few tokens for two of the first step's prompts, as many answers at once as a step decodes (at most 64)."""
    drawn = source.draw_prompts(0)
    tokens = [list(source.encode(prompt)) for prompt in drawn[:2]]
    answers = max(1, min(64, len(drawn) * source.group_size) // len(tokens))
    count = min(TRIED_TOKENS, source.decoding.max_tokens)
    clock = time.perf_counter()
    source.sampler.sample(tokens, answers, replace(source.decoding, max_tokens=1), f"{source.seed}/preflight")
    first = time.perf_counter() - clock
    groups = source.sampler.sample(
        tokens, answers, replace(source.decoding, max_tokens=count), f"{source.seed}/preflight"
    )
    both = time.perf_counter() - clock - first
    sampled = rollouts(tokens, groups, [[0.0] * answers for _ in tokens], source.decoding.temperature)
    per_step = max(0.0, both - first) / max(1, count - 1)
    return Tried(sampled, answers * len(tokens), first / sum(map(len, tokens)), per_step)


def plan(task: Task, seen: Rehearsal, tried: Tried | None, drawn: Sequence[Rows]) -> Plan:
    """Phases of a step, from what a rehearsal measured; `drawn` are the first steps' batches where nothing is sampled."""
    phases, passes = [], getattr(task.algorithm, "passes", 1)
    if tried is not None:
        assert isinstance(task.draw, RolloutSource)
        heads = [len(task.draw.encode(prompt)) for prompt in task.draw.draw_prompts(0)]
        rows, longest = len(heads) * task.draw.group_size, task.draw.decoding.max_tokens
        tokens = sum(heads) + rows * longest
        rounds = -(-rows // tried.rows)
        once = sum(heads) * tried.per_prompt_token + rounds * longest * tried.per_step
        phases.append(Phase("sample", task.draw.sides * tokens, task.draw.sides * once))
    else:
        tokens = round(sum(map(packed_tokens, drawn)) / len(drawn))
    phases += [
        Phase("prepare", tokens, tokens * seen.prepare),
        Phase("update", passes * tokens, passes * tokens * seen.update),
    ]
    moments = 2 * sum(p.numel() * p.element_size() for p in named_trainable(task.trained).values())
    return Plan(task.steps, tuple(phases), seen.peak + moments, tried is not None)
