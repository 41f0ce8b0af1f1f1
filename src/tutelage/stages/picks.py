"""Blind picks between two models in a chat: sides drawn, names shown afterwards, every pick a comparison in chat.jsonl."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tutelage.console import say
from tutelage.records import Answer, Comparison, Prompt, to_json, write_jsonl
from tutelage.statistics import wilson

CHOICES = {"1": 1.0, "2": 0.0, "0": 0.5, "s": None}
"""What a person may type -> how far the answer shown first is preferred."""
QUESTION = "Better: 1, 2, 0 (tie), s (skip)? "


@dataclass
class Ballot:
    """The picks of one session between `names[0]` and `names[1]`."""

    names: tuple[str, str]
    path: Path
    decoding: dict[str, float]
    results: list[float] = field(default_factory=list)
    """Of each pick: 1 where the first name won, 0 where it lost, 1/2 for a tie."""
    skipped: int = 0

    def order(self, prompt: Prompt, seed: str) -> tuple[int, int]:
        """Which name answers first, drawn from the seed and the conversation."""
        return (0, 1) if random.Random(f"{seed}/{prompt.key}").random() < 0.5 else (1, 0)

    def vote(self, prompt: Prompt, first: Answer, second: Answer, read: Callable[[str], str]) -> Answer:
        """Ask, record, and tell who was who; returns the better answer (the first after a tie or a skip)."""
        if first.text == second.text:
            self.skipped += 1
            say("(both gave the same answer: nothing to pick)")
            return first
        preference = _ask(read)
        if preference is None:
            self.skipped += 1
        else:
            self._record(prompt, first, second, preference)
            self.results.append(preference if first.author == self.names[0] else 1 - preference)
        say(f"Answer 1 was {first.author}, answer 2 was {second.author}.")
        return second if preference == 0.0 else first

    def _record(self, prompt: Prompt, first: Answer, second: Answer, preference: float) -> None:
        chosen, rejected = (second, first) if preference == 0.0 else (first, second)
        record = Comparison(prompt, chosen, rejected, preference=max(preference, 1 - preference))
        shown = {"shown": [first.author, second.author], "decoding": self.decoding}
        write_jsonl(self.path, [{**to_json(record), **shown}], append=True)

    def welcome(self) -> str:
        """The first lines of a session."""
        return (
            f"{self.names[0]} and {self.names[1]} both answer; which is which is drawn anew for every question and told "
            f"after your pick.\nPicks are appended to {self.path}\n/help lists commands, Ctrl-D leaves."
        )

    def tally(self) -> str:
        """The session's picks with Wilson's 95 % interval (ties count 1/2)."""
        skipped = f"; {self.skipped} without a pick" if self.skipped else ""
        if not self.results:
            return f"no picks{skipped}"
        wins, ties, losses = (self.results.count(value) for value in (1.0, 0.5, 0.0))
        share = wilson(sum(self.results), len(self.results))
        return (
            f"{self.names[0]} preferred to {self.names[1]}: {share.estimate:.1%} [{share.low:.1%}, {share.high:.1%}] of "
            f"{len(self.results)} picks ({wins} won, {ties} tied, {losses} lost; ties count 1/2){skipped}\nin {self.path}"
        )


def ballot_for(model: str, other: str, temperature: float, top_p: float) -> Ballot:
    """A ballot whose file lies in the run folder of `model`, or here. ValueError for equal names or an unwritable place."""
    if model == other:
        raise ValueError(f"--compare {other}: that is the model itself; name another one")
    path = picks_file(model)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"picks go to {path}, which cannot be written; copy the run to a folder that can")
    return Ballot((model, other), path, {"temperature": temperature, "top_p": top_p})


def picks_file(model: str) -> Path:
    """RUN/chat.jsonl where `model` is a run folder or the policy/ in one, otherwise chat.jsonl here."""
    path = Path(model).expanduser()
    for folder in (path, path.parent):
        if (folder / "config.yaml").is_file() and (folder / "policy" / "config.json").is_file():
            return folder / "chat.jsonl"
    return Path("chat.jsonl")


def _ask(read: Callable[[str], str]) -> float | None:
    """The pick as a preference for the first answer; None for a skip, also at Ctrl-C and at the end of the input."""
    while True:
        try:
            typed = read(QUESTION).lower()
        except (KeyboardInterrupt, EOFError):
            return None
        if typed in CHOICES:
            return CHOICES[typed]
        say("(type 1, 2, 0 or s)")
