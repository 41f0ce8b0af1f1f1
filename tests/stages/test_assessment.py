"""`reward --algorithm classifier|regression|outcome_value` on a tiny model: it learns, reports, and is a reward afterwards."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tutelage.algorithms.assessment import Classifier, Regression
from tutelage.algorithms.outcome_value import OutcomeValue
from tutelage.models.load import save_policy
from tutelage.models.tiny import tiny
from tutelage.records import Answer, AnswerGroup, to_json, user, write_jsonl
from tutelage.rewards.combine import combine
from tutelage.rewards.model import RewardModelReward
from tutelage.rewards.prefixes import prefix_values, step_values, token_rewards
from tutelage.stages.check import main as check
from tutelage.stages.reward import Reward, main
from tutelage.training.optim import Optimization

GOOD, BAD = "thank you kindly", "get lost now"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A tiny model, and 40 prompts each with a good and a bad answer, labelled and rated; the working directory."""
    save_policy(*tiny(), tmp_path / "model")
    asked = [f"Say {i}" for i in range(40)]
    labels = [
        {"prompt": p, "completion": text, "label": label} for p in asked for text, label in ((GOOD, "yes"), (BAD, "no"))
    ]
    ratings = [
        {"prompt": to_json(user(p)), "answer": {"text": text}, "score": score, "scale": [1, 5]}
        for p in asked
        for text, score in ((GOOD, 5), (BAD, 2))
    ]
    groups = [to_json(AnswerGroup(user(p), (Answer(GOOD), Answer(BAD, stop_reason="length")))) for p in asked]
    for name, rows in (("labels", labels), ("ratings", ratings), ("answers", groups)):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(method, data: str, **fields) -> Reward:
    plain = {
        "model": "model",
        "data": (f"{data}.jsonl",),
        "out": "run",
        "algorithm": method,
        "steps": 20,
        "batch_size": 8,
        "full": True,
        "heldout_share": 0.3,
        "optimization": Optimization(learning_rate=3e-3),
    }
    return Reward(**{**plain, **fields})


def report() -> dict:
    return json.loads(Path("run/reward.json").read_text())


def scores(reward) -> list[float]:
    return reward.score([user("Say 100")], [[Answer(GOOD), Answer(BAD)]])[0][0]


@pytest.mark.slow
def test_classifier(place):
    """Held out it tells the two apart; as a reward it gives P(yes), with a threshold 1 or 0, times the weight."""
    folder = main(settings(Classifier(), "labels"))
    found = report()
    assert found["auc"]["estimate"] > 0.95
    assert found["accuracy"]["low"] > 0.7
    assert found["accuracy"]["estimate"] > found["commoner_label"] + 0.3
    assert 8 <= found["prompts"] <= 17, "three tenths of 40"
    assert found["answers"] == 2 * found["prompts"]
    good, bad = scores(combine(["run"]))
    assert 0 < bad < 0.5 < good < 1
    assert scores(combine(["run(above=0.5)=2"])) == [2.0, 0.0]
    logits = scores(combine(["run(output=score)"]))
    assert [1 / (1 + math.exp(-x)) for x in logits] == pytest.approx([good, bad], abs=1e-5)
    assert scores(combine(["run(output=score, above=0)=-1"])) == [-1.0, 0.0]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=0.05)
    plain = AutoModelForSequenceClassification.from_pretrained(folder / "reward_model")
    assert plain.config.num_labels == 1
    ids = RewardModelReward.load("run")._row(user("Say 100"), Answer(GOOD))
    with torch.no_grad():
        logit = plain(torch.tensor([[*ids[0], *ids[1]]])).logits[0, 0]
    assert float(logit) == pytest.approx(logits[0], abs=1e-4)


@pytest.mark.slow
def test_regression(place):
    """It starts at the mean rating, ends near 5 and 2, on the ratings' own scale."""
    folder = main(settings(Regression(), "ratings"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] == pytest.approx(2.25, abs=0.3), "3.5 against 5 and 2"
    found = report()
    assert found["absolute_error"]["high"] < 0.75, "half of what the mean rating misses by"
    assert found["explained"]["low"] > 0.7
    assert found["auc"]["estimate"] == 1.0
    good, bad = scores(combine(["run"]))
    assert good == pytest.approx(5, abs=0.75)
    assert bad == pytest.approx(2, abs=0.75)
    assert scores(combine(["run(above=3.5)"])) == [1.0, 0.0]


@pytest.mark.slow
def test_outcome_value_on_answers_that_a_reward_labels(place):
    """`finished` labels the sampled answers; V differs only once the answers do, and its changes sum to the whole."""
    main(settings(OutcomeValue(loss="cross_entropy"), "answers", labels=("finished",)))
    found = report()
    assert found["read"]["0"]["auc"] is None or found["read"]["0"]["auc"]["estimate"] == 0.5
    assert found["read"]["1"]["auc"]["estimate"] > 0.95
    assert found["auc"] == found["read"]["1"]["auc"]
    model = RewardModelReward.load("run")
    prompt, answers = user("Say 100"), [Answer(GOOD), Answer(BAD, stop_reason="length")]
    values = prefix_values(model, prompt, answers)
    assert [len(row) for row in values] == [len(GOOD) + 2, len(BAD) + 1], "a byte a token, and the end of turn"
    assert values[0][0] == pytest.approx(values[1][0])
    assert all(0 < v < 1 for row in values for v in row)
    assert [row[-1] for row in values] == pytest.approx(model.score([prompt], [answers])[0], abs=1e-5)
    assert values[0][-1] > 0.5 > values[1][-1]
    changes = token_rewards(model, prompt, answers)
    assert [sum(row) for row in changes] == pytest.approx([row[-1] - row[0] for row in values], abs=1e-5)
    assert [len(row) for row in changes] == [len(row) - 1 for row in values]


@pytest.mark.slow
def test_steps_are_read_where_they_end(place):
    """Two lines: V after the first line's last letter and after the whole; the same as asking about each prefix."""
    main(settings(OutcomeValue(), "labels", steps=2))
    model, prompt = RewardModelReward.load("run"), user("Say 100")
    text = "one\ntwo"
    ids = (*text.encode(), 257)
    ((first, second),) = step_values(model, prompt, [Answer(text, ids)])
    assert (first[0], second[0]) == (3, len(ids))
    prefixes = [Answer("one", ids[:3], stop_reason="length"), Answer(text, ids)]
    assert [first[1], second[1]] == pytest.approx(model.score([prompt], [prefixes])[0], abs=1e-5)
    assert step_values(model, prompt, [Answer(text)]) == [[pytest.approx(first), pytest.approx(second)]]


@pytest.mark.slow
def test_a_model_of_whole_answers_scores_no_prefixes(place):
    main(settings(Classifier(), "labels", steps=1))
    with pytest.raises(ValueError, match=r"it reads whole answers; prefixes are scored by .* outcome_value"):
        prefix_values(RewardModelReward.load("run"), user("Say 1"), [Answer(GOOD)])


@pytest.mark.parametrize(
    ("method", "data", "fields", "message"),
    [
        (Classifier(), "ratings", {}, r"labels between no \(0\) and yes \(1\); got 5 on the scale 1 to 5.*regression"),
        (OutcomeValue(loss="cross_entropy"), "ratings", {}, "got 5 on the scale 1 to 5"),
        (Classifier(), "labels", {"labels": ("brevity",)}, "gives no group"),
        (Regression(), "answers", {"labels": ("length_penalty",)}, "every label is 0: there is nothing to tell apart"),
        (Classifier(), "answers", {"labels": ("gsm8k",)}, "compares with a known solution"),
        (Regression(), "both", {}, r"ratings on one scale are needed; got the scales \[\(0.0, 1.0\), \(1.0, 5.0\)\]"),
    ],
)
def test_labels_that_cannot_be_learnt_from_are_refused(place, method, data, fields, message):
    if data == "both":
        rows = [json.loads(line) for line in (place / "ratings.jsonl").read_text().splitlines()]
        write_jsonl("both.jsonl", [*rows, {**rows[0], "score": 1, "scale": [0, 1]}])
    with pytest.raises(ValueError, match=message):
        main(settings(method, data, heldout_share=0.0, **fields))
    assert not (place / "run").exists()


def test_check(place, capsys):
    flags = ["--command", "reward", "--model", "model"]
    assert check([*flags, "--data", "labels.jsonl", "--algorithm", "classifier"]) == 0
    assert "80 x rating" in capsys.readouterr().out
    labelled = ["--data", "answers.jsonl", "--labels", "finished", "--algorithm", "outcome_value"]
    assert check([*flags, *labelled]) == 0
    out = capsys.readouterr().out
    assert "40 x group" in out
    assert "FAILS" not in out
