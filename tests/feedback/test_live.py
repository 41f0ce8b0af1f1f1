"""A buffer of fresh answers: filled, topped up as people judge, emptied when the policy moves, nothing twice after a restart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from tutelage.feedback.live import AT_ONCE, SAME_IN_A_ROW, Buffer
from tutelage.records import Prompt, user

PROMPTS = [user(f"question {n}") for n in range(3)]


@dataclass
class FakeQueue:
    """Items by key in memory, and judgments that the test makes."""

    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    withdrawn: set[str] = field(default_factory=set)

    def project(self, name: str, task: Any, overlap: int, instructions: str = "") -> int:
        return 1

    def add(self, project: int, items: Sequence[dict[str, Any]]) -> None:
        for item in items:
            self.items.setdefault(item["key"], item)

    def events(self, project: int, after: int) -> list[dict[str, Any]]:
        return [one for one in self.log if one["seq"] > after]

    def withdraw(self, project: int, keys: Sequence[str] = (), before_step: int | None = None) -> int:
        gone = {k for k, one in self.items.items() if before_step is not None and one["policy_step"] < before_step}
        fresh = gone - self.withdrawn
        self.withdrawn |= gone
        return len(fresh)

    def judge(self, key: str) -> None:
        """Somebody judged it."""
        plain = {"kind": "judgment", "supersedes": None, "held_out": False, "repeat_of": None}
        self.log.append({"seq": len(self.log) + 1, "key": key, "payload": {}, "permutation": [0, 1], **plain})


def reply(prompts: Sequence[Prompt], name: str) -> list[list[str]]:
    """Two answers a prompt that say which draw they are of."""
    return [[f"{name} a", f"{name} b"] for _ in prompts]


def buffer(queue: FakeQueue, **settings: Any) -> Buffer:
    """Four items wait."""
    return Buffer(queue, 1, PROMPTS, reply, "a policy", **{"size": 4} | settings)


def test_it_fills_once_and_then_replaces_what_was_judged() -> None:
    queue = FakeQueue()
    made = buffer(queue)
    made.move(7)
    assert (made.top_up(), made.top_up()) == (4, 0)
    assert list(queue.items) == [f"live/7/0/{n}" for n in range(4)]
    assert all(one["policy_step"] == 7 for one in queue.items.values())
    queue.judge("live/7/0/1")
    queue.judge("live/7/0/2")
    assert made.top_up() == 2
    assert list(queue.items)[4:] == ["live/7/0/4", "live/7/0/5"]


def test_an_item_waits_until_its_overlap_is_full() -> None:
    queue = FakeQueue()
    made = buffer(queue, overlap=2)
    made.move(1)
    made.top_up()
    queue.judge("live/1/0/0")
    assert made.top_up() == 0
    queue.judge("live/1/0/0")
    assert made.top_up() == 1


def test_when_the_policy_moves_old_items_go_and_judgments_stay() -> None:
    queue = FakeQueue()
    made = buffer(queue)
    made.move(1)
    made.top_up()
    queue.judge("live/1/0/0")
    assert made.move(2) == 4  # the judged one too: it needs nobody any more
    assert made.top_up() == 4
    assert {one["policy_step"] for key, one in queue.items.items() if key not in queue.withdrawn} == {2}
    assert len(queue.log) == 1


def test_a_worker_started_again_adds_nothing_twice() -> None:
    queue = FakeQueue()
    first = buffer(queue)
    first.move(1)
    first.top_up()
    queue.judge("live/1/0/0")
    before = dict(queue.items)
    second = buffer(queue)
    second.move(1)
    second.top_up()
    assert {key: queue.items[key] for key in before} == before, "texts that people may have seen were changed"
    assert set(queue.items) - set(before) == {"live/1/0/4"}


def test_every_pass_shows_every_prompt_once() -> None:
    made = buffer(FakeQueue())
    for turn in range(4):
        asked = [made.prompt(3 * turn + n).messages[0].content for n in range(3)]
        assert sorted(asked) == [f"question {n}" for n in range(3)]


def test_a_large_buffer_is_filled_in_parts_and_equal_answers_are_left_out() -> None:
    queue = FakeQueue()
    made = buffer(queue, size=100)
    made.move(1)
    assert made.top_up() == AT_ONCE
    made.reply = lambda prompts, name: [["same", "same"] if n % 2 else ["x", "y"] for n, _ in enumerate(prompts)]
    assert made.top_up() == AT_ONCE // 2


def test_a_policy_that_always_says_the_same_is_an_error() -> None:
    made = buffer(FakeQueue(), size=AT_ONCE)
    made.reply = lambda prompts, name: [["same", "same"] for _ in prompts]
    made.move(1)
    while made._alike < SAME_IN_A_ROW - AT_ONCE:
        assert made.top_up() == 0
    with pytest.raises(ValueError, match=r"equal answers to \d+ prompts.*raise --live.temperature"):
        made.top_up()
