"""GRESO's filter: who is skipped how often, what replaces it, and a history that a resumed run reads back."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from tutelage.models.drawing import Decoding
from tutelage.records import Answer, Prompt, user
from tutelage.training.prompt_filter import AWAY, HISTORY, Greso, PromptFilter
from tutelage.training.rollouts import RolloutSource

ON = Greso(on=True)


def prompts(*names: str) -> list[Prompt]:
    return [user(name, id=name) for name in names]


def taught(history: PromptFilter, step: int, **rewards: list[float]) -> None:
    """A step in which the named prompts' answers earned this."""
    history.record(step, prompts(*rewards), list(rewards.values()))


def test_a_streak_grows_while_a_prompt_teaches_nothing_and_ends_when_it_does():
    history = PromptFilter(ON, 0)
    taught(history, 0, easy=[1.0, 1.0], hard=[0.0, 0.0], good=[0.0, 1.0])
    taught(history, 1, easy=[1.0, 1.0], hard=[1.0, 0.0], good=[0.5, 0.5])
    assert history.streak == {"easy": (2, "easy"), "hard": (0, "differ"), "good": (1, "hard")}
    chances = [history.chance(one) for one in prompts("easy", "hard", "good", "new")]
    assert chances == [0.75, 0.0, 0.5, 0.0]
    history.exploration["easy"] = 0.9
    assert history.chance(prompts("easy")[0]) == pytest.approx(0.19)


def test_prompts_are_skipped_as_often_as_the_formula_says():
    """z = 2 at p_e = 1/2: 3 of 4 are skipped; 400 steps, five standard deviations of 0.022 either way."""
    history = PromptFilter(ON, 7)
    for step in range(2):
        taught(history, step, dull=[0.0, 0.0])
    answered = sum(
        "dull"
        in {
            p.key
            for p in history.choose(step, lambda place: prompts("dull") if place < AWAY else prompts(f"other {place}"))[
                0
            ]
        }
        for step in range(400)
    )
    assert abs(answered / 400 - 0.25) < 0.11


def test_skipped_prompts_are_replaced_and_the_step_stays_as_large():
    history = PromptFilter(replace(ON, exploration=0.05), 0)
    for step in range(4):
        taught(history, step, dull=[0.0, 0.0], grey=[1.0, 1.0])
    chosen, metrics = history.choose(
        9,
        lambda place: (
            prompts("dull", "good", "grey") if place == 9 else prompts("good", f"more {place // AWAY}", "grey")
        ),
    )
    assert [p.key for p in chosen] == ["good", "more 1", "more 2"], "nobody comes twice, and the stream goes on"
    assert metrics["sample/skipped"] == pytest.approx(2 / 5)
    nothing_else = history.choose(10, lambda place: prompts("dull", "grey"))[0]
    assert {p.key for p in nothing_else} == {"dull", "grey"}, "where there is nothing else they are taken after all"


def test_exploration_moves_towards_the_target_once_prompts_come_again():
    """Targets 1/12 too easy and 1/6 too hard. Of four prompts two are too hard and none too easy: less and more exploration."""
    history = PromptFilter(ON, 0)
    step = {"a": [0.0, 0.0], "b": [0.0, 0.0], "c": [0.0, 1.0], "d": [0.0, 1.0]}
    history.choose(0, lambda place: prompts(*step))
    taught(history, 0, **step)
    assert history.exploration == {"easy": 0.5, "hard": 0.5}, "a first pass skips nothing and adjusts nothing"
    history.choose(1, lambda place: prompts(*step))
    taught(history, 1, **step)
    assert history.exploration == {"easy": pytest.approx(0.51), "hard": pytest.approx(0.49)}


def a_run(history: PromptFilter, first: int, last: int) -> list[list[str]]:
    """The prompts of steps first .. last - 1; what a group earns is decided by the step and the prompt."""
    every, asked = [f"p{n}" for n in range(6)], []
    for step in range(first, last):
        chosen, _ = history.choose(step, lambda place: prompts(*random.Random(f"{place}").sample(every, 3)))
        rewards = [[float(random.Random(f"{p.key}/{step // 4}/{g}").random() < 0.3) for g in range(2)] for p in chosen]
        history.record(step, chosen, rewards)
        asked.append([p.key for p in chosen])
    return asked


def test_a_resumed_run_skips_the_same(tmp_path):
    """Killed in step 12, behind a checkpoint of step 8: what was recorded since is cut off, half a line too."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    undisturbed = PromptFilter(ON, 3).within(tmp_path / "whole", 0)
    whole = a_run(undisturbed, 0, 20)
    a_run(PromptFilter(ON, 3).within(tmp_path / "broken", 0), 0, 12)
    with (tmp_path / "broken" / HISTORY).open("a") as file:
        file.write('{"step": 12, "asked_ag')
    resumed = PromptFilter(ON, 3).within(tmp_path / "broken", 8)
    assert a_run(resumed, 8, 20) == whole[8:]
    assert resumed.streak == undisturbed.streak
    assert resumed.exploration == undisturbed.exploration
    assert (tmp_path / "broken" / HISTORY).read_text() == (tmp_path / "whole" / HISTORY).read_text()
    assert [json.loads(line)["step"] for line in (tmp_path / "whole" / HISTORY).read_text().splitlines()] == list(
        range(20)
    )
    unfiltered = a_run(PromptFilter(replace(ON, exploration=0.95), 3), 0, 20)
    assert unfiltered != whole, "something was skipped"


class Lottery:
    """A sampler whose answers are numbered."""

    def sample(self, prompts, answers, decoding, seed):
        return [[Answer(f"{g}", (p[0], g + 1), (-0.5, -0.1)) for g in range(answers)] for p in prompts]


def source(rewards: dict[str, list[float]], said: list, **options) -> RolloutSource:
    return RolloutSource(
        draw_prompts=lambda step: prompts(*rewards),
        encode=lambda prompt: [7],
        sampler=Lottery(),
        score=lambda asked, groups: ([rewards[p.key] for p in asked], {"part": [rewards[p.key] for p in asked]}),
        decoding=Decoding(4),
        group_size=4,
        seed=0,
        keep_samples=lambda step, rows: said.extend(rows),
        **options,
    )


def test_pods_trains_on_the_most_unlike_answers_and_logs_all():
    said: list = []
    batch, metrics = source({"a": [0.5, 0.0, 0.4, 1.0], "b": [0.0, 0.0, 1.0, 0.0]}, said, kept=2)(0)
    assert batch.rewards.tolist() == [0.0, 1.0, 0.0, 1.0]
    assert batch.answers.tokens[:, 1].tolist() == [2, 4, 1, 3], "the second and fourth of a, the first and third of b"
    assert batch.answers.prompt_of.tolist() == [0, 0, 1, 1]
    assert metrics["reward/sampled"] == pytest.approx((0.5 + 0.4 + 1.0 + 1.0) / 8)
    assert [[answer["reward"] for answer in row["answers"]] for row in said] == [
        [0.5, 0.0, 0.4, 1.0],
        [0.0, 0.0, 1.0, 0.0],
    ]


def test_a_source_learns_from_every_group_that_was_answered():
    """Also from those that dynamic sampling replaced: they are the ones that taught nothing."""
    history = PromptFilter(ON, 0)
    rewards = {"a": [0.0] * 4, "b": [0.0, 0.0, 1.0, 0.0]}
    _, metrics = source(rewards, [], filter=history, attempts=1)(0)
    assert history.streak == {"a": (2, "hard"), "b": (0, "differ")}, (
        "a, answered again in its own place, was dull twice"
    )
    assert metrics["sample/skipped"] == 0
    assert metrics["sample/explore_hard"] == 0.5
