"""A buffer of fresh answers in people's queue: topped up as they judge, emptied when the policy moves. It knows no model."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tutelage.feedback.client import Queue, Votes
from tutelage.records import Prompt

SAME_IN_A_ROW = 50
"""So many prompts whose answers are all alike, one after the other: this policy gives people nothing to choose."""
AT_ONCE = 8
"""Prompts answered in one go: the first of them reach people before the last are wanted."""
Reply = Callable[[Sequence[Prompt], str], list[list[str]]]
"""Prompts and the name of the draw -> several answers to each; equal names give equal answers."""


@dataclass
class Buffer:
    """Keeps `size` items of `version` waiting in `project`. The n-th prompt of a version has one key and one draw.

    So a worker that was killed and started again adds nothing twice: it passes over what was judged, and the queue keeps
    the answers that it has of a key.
    """

    queue: Queue
    project: int
    prompts: Sequence[Prompt]
    reply: Reply
    policy: str
    size: int = 20
    overlap: int = 1
    seed: int = 0
    version: int = 0
    votes: Votes = field(default_factory=Votes)
    _next: int = 0
    _waiting: set[str] = field(default_factory=set)
    _alike: int = 0

    def move(self, version: int) -> int:
        """The policy is another one now: items of older versions are handed out no more (their judgments stay); how many."""
        assert version >= self.version, "versions only grow: the queue compares them"
        self.version, self._next, self._waiting = version, 0, set()
        return self.queue.withdraw(self.project, before_step=version)

    def top_up(self) -> int:
        """Look what was judged and add what is missing, at most `AT_ONCE` items; how many. Raises ValueError where the
        policy says the same again and again."""
        self.votes.feed(self.queue.events(self.project, self.votes.last))
        said = self.votes.by_key()
        self._waiting = {key for key in self._waiting if len(said.get(key, ())) < self.overlap}
        numbers = []
        while len(numbers) < min(AT_ONCE, self.size - len(self._waiting)):
            if len(said.get(self.key(self._next), ())) < self.overlap:
                numbers.append(self._next)
            self._next += 1
        items = self._items(numbers) if numbers else []
        if items:
            self.queue.add(self.project, items)
            self._waiting |= {one["key"] for one in items}
        return len(items)

    def key(self, number: int) -> str:
        """The key of the n-th item of the present version."""
        return f"live/{self.version}/{self.seed}/{number}"

    def prompt(self, number: int) -> Prompt:
        """The n-th prompt of an endless stream, each pass in an order of its own."""
        turn, place = divmod(number, len(self.prompts))
        order = list(range(len(self.prompts)))
        random.Random(f"{self.seed}/{turn}").shuffle(order)
        return self.prompts[order[place]]

    def _items(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        prompts = [self.prompt(number) for number in numbers]
        replies = self.reply(prompts, f"{self.seed}/{self.version}/{numbers[0]}")
        items = []
        for number, prompt, texts in zip(numbers, prompts, replies, strict=True):
            different = list(dict.fromkeys(text.replace("\x00", "\u2400") for text in texts))
            self._alike = 0 if len(different) == len(texts) else self._alike + 1
            if len(different) == len(texts):
                items.append(self._item(number, prompt, different))
        if self._alike >= SAME_IN_A_ROW:
            raise ValueError(
                f"{self.policy} gives equal answers to {self._alike} prompts in a row; raise --live.temperature"
            )
        return items

    def _item(self, number: int, prompt: Prompt, texts: Sequence[str]) -> dict[str, Any]:
        origin = {"policy": self.policy, "version": self.version}
        return {
            "key": self.key(number),
            "prompt": [{"role": m.role, "content": m.content} for m in prompt.messages],
            "responses": [{"text": text, "origin": origin} for text in texts],
            "category": prompt.category,
            "policy_step": self.version,
        }
