"""The majority of a group as its label, by hand."""

from __future__ import annotations

import pytest

from tutelage.records import Answer, user
from tutelage.rewards.combine import combine
from tutelage.rewards.votes import majority, majority_answer


def votes(*texts: str, **settings: float) -> list[float]:
    return majority(user("6 x 7?", solution="41"), [Answer(text) for text in texts], **settings)


def test_the_commonest_final_answer_wins_whatever_the_solution_says():
    assert votes("so 42", "#### 42.0", "\\boxed{41}", "no idea") == [1, 1, 0, 0]
    assert votes("<answer>1,000</answer>", "it is 1000", "7") == [1, 1, 0]


def test_a_tie_a_single_vote_and_silence_decide_nothing():
    assert votes("1", "1", "2", "2", "3") == [0] * 5
    assert votes("1", "2", "3") == [0] * 3
    assert votes("1", "?", "?") == [0] * 3, "one vote is no majority"
    assert votes("?", "?") == [0, 0], "no final answer is no vote"


def test_a_quorum_is_of_all_answers():
    said = ("5", "5", "6", "?")
    assert votes(*said, quorum=0.5) == [1, 1, 0, 0]
    assert votes(*said, quorum=0.51) == [0] * 4
    assert majority_answer(["5", "5", None, None, None], 0.4) == "5"


def test_it_is_a_reward_by_name_with_its_setting():
    groups = [[Answer("2"), Answer("2"), Answer("3")]]
    with combine(["majority(quorum=0.6)=2"]) as reward:
        reward.check([user("1+1?")])  # needs no solution
        assert reward([user("1+1?")], groups) == [[2.0, 2.0, 0.0]]
    with combine(["majority(quorum=0.7)"]) as reward:
        assert reward([user("1+1?")], groups) == [[0.0, 0.0, 0.0]]
    with pytest.raises(ValueError, match="majority: cannot take quorum=-1"):
        combine(["majority(quorum=-1)"])
