"""What evaluation says beside its numbers."""

import pytest

from tutelage.stages.evaluate import length_warning


def found(ours: float, theirs: float) -> dict[str, dict[str, float]]:
    return {"policy": {"words": ours}, "against": {"words": theirs}}


@pytest.mark.parametrize(("ours", "theirs"), [(0.4, 34.8), (34.8, 0.4), (10.0, 20.1), (0.0, 1.0)])
def test_answers_of_very_different_lengths_are_said_aloud(ours, theirs):
    """A policy that said nothing at all "finished" each answer: 0.4 words against 34.8, win rate 84 %."""
    told = length_warning(found(ours, theirs))
    assert f"{ours:.1f} words on average, the other side's {theirs:.1f}" in told
    assert "matched_length" in told


@pytest.mark.parametrize(("ours", "theirs"), [(20.3, 34.8), (10.0, 20.0), (20.0, 10.0), (0.0, 0.0)])
def test_similar_lengths_are_not(ours, theirs):
    assert length_warning(found(ours, theirs)) == ""


def test_one_side_alone_has_nothing_to_compare():
    assert length_warning({"policy": {"words": 3.0}}) == ""
