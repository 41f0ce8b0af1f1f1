"""Before a run, in seconds: what the data train, whether the model obeys the laws, what the run will cost, all faults at once."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from tutelage.algorithms.base import Models
from tutelage.algorithms.corrected import Corrected
from tutelage.console import say
from tutelage.data.batch import Rows, Sequences, sequences
from tutelage.data.chat import Chat
from tutelage.data.collate import Collated
from tutelage.training.findings import (
    Finding,
    closed,
    gradient_reaches,
    one_vocabulary,
    row_totals,
    rows_trained,
    same_template,
    sampler_agrees,
    step_zero,
    stop_trained,
    unfinished_answers,
    within_context,
)
from tutelage.training.loop import Task
from tutelage.training.optim import named_trainable
from tutelage.training.rehearsal import Plan, heaviest, imagined, plan, ran_out, rehearse, try_sampler, untouched
from tutelage.training.rollouts import RolloutSource
from tutelage.training.run import Run

CONVERSATIONS = 8
"""Records whose template is compared."""
LONGEST = 32
"""Prompts, the longest by characters, that are tokenised to find the longest by tokens."""
SHOWN = 400
"""Characters of a piece of an example; its middle is left out beyond."""


@dataclass(frozen=True)
class Preflight:
    """What was found, what the run will cost, and what finding it cost in seconds."""

    findings: tuple[Finding, ...]
    plan: Plan | None
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every finding is."""
        return all(finding.ok for finding in self.findings)

    def lines(self) -> list[str]:
        """Every finding, the plan and the time, a line each."""
        plan_lines = [] if self.plan is None else [self.plan.line()]
        return [*(f.line() for f in self.findings), *plan_lines, f"preflight took {self.seconds:.1f} s"]

    def refuse(self) -> None:
        """Raises ValueError with all that failed, and with nothing that did not."""
        failed = [finding for finding in self.findings if not finding.ok]
        if failed:
            raise ValueError("\n".join(["preflight: the run would go wrong", *(f"  {f.line()}" for f in failed)]))

    def note(self, run: Run) -> None:
        """Keep seconds, plan and findings in the run's environment.json."""
        run.choice("preflight", lambda: asdict(self))


def preflight(
    task: Task, chat: Chat, records: Sequence[Any], collated: Collated[Any] | None = None, *, examples: int = 1
) -> Preflight:
    """Examine a task right before `train`, say the plan, and refuse a run that would go wrong (ValueError).

    `records` are what `collated` was made from; of reinforcement learning the prompts, with `collated` None. Call it before
    the run folder is opened, so that a refusal leaves none, and `note` the result in the run afterwards.
    """
    found = examine(task, chat, records, collated)
    found.refuse()
    show_examples(chat, shown_rows(chat, records, collated), examples)
    say(f"preflight: {len(found.findings)} checks passed in {found.seconds:.1f} s")
    if found.plan is not None:
        say(found.plan.line())
    return found


def examine(task: Task, chat: Chat, records: Sequence[Any], collated: Collated[Any] | None = None) -> Preflight:
    """All findings, without raising for any of them. Weights and random state stay bit for bit as they are."""
    clock = time.perf_counter()
    if not named_trainable(task.trained):
        return Preflight((gradient_reaches({}),), None, time.perf_counter() - clock)
    with untouched(task):
        if isinstance(task.draw, RolloutSource):
            assert collated is None, "reinforcement learning samples its rows"
            findings, batch, tried, drawn = _examine_sampling(task, task.draw, chat, records)
        else:
            assert collated is not None, "give the collated records"
            findings, batch, drawn = _examine_rows(task, chat, records, collated)
            tried = None
        costs = None
        if batch is not None:
            try:
                seen = rehearse(task, batch)
                findings.append(gradient_reaches(seen.reached))
                costs = plan(task, seen, tried, drawn)
            except RuntimeError as error:
                findings.append(ran_out(error))
    return Preflight(tuple(findings), costs, time.perf_counter() - clock)


def _examine_rows(
    task: Task, chat: Chat, records: Sequence[Any], collated: Collated[Any]
) -> tuple[list[Finding], Rows | None, list[Rows]]:
    """Findings on rows that lie there; the batch to rehearse (None where its model could not run it), the first steps'."""
    batch, counts = collated.batch, collated.counts
    parts = batch.sequences()
    longest = max((int(row_totals(part).max()) for part in parts if len(part)), default=0)
    findings = [
        rows_trained(batch, counts),
        closed(batch, chat.closing_tokens)
        if chat.closing
        else stop_trained(batch, counts, chat.stop_tokens, unfinished_answers(records)),
        same_template(chat, records[:CONVERSATIONS]),
        *_fit(task, chat, longest),
    ]
    if not (findings[0].ok and all(f.ok for f in findings[3:])):
        return findings, None, []
    totals = row_totals(parts[0]).masked_fill(~parts[0].mask.any(-1).cpu(), sys.maxsize)
    few = parts[0][totals.argsort()[:2]].to(_place(task))
    findings.append(step_zero(_at_start(task), few))
    drawn = [task.draw(step)[0] for step in range(min(3, task.steps))]
    rows = max(len(one) for one in drawn)
    return findings, heaviest(batch, task.settings.pass_tokens, rows), drawn


def _examine_sampling(
    task: Task, source: RolloutSource, chat: Chat, prompts: Sequence[Any]
) -> tuple[list[Finding], Rows | None, Any, list[Rows]]:
    """The same where rows are sampled: a few tokens are, and the heaviest step is imagined."""
    by_size = sorted(prompts, key=lambda prompt: -sum(len(m.content) for m in prompt.messages))
    encoded = sorted((list(source.encode(prompt)) for prompt in by_size[:LONGEST]), key=len, reverse=True)
    findings = [
        same_template(chat, prompts[:CONVERSATIONS]),
        *_fit(task, chat, len(encoded[0]) + source.decoding.max_tokens),
    ]
    if not all(finding.ok for finding in findings[1:]):
        return findings, None, None, []
    assert task.models.policy is not None
    tried = try_sampler(source)
    sampled = tried.sampled.to(_place(task))
    findings.append(step_zero(_at_start(task), sampled.answers))
    findings.append(sampler_agrees(task.models.policy, sampled, _dtype(task), isinstance(task.algorithm, Corrected)))
    drawn = len(source.draw_prompts(0))
    return findings, imagined(source, encoded, drawn, task.settings.pass_tokens), tried, []


def _at_start(task: Task) -> Models:
    """The models, without a reference that is not the policy's start: its KL is not 0."""
    return task.models if task.own_reference else replace(task.models, reference=None)


def _fit(task: Task, chat: Chat, longest: int) -> list[Finding]:
    return [within_context(task.trained, longest), one_vocabulary(task.trained, chat.tokenizer)]


def _place(task: Task) -> torch.device:
    return next(iter(named_trainable(task.trained).values())).device


def _dtype(task: Task) -> torch.dtype:
    """Of the largest weight: adapters and heads are in float32 on 16-bit weights."""
    return max(task.trained["policy"].parameters(), key=torch.Tensor.numel).dtype


def shown_rows(chat: Chat, records: Sequence[Any], collated: Collated[Any] | None = None) -> Rows:
    """What `show_examples` shows: the collated rows, or the prompts before anything is said to them."""
    if collated is not None:
        return collated.batch
    prompts = [chat.prompt_tokens(prompt) for prompt in records[:CONVERSATIONS]]
    return sequences(prompts, range(len(prompts)), [[] for _ in prompts])


def show_examples(chat: Chat, batch: Rows, count: int = 2, colour: bool | None = None) -> None:
    """Say the first rows, special tokens visible; trained tokens are coloured on a terminal, elsewhere in ⟦ ⟧.

    Of a pair both sides are shown. `colour` None asks the terminal.
    """
    terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and "NO_COLOR" not in os.environ
    coloured = terminal if colour is None else colour
    names = ("chosen", "rejected") if len(batch.sequences()) == 2 else ("",)
    for row in range(min(count, len(batch))):
        for name, part in zip(names, batch.sequences(), strict=True):
            say(f"--- example {row + 1}{name and ', ' + name} (trained tokens are {'green' if coloured else 'in ⟦ ⟧'})")
            say(marked(chat, part, row, coloured))


def marked(chat: Chat, part: Sequences, row: int, colour: bool) -> str:
    """One row as text, its trained tokens marked."""
    before, after = ("\x1b[4;32m", "\x1b[0m") if colour else ("⟦", "⟧")
    length = int(part.lengths[row])
    tokens, mask = part.tokens[row, :length].tolist(), part.mask[row, :length].tolist()
    text = _visible(chat, part.prompts.tokens[int(part.prompt_of[row])])
    for trained, piece in _runs(tokens, mask):
        text += f"{before}{_visible(chat, piece)}{after}" if trained else _visible(chat, piece)
    return text if length else f"{text}{before}...{after}"


def _runs(tokens: Sequence[int], mask: Sequence[bool]) -> Iterator[tuple[bool, list[int]]]:
    """Neighbours with the same mask together."""
    start = 0
    for at in range(1, len(tokens) + 1):
        if at == len(tokens) or mask[at] != mask[start]:
            yield mask[start], list(tokens[start:at])
            start = at


def _visible(chat: Chat, tokens: Sequence[int]) -> str:
    """Decoded with special tokens, shortened in the middle; control characters cannot steer the terminal."""
    text = chat.tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if len(text) > SHOWN:
        text = f"{text[: SHOWN // 2]} [... {len(text) - SHOWN:,} characters ...] {text[-SHOWN // 2 :]}"
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
