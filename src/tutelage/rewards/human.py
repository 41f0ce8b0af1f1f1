"""People's rankings as rewards: every group of answers goes to their queue, and training waits for what they say."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutelage.console import track, warn
from tutelage.feedback.client import Event, Queue, Votes
from tutelage.feedback.http import UnreachableError
from tutelage.feedback.items import SIZES
from tutelage.feedback.payloads import Task
from tutelage.records import Answer, Prompt, read_jsonl, write_jsonl
from tutelage.rewards.base import Grid, Scored

MOST_ANSWERS = SIZES["ranking"][1]


class UnjudgedError(Exception):
    """The deadline passed, or a stop was asked for, before people had judged a whole step."""


def borda(ranks: Sequence[int], none_acceptable: bool = False) -> list[float]:
    """One person's ranking as rewards: the share of the other answers that each one beats, ties one half (Borda 1781).

    In [0, 1], mean 1/2: an unbiased reading of "how probably is this answer preferred to another one of the policy's".
    Where the person says that none is acceptable, all lose 1/2. Ranks are 1 for the best; one answer alone has 0.
    """
    others = len(ranks) - 1
    if others < 1:
        return [0.0] * len(ranks)
    down = 0.5 if none_acceptable else 0.0
    return [(sum(r > mine for r in ranks) + 0.5 * (ranks.count(mine) - 1)) / others - down for mine in ranks]


def ranks_said(event: Event) -> tuple[list[int], bool]:
    """(the rank of each answer in the order in which they were sent, whether none is acceptable) of a judgment."""
    payload = event["payload"]
    if event["task"] == "preference":
        shown = {"first": [1, 2], "second": [2, 1]}.get(payload["choice"], [1, 1])
        none = payload["choice"] == "both_bad"
    else:
        shown, none = payload["ranks"], bool(payload.get("none_acceptable"))
    ranks = [0] * len(shown)
    for place, index in enumerate(event["permutation"]):
        ranks[index] = shown[place]
    return ranks, none


def mean_reward(events: Sequence[Event]) -> list[float]:
    """The mean of several people's `borda`."""
    said = [borda(*ranks_said(event)) for event in events]
    return [sum(column) / len(column) for column in zip(*said, strict=True)]


@dataclass(frozen=True)
class Question:
    """A prompt's different answers as an item. Its key names run, step, prompt and the very answers.

    So a resumed run, which draws the same answers again, finds its item and what was said of it; other answers are
    another item, and nobody's judgment is ever taken for a text that was not shown.
    """

    key: str
    prompt: Prompt
    answers: tuple[Answer, ...]
    places: tuple[int, ...]
    """For each answer of the group, its number among the different ones."""

    @staticmethod
    def of(run: str, step: int, prompt: Prompt, group: Sequence[Answer]) -> Question:
        """What people are asked of a group; equal answers are shown once and share their reward."""
        different: dict[str, Answer] = {}
        for answer in group:
            different.setdefault(shown(answer.text), answer)
        texts = list(different)
        asked = [[[m.role, m.content] for m in prompt.messages], texts]
        digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]
        places = tuple(texts.index(shown(answer.text)) for answer in group)
        return Question(f"{run[:60]}/{step}/{digest}", prompt, tuple(different.values()), places)

    def item(self, run: str, step: int) -> dict[str, Any]:
        """The body for /api/v1/items; who answered is never shown."""
        origin = {"policy": run, "step": step}
        return {
            "key": self.key,
            "prompt": [{"role": m.role, "content": shown(m.content)} for m in self.prompt.messages],
            "responses": [{"text": shown(answer.text), "origin": origin} for answer in self.answers],
            "category": self.prompt.category,
            "policy_step": step,
        }


def shown(text: str) -> str:
    """The text as a page and a database can carry it: a NUL character, which a sampled answer may hold, as its symbol."""
    return text.replace("\x00", "\u2400")


@dataclass
class HumanReward:
    """Asks people, waits, and writes what it used into a ledger, from which a resumed run takes the same numbers again."""

    queue: Queue
    project: int
    run: str
    ledger: Path
    overlap: int = 1
    deadline: float = 86400.0
    """Seconds that a step waits."""
    fallback: Callable[[Any, Any], Grid] | None = None
    """Scores [P][G] of a judge that speaks for people at the deadline; None: the step is not drawn."""
    stop: Callable[[], bool] = lambda: False
    poll: float = 1.0
    """Seconds between two looks."""
    votes: Votes = field(default_factory=Votes)

    def ask(self, step: int, prompts: Sequence[Prompt], groups: Sequence[Sequence[Answer]]) -> Scored:
        """Rewards [P][G] of a step; the flag `fallback_share` is 1 where no person spoke. Raises UnjudgedError."""
        questions = [Question.of(self.run, step, p, group) for p, group in zip(prompts, groups, strict=True)]
        known = self.remembered()
        waiting = {q.key: q for q in questions if q.key not in known and len(q.answers) > 1}
        if waiting:
            self._wait(step, waiting)
            known |= {row["key"]: row for row in self._settled(step, waiting)}
            self._remember(known)
        values, by_judge = [], []
        for q in questions:
            row = known.get(q.key, {"rewards": [0.0], "by": "nobody"})  # equal answers: nothing to ask
            values.append([row["rewards"][place] for place in q.places])
            by_judge.append([float(row["by"] == "fallback")] * len(q.places))
        return Scored(values, {"fallback_share": by_judge})

    def remembered(self) -> dict[str, dict[str, Any]]:
        """The ledger by key: {"key", "step", "by", "rewards", "judgments"}."""
        return {row["key"]: row for row in read_jsonl(self.ledger)} if self.ledger.exists() else {}

    def _remember(self, known: Mapping[str, dict[str, Any]]) -> None:
        """The ledger anew, whole or not at all."""
        part = self.ledger.with_name(f".{self.ledger.name}.writing")
        write_jsonl(part, known.values())
        part.replace(self.ledger)

    def _wait(self, step: int, waiting: Mapping[str, Question]) -> None:
        """Until every item has its judgments. Past the deadline with a fallback it returns, without it raises."""
        began, sent, seen, told = time.monotonic(), False, 0, False
        with track(len(waiting) * self.overlap, f"step {step}: waiting for people", "judgment") as bar:
            while True:
                try:
                    if not sent:
                        self.queue.add(self.project, [q.item(self.run, step) for q in waiting.values()])
                        sent = True
                    self.votes.feed(self.queue.events(self.project, self.votes.last))
                except UnreachableError as error:
                    if not told:
                        warn(f"{error}; trying again until the deadline")
                    told = True
                said = self.votes.by_key()
                counts = [min(self.overlap, len(said.get(key, ()))) for key in waiting]
                bar.advance(sum(counts) - seen, groups=f"{counts.count(self.overlap)} of {len(counts)}")
                seen = sum(counts)
                if seen == len(waiting) * self.overlap:
                    return
                late = time.monotonic() - began > self.deadline
                if late and self.fallback is not None:
                    return
                if late or self.stop():
                    why = "the deadline has passed" if late else "a stop was asked for"
                    raise UnjudgedError(
                        f"{why} with {seen} of {len(waiting) * self.overlap} judgments; people may go on judging, and "
                        "the resumed run finds what they said"
                    )
                time.sleep(self.poll)

    def _settled(self, step: int, waiting: Mapping[str, Question]) -> list[dict[str, Any]]:
        """A ledger row for each item; one that nobody judged in time is withdrawn and the fallback speaks."""
        rows, missing, said = [], [], self.votes.by_key()
        for q in waiting.values():
            events = said.get(q.key, [])
            row = {"key": q.key, "step": step, "by": "people", "judgments": [event["seq"] for event in events]}
            if events:
                rows.append(row | {"rewards": mean_reward(events)})
            else:
                rows.append(row | {"by": "fallback", "rewards": self._fallback(q)})
                missing.append(q.key)
        if missing:
            warn(f"step {step}: the fallback judge speaks for {len(missing)} of {len(waiting)} groups")
            try:
                self.queue.withdraw(self.project, missing)
            except UnreachableError as error:  # they stay in the queue; their judgments will not be used
                warn(str(error))
        return rows

    def _fallback(self, q: Question) -> list[float]:
        assert self.fallback is not None, "without a fallback the wait raises"
        scores = self.fallback([q.prompt], [list(q.answers)])[0]
        return borda([1 + sum(other > score for other in scores) for score in scores])


@dataclass(frozen=True)
class AtStep:
    """`HumanReward` as a reward of one step, to stand in a weighted sum."""

    human: HumanReward
    step: int

    def measure(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Answer]]) -> Scored:
        """See `HumanReward.ask`."""
        return self.human.ask(self.step, prompts, groups)

    def close(self) -> None:
        """Nothing to end."""


def task_for(group_size: int) -> Task:
    """What people do with a group: prefer one of two, or rank. Raises ValueError for a size that no screen shows."""
    if not 2 <= group_size <= MOST_ANSWERS:
        raise ValueError(
            f"reward human: people compare 2 to {MOST_ANSWERS} answers to a prompt; got group_size {group_size}"
        )
    return "preference" if group_size == 2 else "ranking"
