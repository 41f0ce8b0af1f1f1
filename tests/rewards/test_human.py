"""People's rankings as rewards: Borda by hand, sides undone, undo and overlap, deadline, fallback, and finding items again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tutelage.feedback.http import UnreachableError
from tutelage.records import Answer, user
from tutelage.rewards.human import HumanReward, Question, UnjudgedError, borda, mean_reward, ranks_said, task_for

GROUP = [Answer("good"), Answer("bad"), Answer("good"), Answer("middling")]


@dataclass
class FakeQueue:
    """A queue in memory; `judge` is called at every look and may add events."""

    judge: Callable[[FakeQueue], None] = lambda queue: None
    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    withdrawn: list[str] = field(default_factory=list)
    looks: int = 0

    def project(self, name: str, task: Any, overlap: int, instructions: str = "") -> int:
        return 1

    def add(self, project: int, items: Sequence[dict[str, Any]]) -> None:
        for item in items:
            self.items.setdefault(item["key"], item)

    def events(self, project: int, after: int) -> list[dict[str, Any]]:
        self.looks += 1
        self.judge(self)
        return [one for one in self.log if one["seq"] > after]

    def withdraw(self, project: int, keys: Sequence[str] = (), before_step: int | None = None) -> int:
        self.withdrawn += keys
        return len(keys)

    def say(self, key: str, payload: Any, permutation: list[int], kind: str = "judgment", **more: Any) -> None:
        """One event."""
        plain = {"supersedes": None, "held_out": False, "repeat_of": None, "task": "ranking"}
        body = {"seq": len(self.log) + 1, "kind": kind, "key": key, "payload": payload, "permutation": permutation}
        self.log.append({**plain, **body, **more})


def reward(queue: FakeQueue, folder: Path, **settings: Any) -> HumanReward:
    """What a run of the name `run` asks with."""
    return HumanReward(queue, 1, "run", folder / "human.jsonl", **{"poll": 0.0, "deadline": 0.2} | settings)


def best_first(queue: FakeQueue) -> None:
    """Ranks good, middling, bad wherever they stand on the screen (shown in reverse)."""
    order = {"good": 1, "middling": 2, "bad": 3}
    for key, item in queue.items.items():
        if not any(one["key"] == key for one in queue.log):
            texts = [one["text"] for one in item["responses"]]
            shown = list(reversed(range(len(texts))))
            queue.say(key, {"ranks": [order[texts[i]] for i in shown]}, shown)


def test_borda_by_hand() -> None:
    assert borda([1, 2, 3, 4]) == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert borda([1, 2, 2, 4]) == pytest.approx([1, 0.5, 0.5, 0])  # of three others: 1 beaten and 1 tied = 1.5 / 3
    assert borda([1, 1]) == [0.5, 0.5]
    assert borda([1, 2], none_acceptable=True) == [0.5, -0.5]
    assert borda([1]) == [0.0]


@pytest.mark.parametrize(
    ("choice", "permutation", "expected"),
    [
        ("first", [0, 1], [1, 0]),
        ("first", [1, 0], [0, 1]),
        ("second", [1, 0], [1, 0]),
        ("tie", [1, 0], [0.5, 0.5]),
        ("both_bad", [0, 1], [0, 0]),
    ],
)
def test_pairs_with_their_sides_undone(choice: str, permutation: list[int], expected: list[float]) -> None:
    event = {"task": "preference", "payload": {"choice": choice}, "permutation": permutation}
    assert mean_reward([event]) == expected


def test_a_ranking_with_its_order_undone_and_two_people_averaged() -> None:
    first = {"task": "ranking", "payload": {"ranks": [1, 2, 3]}, "permutation": [2, 0, 1]}
    assert ranks_said(first) == ([2, 3, 1], False)
    second = {"task": "ranking", "payload": {"ranks": [1, 2, 3], "none_acceptable": True}, "permutation": [0, 1, 2]}
    assert mean_reward([first, second]) == pytest.approx([(0.5 + 0.5) / 2, (0 + 0) / 2, (1 - 0.5) / 2])


def test_a_step_asks_once_for_each_different_answer_and_gives_equal_ones_the_same(tmp_path: Path) -> None:
    queue = FakeQueue(best_first)
    scored = reward(queue, tmp_path).ask(3, [user("q"), user("same")], [GROUP, [Answer("x"), Answer("x")]])
    (item,) = queue.items.values()
    assert [one["text"] for one in item["responses"]] == ["good", "bad", "middling"]
    assert item["policy_step"] == 3
    assert scored.values == [[1.0, 0.0, 1.0, 0.5], [0.0, 0.0]]
    assert scored.flags == {"fallback_share": [[0.0] * 4, [0.0] * 2]}


def test_keys_name_run_step_prompt_and_answers() -> None:
    one = Question.of("run", 1, user("q"), GROUP)
    assert one.key == Question.of("run", 1, user("q"), GROUP).key
    others = [
        Question.of("other", 1, user("q"), GROUP),
        Question.of("run", 2, user("q"), GROUP),
        Question.of("run", 1, user("p"), GROUP),
        Question.of("run", 1, user("q"), GROUP[:2]),
    ]
    assert len({one.key, *(other.key for other in others)}) == 5
    assert (
        Question.of("run", 0, user("q"), [Answer("a\x00"), Answer("b")]).item("run", 0)["responses"][0]["text"] == "a␀"
    )


def test_at_the_deadline_nothing_is_drawn_and_later_the_items_are_found_again(tmp_path: Path) -> None:
    silent = FakeQueue()
    with pytest.raises(UnjudgedError, match="deadline has passed with 0 of 1"):
        reward(silent, tmp_path).ask(0, [user("q")], [GROUP])
    assert not (tmp_path / "human.jsonl").exists()
    best_first(silent)  # people go on while nothing runs
    assert len(silent.items) == 1
    assert reward(silent, tmp_path).ask(0, [user("q")], [GROUP]).values == [[1.0, 0.0, 1.0, 0.5]]
    assert len(silent.items) == 1, "the resumed run asked the same thing again"


def test_a_resumed_run_takes_the_numbers_that_it_used_before(tmp_path: Path) -> None:
    """The ledger, not the queue: whatever is said afterwards, the step is the same step."""
    queue = FakeQueue(best_first)
    before = reward(queue, tmp_path).ask(0, [user("q")], [GROUP])
    (key,) = queue.items
    queue.say(key, {}, [0, 1, 2], "undo", supersedes=1)
    queue.say(key, {"ranks": [3, 1, 2]}, [0, 1, 2])
    looks = queue.looks
    assert reward(queue, tmp_path).ask(0, [user("q")], [GROUP]) == before
    assert queue.looks == looks


def test_an_undo_a_skip_and_held_out_people_do_not_count(tmp_path: Path) -> None:
    def judge(queue: FakeQueue) -> None:
        (key,) = queue.items
        ranks = {"ranks": [1, 2, 3]}
        steps: list[Callable[[], None]] = [
            lambda: queue.say(key, ranks, [1, 0, 2]),
            lambda: queue.say(key, {}, [1, 0, 2], "undo", supersedes=1),
            lambda: queue.say(key, {"skip": "unclear"}, [0, 1, 2], "skip"),
            lambda: queue.say(key, ranks, [2, 1, 0], held_out=True),
            lambda: queue.say(key, ranks, [0, 2, 1]),
        ]
        if len(queue.log) < len(steps):
            steps[len(queue.log)]()

    def undone_at_once(queue: FakeQueue) -> None:
        while len(queue.log) < 4:
            judge(queue)
        if queue.looks > 1:
            judge(queue)

    queue = FakeQueue(undone_at_once)
    scored = reward(queue, tmp_path, deadline=5.0).ask(0, [user("q")], [[*GROUP[:2], GROUP[3]]])
    assert queue.looks == 2, "it did not wait for the judgment that counts"
    assert scored.values == [[1.0, 0.0, 0.5]]


def test_the_overlap_is_waited_for(tmp_path: Path) -> None:
    def judge(queue: FakeQueue) -> None:
        (key,) = queue.items
        queue.say(key, {"choice": ["first", "second"][len(queue.log) % 2]}, [0, 1], task="preference")

    queue = FakeQueue(judge)
    scored = reward(queue, tmp_path, overlap=2, deadline=5.0).ask(0, [user("q")], [GROUP[:2]])
    assert (queue.looks, scored.values) == (2, [[0.5, 0.5]])


def test_the_fallback_speaks_only_for_what_nobody_judged_and_is_counted(tmp_path: Path) -> None:
    def judge(queue: FakeQueue) -> None:
        if not queue.log:
            queue.say(next(iter(queue.items)), {"choice": "second"}, [0, 1], task="preference")

    queue = FakeQueue(judge)
    asked = reward(
        queue, tmp_path, fallback=lambda prompts, groups: [[float(len(a.text)) for a in row] for row in groups]
    )
    scored = asked.ask(0, [user("q"), user("p")], [[Answer("xx"), Answer("y")], [Answer("a"), Answer("bbb")]])
    assert scored.values == [[0.0, 1.0], [0.0, 1.0]]  # the person prefers y; the fallback the longer one
    assert scored.flags["fallback_share"] == [[0.0, 0.0], [1.0, 1.0]]
    assert queue.withdrawn == [list(queue.items)[1]]


def test_a_server_that_is_away_for_a_while_is_waited_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def judge(queue: FakeQueue) -> None:
        if queue.looks < 3:
            raise UnreachableError("the server does not answer")
        best_first(queue)

    queue = FakeQueue(judge)
    assert reward(queue, tmp_path, deadline=5.0).ask(0, [user("q")], [GROUP]).values == [[1.0, 0.0, 1.0, 0.5]]
    assert capfd.readouterr().err.count("trying again") == 1


def test_ctrl_c_while_people_are_awaited(tmp_path: Path) -> None:
    with pytest.raises(UnjudgedError, match="a stop was asked for"):
        reward(FakeQueue(), tmp_path, deadline=1e9, stop=lambda: True).ask(0, [user("q")], [GROUP])


@pytest.mark.parametrize("size", [1, 27])
def test_sizes_that_no_screen_shows(size: int) -> None:
    with pytest.raises(ValueError, match="2 to 26"):
        task_for(size)
    assert (task_for(2), task_for(26)) == ("preference", "ranking")
