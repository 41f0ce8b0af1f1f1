"""A preference model is antisymmetric whatever its weights, and learns a cycle that no score of single answers can."""

from __future__ import annotations

import math

import pytest
import torch

from tutelage.algorithms.base import Models
from tutelage.algorithms.preference_model import PreferenceModel, preference_logits
from tutelage.algorithms.reward_model import BradleyTerry
from tutelage.data.batch import distinct
from tutelage.data.chat import Chat
from tutelage.data.collate import comparisons
from tutelage.data.two_answers import two_answers
from tutelage.models.heads import new_scalar_model
from tutelage.models.logprobs import HeadedModel
from tutelage.models.tiny import tiny
from tutelage.records import Answer, Comparison, user
from tutelage.training.update import accumulate

PROMPT = user("Rock, paper or scissors?")
CYCLE = [("rock", "scissors"), ("scissors", "paper"), ("paper", "rock")]
RECORDS = [Comparison(PROMPT, Answer(better), Answer(worse)) for better, worse in CYCLE]


def scorer(seed=0):
    backbone = tiny(hidden=32, seed=seed)[0].model
    return HeadedModel(new_scalar_model(backbone, seed=seed).requires_grad_(True))


def chat():
    return Chat.of(tiny()[1])


def swapped(records):
    return [Comparison(r.prompt, r.rejected, r.chosen, 1 - r.preference) for r in records]


@torch.no_grad()
def probabilities(model, records):
    return torch.sigmoid(preference_logits(model, two_answers(records, chat(), 512).batch))


def train(algorithm, model, batch, steps=60):
    """AdamW on one batch; the loss of every step."""
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        losses.append(accumulate(algorithm, Models(reward=model), batch, 4096)[0])
        optimizer.step()
    return losses


def test_both_orders_sum_to_one_and_an_answer_ties_with_itself():
    model = scorer()
    with torch.no_grad():
        model.module.head.weight.mul_(50)  # a fresh head says nearly nothing
    forward, backward = probabilities(model, RECORDS), probabilities(model, swapped(RECORDS))
    assert float((forward - 0.5).abs().min()) > 1e-3, "it must have an opinion"
    assert torch.allclose(forward + backward, torch.ones(3), atol=1e-6)
    batch = two_answers(RECORDS, chat(), 512).batch
    itself = type(batch)(batch.forward, batch.forward, batch.preference, batch.weight)
    assert torch.sigmoid(preference_logits(model, itself)).tolist() == [0.5, 0.5, 0.5]


@pytest.mark.slow
def test_it_learns_a_cycle_where_bradley_terry_cannot():
    """On a cycle of sure labels the best Bradley-Terry fit is all scores equal: loss log 2, every P = 1/2."""
    model = scorer()
    losses = train(PreferenceModel(), model, two_answers(RECORDS, chat(), 512).batch)
    assert abs(losses[0] - math.log(2)) < 0.05
    assert losses[-1] < 0.2
    assert float(probabilities(model, RECORDS).min()) > 0.8
    assert float(probabilities(model, swapped(RECORDS)).max()) < 0.2
    scores = scorer(1)
    batch = comparisons(RECORDS, chat(), 512).batch
    losses = train(BradleyTerry(centering=0.0), scores, batch)
    assert min(losses) > math.log(2) - 1e-6
    rows, which = distinct(batch.both())
    with torch.no_grad():
        chosen, rejected = scores.scores(rows)[which].chunk(2)
    assert float(torch.sigmoid(chosen - rejected).min()) < 0.5 + 1e-6


@pytest.mark.slow
def test_a_tie_is_one_half():
    """One pair that two people judged differently and one that tied: the same optimum, P = 1/2 and loss log 2."""
    a, b = Answer("yes"), Answer("no")
    tie = [Comparison(PROMPT, a, b, preference=0.5)]
    split = [Comparison(PROMPT, a, b), Comparison(PROMPT, b, a)]
    for records in (tie, split):
        model = scorer(2)
        with torch.no_grad():
            model.module.head.weight.mul_(50)
        before = float((probabilities(model, tie) - 0.5).abs())
        losses = train(PreferenceModel(), model, two_answers(records, chat(), 512).batch)
        after = float((probabilities(model, tie) - 0.5).abs())
        assert after < min(0.02, before)
        assert losses[-1] < math.log(2) + 1e-3
