"""Prompts, answers and rewards become one batch, and samples that a reader can follow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from tutelage.models.sampling import Decoding
from tutelage.records import Answer, user
from tutelage.training.rollouts import RolloutSource, rollouts

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
