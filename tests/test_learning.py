"""The learning table's harness: a row learns and its control does not, verdicts worked by hand, nothing run twice."""

from __future__ import annotations

import json
from collections import Counter
from itertools import chain
from typing import Any, get_args, get_type_hints

import pytest
import torch

import learning
from learning_labels import permute
from learning_report import verdict
from learning_rows import ROWS
from learning_tasks import Row, learn, task_of
from learning_world import Sizes, World
from tutelage.algorithms.reinforce import Reinforce
from tutelage.algorithms.sft import SFT
from tutelage.data.batch import Rollouts
from tutelage.data.stream import Stream
from tutelage.records import Answer
from tutelage.rewards.votes import final_answers
from tutelage.stages import prefer, reward, rl, sft

SMALL = Sizes(hidden=32, pretraining_steps=100, right=1.0, steps=20, prompts=16, answers=4, every=10, heldout=20)


def entry(ends: list[list[float]], controls: list[list[float]]) -> dict[str, Any]:
    """A row's file whose every start is 0.1, with a seed for each entry of `ends`."""
    seeds = {
        str(seed): {"seconds": 1.0, "trained": [[0, [0.1] * len(end)], [5, end]], "permuted": [[5, control]]}
        for seed, (end, control) in enumerate(zip(ends, controls, strict=True))
    }
    return {"row": "x", "command": "make learn", "commit": "c", "settings": {"command": "tutelage rl"}, "seeds": seeds}


def test_a_verdict_by_hand() -> None:
    # Gains of the seeds .2, .3, .4: mean .3, standard error .1 / sqrt 3, t(2) = 4.3027: .3 -+ .2484
    ends = [[0.3, 0.3], [0.2, 0.6], [0.5, 0.5]]
    found = verdict(entry(ends, [[0.1, 0.1]] * 3))
    assert found["gain"] == pytest.approx([0.3, 0.0516, 0.5484], abs=1e-4)
    assert found["learns"]
    assert not verdict(entry(ends, [[0.3, 0.3]] * 3))["learns"], "no better than with permuted rewards"
    assert not verdict(entry(ends[:2], [[0.1, 0.1]] * 2))["learns"], "two seeds are not enough"
    assert not verdict(entry([[0.1, 0.1], [0.2, 0.2], [0.9, 0.9]], [[0.1, 0.1]] * 3))["learns"], "one lucky seed"


def test_permuted_rewards_are_the_same_rewards_in_another_order() -> None:
    rewards = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    groups = [[Answer(f"{p}{g}") for g in range(4)] for p in range(3)]
    dealt = permute(rewards, groups, 1)
    assert sorted(chain(*dealt)) == sorted(chain(*rewards))
    assert dealt == permute(rewards, groups, 1)
    others = [permute(rewards, groups, seed) for seed in range(200)]
    first = sum(other[0][0] for other in others) / len(others)
    assert abs(first - 1 / 3) < 0.12, "every answer is as likely as any other to be dealt a reward"


def test_every_method_of_every_command_has_a_row() -> None:
    unions = {
        "rl": get_args(rl.Algorithm),
        "prefer": get_args(prefer.Algorithm),
        "reward": get_args(reward.Algorithm),
        "sft": get_args(get_args(get_type_hints(sft.Sft, include_extras=True)["algorithm"])[0]),
    }
    for command, methods in unions.items():
        assert {type(row.method) for row in ROWS if row.command == command} == set(methods), command
    assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.fixture(scope="module")
def world() -> World:
    return World.make(SMALL, 7, cache=None)


@pytest.mark.slow
def test_a_row_ends_above_its_control(world: World) -> None:
    row = Row("sft", "sft", SFT(), rate=3e-3)
    ends = {kind: learn(row, world, permuted=kind == "permuted") for kind in ("trained", "permuted")}
    trained, permuted = (sum(curve[-1][1]) / SMALL.heldout for curve in ends.values())
    assert [step for step, _ in ends["trained"]] == [0, 10, 20]
    assert ends["trained"][0] == ends["permuted"][0], "both begin with the same weights"
    assert trained > permuted + 0.02


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in ROWS if row.command == "reward"], ids=lambda row: row.name)
def test_every_scoring_row_has_a_batch_and_a_score(row: Row, world: World) -> None:
    """Its first batch is drawn, and its start is scored on every held-out item."""
    task, score = task_of(row, world, permuted=False)
    assert len(task.draw(0)[0]) == SMALL.prompts * SMALL.answers
    start = score()
    assert len(start) == SMALL.heldout * 18
    assert all(0 <= one <= 1 for one in start)


@pytest.mark.slow
def test_a_control_differs_from_its_row_in_the_rewards_alone(world: World) -> None:
    row = Row("rloo", "rl", Reinforce(group_size=4, baseline="leave_one_out"))
    (real, _), (dealt, _) = (task_of(row, world, permuted)[0].draw(0) for permuted in (False, True))
    assert isinstance(real, Rollouts)
    assert isinstance(dealt, Rollouts)
    assert torch.equal(real.answers.tokens, dealt.answers.tokens)
    assert sorted(real.rewards.tolist()) == sorted(dealt.rewards.tolist())
    assert 0 < real.rewards.sum() < len(real)
    assert not torch.equal(real.rewards, dealt.rewards)
    solved = [prompt.solution for prompt in Stream(world.training, SMALL.prompts, world.seed).draw(0)]
    for tokens, got, prompt in zip(real.answers.tokens.tolist(), real.rewards, real.answers.prompt_of, strict=True):
        assert float(got) == float(said(world, tokens) == solved[int(prompt)])


@pytest.mark.slow
def test_a_row_goes_on_seed_by_seed(tmp_path, monkeypatch, capsys) -> None:
    row, calls = Row("sft", "sft", SFT()), []

    def quick(row: Row, world: World, permuted: bool) -> list[tuple[int, list[float]]]:
        calls.append((world.seed, permuted))
        return [(0, [0.25]), (5, [0.25 if permuted else 0.75])]

    monkeypatch.setattr(learning, "learn", quick)
    monkeypatch.setattr(learning, "CACHE", None)
    sizes = Sizes(hidden=32, pretraining_steps=1)
    monkeypatch.setattr(learning, "SEEDS", (1,))
    learning.run_row(row, tmp_path, sizes=sizes)
    monkeypatch.setattr(learning, "SEEDS", (1, 2))
    learning.run_row(row, tmp_path, sizes=sizes)
    assert calls == [(1, False), (1, True), (2, False), (2, True)]
    with pytest.raises(ValueError, match=r"sft\.json: made with other settings; run it again with --redo"):
        learning.run_row(Row("sft", "sft", SFT(), rate=0.5), tmp_path, sizes=sizes)
    assert learning.main(["--report", "--results", str(tmp_path)]) == 0
    table = json.loads((tmp_path / "table.json").read_text())
    assert [(r["row"], r["start"], r["end"], r["permuted"], r["learns"]) for r in table["rows"]] == [
        ("sft", 0.25, 0.75, 0.25, False)
    ]
    assert "grpo" in table["not_run"]
    assert "| sft | `tutelage sft` | 0.25 | 0.75 | 0.25 |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "curves.png").stat().st_size > 5_000


def said(world: World, tokens: list[int]) -> str:
    """What a row of tokens says, up to its stop token."""
    stop = world.chat.stop_tokens[0]
    return world.chat.decode(tokens[: tokens.index(stop)] if stop in tokens else tokens)


def test_the_majority_is_the_label(world: World) -> None:
    """No solution is read: an answer earns 1 where its group gave it most often."""
    row = next(row for row in ROWS if row.name == "self_improvement")
    drawn, _ = task_of(row, world, permuted=False)[0].draw(0)
    assert isinstance(drawn, Rollouts)
    finals = final_answers([Answer(said(world, tokens)) for tokens in drawn.answers.tokens.tolist()])
    for prompt in set(drawn.answers.prompt_of.tolist()):
        rows = [i for i, one in enumerate(drawn.answers.prompt_of.tolist()) if one == prompt]
        winners = {finals[i] for i in rows if drawn.rewards[i] == 1}
        votes = Counter(finals[i] for i in rows if finals[i] is not None)
        assert len(winners) <= 1
        assert all(votes[winner] == max(votes.values()) for winner in winners)
    assert drawn.rewards.sum() > 0


def test_a_rewritten_answer_is_preferred_to_the_wrong_one(world: World) -> None:
    row = next(row for row in ROWS if row.name == "language_feedback")
    drawn, _ = task_of(row, world, permuted=False)[0].draw(0)
    told = {said(world, tokens) for tokens in drawn.chosen.tokens.tolist()}
    assert told <= {str(prompt.solution) for prompt in world.training}
    assert drawn.preference.unique().tolist() == [1.0]
    dealt, _ = task_of(row, world, permuted=True)[0].draw(0)
    assert dealt.preference.unique().tolist() == [0.0, 1.0]


def test_a_cooling_row_is_drawn_hot_first(world: World) -> None:
    row = next(row for row in ROWS if row.name == "temperature_schedule")
    source = task_of(row, world, permuted=False)[0].draw
    assert [round(source(step)[1]["sample/temperature"], 3) for step in (0, 19)] == [1.3, 0.8]
