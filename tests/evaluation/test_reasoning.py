"""Accuracy, majority, pass@K, length and reflection words, counted by hand."""

from __future__ import annotations

import pytest

from tutelage.evaluation.reasoning import majority_accuracy, reasoning_metrics, reflection_rate
from tutelage.records import Answer
from tutelage.rewards.votes import final_answers


def said(*texts: str) -> list[Answer]:
    return [Answer(text, tuple(range(len(text)))) for text in texts]


def test_final_answers_are_compared_by_value():
    found = final_answers(
        said("so <answer> 1,000 </answer>", "it is 1000.", "#### 1000", "half: \\boxed{\\frac{1}{2}}", "?")
    )
    assert found[0] == found[1] == found[2] == "1000"
    assert found[3] == "1/2"
    assert found[4] is None
    assert final_answers(said("<answer>5</answer> no <answer>x  y</answer>", "50%")) == ["x y", "50%"]


def test_the_majority_by_hand():
    assert majority_accuracy(["4", "4", "5"], [True, True, False]) == 1.0
    assert majority_accuracy(["4", "5", "5"], [True, False, False]) == 0.0
    assert majority_accuracy(["4", "5", "6", None], [True, False, False, False]) == pytest.approx(1 / 3)
    assert majority_accuracy(["4", None, None, None], [True, False, False, False]) == 1.0, "silence does not vote"
    assert majority_accuracy([None], [False]) == 0.0


def test_reflection_words_of_a_thousand():
    """`wait`, `wrong`, `but` and `check` of 9 words (3 is none); `checked` and `waiting` are other words."""
    assert reflection_rate(["Wait, 3 is wrong?", "but I checked it, check waiting"]) == pytest.approx(4000 / 9)
    assert reflection_rate(["", "42"]) == 0.0


def test_the_metrics_of_two_prompts():
    groups = [said("4", "4", "no 5"), said("7", "8", "9")]
    found = reasoning_metrics(groups, [[True, True, False], [False, False, False]])
    assert found == {
        "accuracy": pytest.approx(1 / 3),
        "maj_at_k": 0.5,
        "pass_at_k": 0.5,
        "length": (1 + 1 + 4 + 3) / 6,
        "reflection": 0.0,
    }
