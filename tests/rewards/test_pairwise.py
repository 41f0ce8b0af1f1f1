"""Preferences between answers: the saved model says what the trained one said; rewards by Bradley-Terry."""

from __future__ import annotations

import math

import pytest
import torch

from tutelage.algorithms.preference_model import preference_logits
from tutelage.data.chat import Chat
from tutelage.data.two_answers import two_answers
from tutelage.models.heads import new_scalar_model, save_reward_model
from tutelage.models.load import save_policy
from tutelage.models.logprobs import HeadedModel
from tutelage.models.tiny import tiny
from tutelage.records import Answer, Comparison, user
from tutelage.rewards.combine import combine
from tutelage.rewards.model import RewardModelReward
from tutelage.rewards.pairwise import ScoredPreference, TwoAnswerModel, reads_two_answers

PROMPTS = [user("Say something."), user("And now é?")]
FIRST = [[Answer("yes"), Answer("maybe so")], [Answer("no"), Answer("a long, long answer")]]
SECOND = [[Answer("no"), Answer("never")], [Answer("no"), Answer("é")]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(the module as trained, the folder it was saved to)"""
    model, tokenizer = tiny(hidden=32, seed=4)
    module = new_scalar_model(model.model, seed=4)
    with torch.no_grad():
        module.head.weight.mul_(60)
    folder = tmp_path_factory.mktemp("run")
    save_reward_model(module, tokenizer, folder / "reward_model", two_answers=True)
    return module, folder


def test_the_saved_model_is_the_trained_one_and_antisymmetric(saved):
    module, folder = saved
    model = TwoAnswerModel.load(str(folder), "cpu")
    found = model.probability(PROMPTS, FIRST, SECOND)
    records = [
        Comparison(prompt, one, other)
        for prompt, ones, others in zip(PROMPTS, FIRST, SECOND, strict=True)
        for one, other in zip(ones, others, strict=True)
        if one.text != other.text
    ]
    with torch.no_grad():
        batch = two_answers(records, Chat.of(tiny()[1]), 4096).batch
        expected = torch.sigmoid(preference_logits(HeadedModel(module), batch)).tolist()
    flat = [p for row in found for p in row]
    assert flat[2] == 0.5, "an answer against itself"
    assert flat[:2] + flat[3:] == pytest.approx(expected, abs=1e-5)
    assert max(abs(p - 0.5) for p in expected) > 0.02
    back = model.probability(PROMPTS, SECOND, FIRST)
    assert [1 - p for row in back for p in row] == pytest.approx(flat, abs=1e-6), "packed in another order"


def test_sampled_ids_and_unfinished_answers_are_read_as_they_are(saved):
    """The same text by its ids; an answer that was cut reads differently from one that ended."""
    model = TwoAnswerModel.load(str(saved[1]), "cpu")
    by_ids = Answer("yes", (*map(ord, "yes"), 257))
    cut = Answer("yes", stop_reason="length")
    texts, ids, short = (
        model.probability(PROMPTS[:1], [[a]], [[Answer("no")]])[0][0] for a in (FIRST[0][0], by_ids, cut)
    )
    assert texts == ids
    assert abs(short - texts) > 1e-6


def test_a_reward_prefers_by_bradley_terry():
    """brevity is 1 / (1 + words / half) or the like: whatever it is, sigma of the difference."""
    with combine([lambda prompt, answers: [float(len(a.text)) for a in answers]]) as reward:
        found = ScoredPreference(reward).probability(
            PROMPTS[:1], [[Answer("abc"), Answer("a")]], [[Answer("a"), Answer("a")]]
        )
    assert found == [[1 / (1 + math.exp(-2.0)), 0.5]]


def test_each_kind_of_model_is_told_from_the_other(saved, tmp_path, monkeypatch):
    folder = saved[1]
    model, tokenizer = tiny(hidden=32)
    save_reward_model(new_scalar_model(model.model), tokenizer, tmp_path / "reward_model")
    save_policy(model, tokenizer, tmp_path / "only" / "policy")
    assert reads_two_answers(str(folder))
    assert not any(map(reads_two_answers, (str(tmp_path), str(tmp_path / "only"), "brevity", "pkg.mod:fn", "gold")))
    monkeypatch.setattr("tutelage.rewards.pairwise.resolve_model", lambda *_: pytest.fail("a name is no model"))
    assert not reads_two_answers("brevity"), "the hub must not be asked for a rule"
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match="is no preference model; train one: tutelage reward --algorithm preference_model"
    ):
        TwoAnswerModel.load(str(tmp_path), "cpu")
    with pytest.raises(ValueError, match="a preference model compares two answers and scores none"):
        RewardModelReward.load(str(folder))
