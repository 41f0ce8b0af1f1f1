"""Reports on answers judged alone, by hand: AUC, accuracy, error, correlations, calibration, clustered by prompt."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tutelage.evaluation.assessment_report import rating_report, yes_no_report
from tutelage.records import Answer, Rating, user


def rated(scores, scale=(0.0, 1.0), texts=None, prompts=None) -> list[Rating]:
    texts, prompts = texts or ["a"] * len(scores), prompts or range(len(scores))
    return [Rating(user(f"p{p}"), Answer(t), s, scale) for s, t, p in zip(scores, texts, prompts, strict=True)]


def test_yes_no_by_hand():
    """Yes .9 .4, no .6 .2: three of four pairs in order, two of four on their side; 1/2 has no side."""
    records = rated([1, 1, 0, 0, 0.5], texts=["a b c", "a", "a b", "a", "a"])
    found = yes_no_report(records, [0.9, 0.4, 0.6, 0.2, 0.5])
    assert found["auc"]["estimate"] == 0.75
    assert found["accuracy"]["estimate"] == 0.5
    assert found["commoner_label"] == 0.5
    assert (found["answers"], found["undecided"], found["prompts"]) == (5, 1, 5)
    assert found["longer_auc"] == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert found["brier"] == pytest.approx((0.01 + 0.36 + 0.36 + 0.04 + 0) / 5)
    assert found["accuracy"]["low"] < 0.5 < found["accuracy"]["high"]
    json.dumps(found, allow_nan=False)


def test_answers_to_one_prompt_are_not_independent():
    """Ten prompts of four answers each, right or wrong together: the interval is that of ten, not of forty."""
    label = [1.0, 0.0] * 20
    right = [p % 2 == 0 for p in range(10) for _ in range(4)]
    predicted = [y if ok else 1 - y for y, ok in zip(label, right, strict=True)]
    by_prompt = yes_no_report(rated(label, prompts=[p for p in range(10) for _ in range(4)]), predicted)["accuracy"]
    alone = yes_no_report(rated(label), predicted)["accuracy"]
    assert by_prompt["estimate"] == alone["estimate"] == 0.5
    assert by_prompt["clusters"] == 10
    assert by_prompt["high"] - by_prompt["low"] > 1.8 * (alone["high"] - alone["low"])


@pytest.mark.slow
def test_calibration():
    """Says .8 where .8 is true; and twice as sure as it may be."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.05, 0.95, 4000)
    labels = (rng.random(4000) < truth).astype(float)
    honest = yes_no_report(rated(labels.tolist()), truth.tolist())
    sure = 1 / (1 + np.exp(-2 * np.log(truth / (1 - truth))))
    boastful = yes_no_report(rated(labels.tolist()), sure.tolist())
    assert honest["temperature"] == pytest.approx(1, abs=0.1)
    assert boastful["temperature"] == pytest.approx(2, abs=0.2)
    assert boastful["calibration_error"] > honest["calibration_error"] + 0.02
    assert boastful["auc"] == honest["auc"], "the order is the same"
    assert sum(b["low"] <= b["predicted"] <= b["high"] for b in honest["reliability"]) >= 6


@pytest.mark.slow
def test_ratings_by_hand():
    """Ratings 1 2 4 5, predictions 2 2 3 5: errors 1 0 1 0; squared 2 against 10 around the mean of 3."""
    found = rating_report(rated([1, 2, 4, 5], scale=(1, 5)), [2, 2, 3, 5])
    assert found["absolute_error"]["estimate"] == 0.5
    assert found["root_mean_square_error"] == pytest.approx(0.5**0.5)
    assert rating_report(rated([1, 2, 4, 5] * 9, scale=(1, 5)), [2, 2, 3, 5] * 9)["explained"][
        "estimate"
    ] == pytest.approx(0.8)
    more = rating_report(rated([1, 2, 4, 5] * 9, scale=(1, 5)), [2, 2, 3, 5] * 9)
    assert more["auc"]["estimate"] == 1.0, "4 and 5 are above the middle of 1 to 5"
    assert more["correlation"]["estimate"] == pytest.approx(np.corrcoef([1, 2, 4, 5], [2, 2, 3, 5])[0, 1])
    assert more["rank_correlation"]["estimate"] == pytest.approx(np.corrcoef([1, 2, 3, 4], [1.5, 1.5, 3, 4])[0, 1])
    json.dumps(more, allow_nan=False)


def test_saying_the_mean_explains_nothing():
    found = rating_report(rated([1, 2, 4, 5] * 5, scale=(1, 5)), [3] * 20)
    assert found["explained"]["estimate"] == 0.0
    assert found["correlation"] is None
    assert found["absolute_error"]["estimate"] == 1.5


def test_one_kind_of_label_has_no_auc():
    found = yes_no_report(rated([1, 1, 1]), [0.9, 0.8, 0.4])
    assert found["auc"] is None
    assert found["longer_auc"] is None
    assert found["accuracy"]["estimate"] == pytest.approx(2 / 3)


def test_nothing_held_out_is_refused():
    with pytest.raises(ValueError, match="no held-out answers"):
        yes_no_report([], [])
