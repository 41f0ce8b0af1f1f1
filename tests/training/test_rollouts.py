"""Prompts, answers and rewards become one batch, and samples that a reader can follow."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tutelage.data.batch import Rollouts
from tutelage.data.sampled import Sampled, StepRollouts
from tutelage.models.sampling import Decoding
from tutelage.records import Answer, user
from tutelage.training.rollouts import FAR, RolloutSource, rollouts

GROUPS = [
    [Answer("ab", (7, 8, 9), (-0.5, -1.0, -0.25), "stop"), Answer("c", (5,), (-2.0,), "length")],
    [Answer("", (9,), (-0.1,), "stop"), Answer("de", (1, 2), (-0.2, -0.3), "length")],
]


def test_rows_stand_in_prompt_order():
    batch = rollouts([[1, 2], [3]], GROUPS, [[1.0, 2.0], [3.0, 4.5]])
    assert batch.answers.prompts.tokens == ((1, 2), (3,))
    assert batch.answers.prompt_of.tolist() == [0, 0, 1, 1]
    assert batch.answers.tokens.tolist() == [[7, 8, 9], [5, 0, 0], [9, 0, 0], [1, 2, 0]]
    assert batch.answers.mask.sum(1).tolist() == batch.answers.lengths.tolist() == [3, 1, 1, 2]
    assert batch.rewards.tolist() == [1.0, 2.0, 3.0, 4.5]
    expected = [[-0.5, -1.0, -0.25], [-2.0, 0, 0], [-0.1, 0, 0], [-0.2, -0.3, 0]]
    assert batch.sampler_logprobs.tolist() == [pytest.approx(row) for row in expected]
    assert batch.finished.tolist() == [True, False, True, False]


def test_an_answer_without_tokens_keeps_its_row():
    batch = rollouts([[1]], [[Answer(""), Answer("x", (4,), (-1.0,))]], [[0.5, 1.0]])
    assert batch.answers.lengths.tolist() == [0, 1]
    assert not batch.answers.mask[0].any()
    assert batch.rewards.tolist() == [0.5, 1.0]


@dataclass
class Scripted:
    """A sampler that says what stands in `GROUPS` and remembers what it was asked."""

    asked: list[Any] = field(default_factory=list)

    def sample(self, prompts, answers, decoding, seed):
        self.asked.append((prompts, answers, decoding, seed))
        return GROUPS


def source(sampler: Scripted, kept: list, decoding: Decoding | None = None) -> RolloutSource:
    return RolloutSource(
        draw_prompts=lambda step: [user(f"first {step}"), user("second")],
        encode=lambda prompt: [len(prompt.text)],
        sampler=sampler,
        score=lambda prompts, groups: (
            [[float(len(a.text)) for a in group] for group in groups],
            {"length": [[float(len(a.text)) for a in group] for group in groups]},
        ),
        decoding=decoding or Decoding(7, 0.8),
        group_size=2,
        seed=3,
        keep_samples=lambda step, rows: kept.append((step, rows)),
    )


def test_a_step_draws_from_its_own_seed_and_keeps_what_was_said():
    sampler, kept = Scripted(), []
    batch, metrics = source(sampler, kept)(12)
    assert sampler.asked == [([[8], [6]], 2, Decoding(7, 0.8), "3/12")]
    assert batch.rewards.tolist() == [2.0, 1.0, 0.0, 2.0]
    assert metrics["reward/length"] == 1.25
    assert {"time/sample", "time/reward", "answer/tokens_per_second"} <= metrics.keys()
    ((step, (first, second)),) = kept
    assert step == 12
    assert first["prompt"] == [{"role": "user", "content": "first 12"}]
    assert second["answers"][1] == {"text": "de", "stop_reason": "length", "reward": 2.0, "parts": {"length": 2.0}}


@pytest.mark.parametrize("decoding", [Decoding(top_p=0.9), Decoding(min_p=0.1)])
def test_truncated_sampling_is_refused(decoding):
    with pytest.raises(ValueError, match="top-p and min-p truncate"):
        source(Scripted(), [], decoding)


def test_greedy_sampling_is_refused():
    with pytest.raises(ValueError, match="temperature 0 always gives the same answer"):
        source(Scripted(), [], Decoding(temperature=0.0))


@dataclass
class Lottery:
    """A sampler whose answers begin with the prompt's number; what it was asked is kept."""

    asked: list[str] = field(default_factory=list)

    def sample(self, prompts, answers, decoding, seed):
        self.asked.append(f"{seed} at {decoding.temperature:g}")
        return [[Answer(f"{p[0]}-{g}", (p[0], 9), (-0.5, -0.1)) for g in range(answers)] for p in prompts]


def resampling(attempts: int, sampler: Lottery, **options: Any) -> RolloutSource:
    """Prompts of step s are s + 10 and s + 20, of its first attempt s + 30 and s + 40; only numbers above 35 differ."""

    def prompts(step: int) -> list[Any]:
        tries, place = divmod(step, FAR)
        return [user(str(place + 20 * tries + 10 * n)) for n in (1, 2)]

    def score(prompts, groups):
        rewards = [
            [float(g) if int(prompt.text) > 35 else 0.7 for g in range(len(group))]
            for prompt, group in zip(prompts, groups, strict=True)
        ]
        return rewards, {"score": rewards}

    return RolloutSource(
        prompts, lambda prompt: [int(prompt.text)], sampler, score, Decoding(7, 0.8), 2, 3,
        lambda step, rows: None, attempts=attempts, **options,
    )  # fmt: skip


def test_groups_that_teach_nothing_are_replaced_until_none_is_left():
    """Step 4: 14 and 24 are constant; attempt 1 gives 34 (constant too) and 44; attempt 2 gives 54 for the first place."""
    sampler = Lottery()
    batch, metrics = resampling(5, sampler)(4)
    assert sampler.asked == ["3/4 at 0.8", "3/4/attempt 1 at 0.8", "3/4/attempt 2 at 0.8"]
    assert batch.answers.prompts.tokens == ((54,), (44,))
    assert batch.answers.tokens[:, 0].tolist() == [54, 54, 44, 44]
    assert batch.rewards.tolist() == [0.0, 1.0, 0.0, 1.0]
    assert metrics["sample/attempts"] == 2
    assert metrics["sample/replaced"] == 1.5, "two groups and one, of two"
    assert metrics["reward/score"] == 0.5
    again, _ = resampling(5, Lottery())(4)
    assert again.answers.tokens.tolist() == batch.answers.tokens.tolist(), "(seed, step) decides it all"


def test_what_the_attempts_leave_stays():
    batch, metrics = resampling(1, Lottery())(4)
    assert batch.answers.prompts.tokens == ((34,), (44,))
    assert batch.rewards.tolist() == [*[pytest.approx(0.7)] * 2, 0.0, 1.0]
    assert metrics["sample/attempts"] == 1
    sampler = Lottery()
    batch, metrics = resampling(0, sampler)(4)
    assert (len(sampler.asked), batch.answers.prompts.tokens) == (1, ((14,), (24,)))
    assert "sample/attempts" not in metrics


def drawn_at(batch: Rollouts) -> tuple[float, ...]:
    assert isinstance(batch.answers, Sampled)
    return batch.answers.temperature


def test_a_step_has_its_own_temperature_and_its_rows_remember_it():
    sampler = Lottery()
    first, metrics = resampling(0, sampler, temperature=lambda step: 1.0 + step / 10)(2)
    assert sampler.asked == ["3/2 at 1.2"]
    assert metrics["sample/temperature"] == 1.2
    assert drawn_at(first) == (1.2,) * 4
    assert drawn_at(first[[3, 0]]) == (1.2, 1.2)
    assert drawn_at(resampling(0, Lottery())(2)[0]) == (0.8,) * 4


def test_steps_values_and_measures_come_with_the_samples():
    kept: list[Any] = []
    source = replace(
        resampling(0, Lottery()),
        keep_samples=lambda step, rows: kept.extend(rows),
        score_steps=lambda prompts, groups: [[[(1, 0.25), (2, float(g))] for g in range(2)] for _ in prompts],
        read_out=lambda batch: [[["x", 0.5], ["y", float(row)]] for row in range(len(batch))],
        measure=lambda drawn: {"seen": float(len(drawn.prompts))},
    )
    batch, metrics = source(0)
    assert isinstance(batch, StepRollouts)
    assert batch.steps.tolist() == [[True, True]] * 4
    assert batch.step_rewards.tolist() == [[0.25, 0.0], [0.25, 1.0]] * 2
    assert metrics["seen"] == 2
    assert kept[1]["answers"][0]["values"] == [["x", 0.5], ["y", 2.0]]
    assert kept[1]["answers"][1]["steps"] == [(1, 0.25), (2, 1.0)]
