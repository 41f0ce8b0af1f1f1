"""IPO, KTO, ties and rankings as methods: numbers worked by hand on models that are tables, and who is computed how often."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tutelage.algorithms.base import Models
from tutelage.algorithms.kto import KTO
from tutelage.algorithms.preference import DPO, IPO
from tutelage.algorithms.reward_model import BradleyTerry
from tutelage.data.batch import Pairs, Sequences, sequences
from tutelage.data.chat import Chat
from tutelage.data.collate import comparisons
from tutelage.data.labelled import LabelledWithPartner
from tutelage.models.tiny import byte_tokenizer
from tutelage.records import Answer, Comparison, user
from tutelage.stages.pairs import share_rankings


@dataclass(frozen=True)
class Table:
    """log p(answer) by (prompt number, first token), all of it on the first token; `seen` notes every row that is computed."""

    cells: dict[tuple[int, int], float]
    seen: list[int] = field(default_factory=list)

    def logprobs(self, answers: Sequences) -> Tensor:
        out = torch.zeros(answers.tokens.shape)
        for row, (prompt, first) in enumerate(
            zip(answers.prompt_of.tolist(), answers.tokens[:, 0].tolist(), strict=True)
        ):
            out[row, 0] = self.cells[prompt, first]
            self.seen.append(first)
        return out

    def logprobs_and_entropy(self, answers: Sequences) -> tuple[Tensor, Tensor]:
        return self.logprobs(answers), torch.zeros(answers.tokens.shape)

    def values(self, answers: Sequences) -> Tensor:
        return self.logprobs(answers)

    def scores(self, answers: Sequences) -> Tensor:
        return self.logprobs(answers)[:, 0]


def close(actual: Tensor, expected: list) -> None:
    assert_close(actual, torch.tensor(expected, dtype=actual.dtype))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def rows(*tokens: list[int], prompt_of: list[int]) -> Sequences:
    return sequences([(1,), (2,), (3,)], prompt_of, tokens)


# Prompts 0, 1, 2; answer 10 + p was given to prompt p. h on the diagonal 2, -1, 0.5; off it .9, -.3, .6 for the partners.
POLICY = Table({(0, 10): -1.0, (1, 11): -3.0, (2, 12): -2.0, (0, 11): -4.1, (1, 12): -5.3, (2, 10): -6.4})
REFERENCE = Table({(0, 10): -3.0, (1, 11): -2.0, (2, 12): -2.5, (0, 11): -5.0, (1, 12): -5.0, (2, 10): -7.0})
MODELS = Models(policy=POLICY, reference=REFERENCE)
ROWS = LabelledWithPartner(
    rows([10, 0], [11], [12, 0], prompt_of=[0, 1, 2]),
    torch.tensor([1.0, 0.0, 1.0]),
    torch.tensor([1.0, 2.0, 1.0]),
    rows([11], [12, 0], [10, 0], prompt_of=[0, 1, 2]),
)


def test_kto() -> None:
    """z0 = (1 * .9 + 2 * -.3 + 1 * .6) / 4 = .225; beta 2: gains 3.55, -2.45, .55; an undesirable loss is sigma(gain)."""
    method = KTO(beta=2.0, desirable_weight=3.0, undesirable_weight=0.5)
    prepared, _, measured = method.prepare(MODELS, ROWS, method.initial_state())
    assert measured["kto/z0"] == pytest.approx(0.225)
    losses, metrics = method.losses(MODELS, prepared)
    close(losses, [3 * sigmoid(-3.55), 0.5 * sigmoid(-2.45), 3 * sigmoid(-0.55)])
    weights = method.weights(prepared)
    close(weights, [0.25, 0.5, 0.25])
    assert metrics["accuracy/implicit"].tolist() == [1.0, 1.0, 1.0]
    # implicit rewards 4, -2, 1: means over the desirable ones 2.5, over the undesirable one -2
    means = {
        name: float((weights * metrics[f"reward/{name}"]).sum()) for name in ("desirable", "undesirable", "margin")
    }
    assert means == pytest.approx({"desirable": 2.5, "undesirable": -2.0, "margin": 4.5})


def test_kto_z0_is_cut_at_zero_and_belongs_to_the_whole_batch() -> None:
    """A micro-batch carries the step's z0; the step's z0 changes with the step's rows."""
    method = KTO()
    prepared, _, _ = method.prepare(MODELS, ROWS, method.initial_state())
    assert prepared[[1]].z0.tolist() == pytest.approx([0.225])
    alone, _, measured = method.prepare(MODELS, ROWS[[1]], method.initial_state())
    assert (alone.z0.tolist(), measured["kto/z0"]) == ([0.0], 0.0)


def test_kto_never_looks_at_the_answers_own_probability_for_z0() -> None:
    """The trap (trl #1911): z0 from the examples themselves. Moving them leaves z0 where it was."""
    moved = replace(POLICY, cells={k: v + (5.0 if k[0] + 10 == k[1] else 0.0) for k, v in POLICY.cells.items()})
    method = KTO()
    before, after = (
        method.prepare(Models(policy=p, reference=REFERENCE), ROWS, method.initial_state())[2]["kto/z0"]
        for p in (POLICY, moved)
    )
    assert before == after


def pairs(preference: list[float], margin: list[float] | None = None) -> Pairs:
    """Answers 20 (one token) and 21 (two tokens) to prompt 0, chosen and rejected."""
    n = len(preference)
    one, two = rows(*[[20]] * n, prompt_of=[0] * n), rows(*[[21, 0]] * n, prompt_of=[0] * n)
    return Pairs(one, two, torch.tensor(preference), torch.ones(n), torch.tensor(margin or [0.0] * n))


# h(20) = 1, h(21) = -2
PAIR = Models(policy=Table({(0, 20): -1.0, (0, 21): -4.0}), reference=Table({(0, 20): -2.0, (0, 21): -2.0}))


@pytest.mark.parametrize(
    ("length", "lead", "rewards"),
    [("sum", 3.0, (0.25, -0.5)), ("mean", 2.0, (0.25, -0.25))],  # per token h is 1 and -1
)
def test_ipo(length, lead, rewards) -> None:
    """tau = .25 asks for a lead of 2."""
    method = IPO(tau=0.25, length=length)
    prepared, _, _ = method.prepare(PAIR, pairs([1.0, 0.0, 0.5, 0.75]), method.initial_state())
    losses, metrics = method.losses(PAIR, prepared)
    won, lost = (lead - 2) ** 2, (-lead - 2) ** 2
    close(losses, [won, lost, (won + lost) / 2, 0.75 * won + 0.25 * lost])
    close(metrics["reward/chosen"], [rewards[0]] * 4)
    close(metrics["reward/rejected"], [rewards[1]] * 4)
    assert metrics["accuracy/implicit"].tolist() == [1.0, 0.0, 0.5, 1.0]
    close(method.implicit(torch.tensor([-2.0]), prepared.rejected[[0]]), [rewards[1]])


def test_dpo_margins_count_only_where_asked_for() -> None:
    """beta .5: a lead of 1.5 in reward; an offset of 2 times .5 leaves .5."""
    batch = pairs([1.0, 1.0], margin=[0.5, 0.0])
    for scale, leads in ((0.0, (1.5, 1.5)), (2.0, (0.5, 1.5))):
        method = DPO(beta=0.5, margin_scale=scale)
        prepared, _, _ = method.prepare(PAIR, batch, method.initial_state())
        close(method.losses(PAIR, prepared)[0], [-math.log(sigmoid(x)) for x in leads])


def test_dpo_with_davidsons_ties() -> None:
    """beta .5, d = 1.5, nu = 2: e^.75 : e^-.75 : 2. A label that is no tie may be flipped, a tie stays one."""
    method = DPO(beta=0.5, nu=2.0, label_smoothing=0.1)
    prepared, _, _ = method.prepare(PAIR, pairs([1.0, 0.5]), method.initial_state())
    losses, metrics = method.losses(PAIR, prepared)
    total = math.exp(0.75) + math.exp(-0.75) + 2
    won, lost, tied = math.exp(0.75) / total, math.exp(-0.75) / total, 2 / total
    close(losses, [-0.9 * math.log(won) - 0.1 * math.log(lost), -math.log(tied)])
    close(metrics["ties/expected"], [tied, tied])
    assert metrics["ties/observed"].tolist() == [0.0, 1.0]


def test_bradley_terry_with_davidsons_ties() -> None:
    """Scores -1 and -4 are 3 apart, a margin of 1 leaves 2; centring adds .1 * 25."""
    models = Models(reward=Table({(0, 20): -1.0, (0, 21): -4.0}))
    losses, metrics = BradleyTerry(nu=1.0, centering=0.1).losses(models, pairs([1.0, 0.5], margin=[1.0, 1.0]))
    total = math.exp(1) + math.exp(-1) + 1
    close(losses, [math.log(total) - 1 + 2.5, math.log(total) + 2.5])
    close(metrics["ties/expected"], [1 / total, 1 / total])


def ranking(prompt: str, answers: str, annotator: str = "", weight: float = 1.0) -> list[Comparison]:
    """K answers of a letter each, best first."""
    said = [Answer(letter) for letter in answers]
    return [
        Comparison(user(prompt), a, b, annotator=annotator, weight=weight, group="g") for a, b in combinations(said, 2)
    ]


def test_every_ranking_counts_the_same() -> None:
    """C(4, 2) = 6 pairs of a sixth each, a ranking of two answers, a pair of its own; and a half-trusted second annotator."""
    records = [
        *ranking("p", "abcd", "ann"),
        *ranking("p", "ab", "bob", weight=0.5),
        *ranking("q", "xy"),
        Comparison(user("p"), Answer("a"), Answer("d")),
    ]
    assert [r.weight for r in share_rankings(records)] == pytest.approx([1 / 6] * 6 + [0.5, 1.0, 1.0])
    batch = comparisons(share_rankings(records), Chat.of(byte_tokenizer()), 100).batch
    weights = BradleyTerry().weights(batch)
    assert_close(weights[:6].sum(), weights[7])


def test_each_answer_of_a_ranking_is_computed_once() -> None:
    """Six pairs of four answers: a reward model scores four rows, a policy and its reference four each."""
    batch = comparisons(share_rankings(ranking("p", "abcd")), Chat.of(byte_tokenizer()), 100).batch
    cells = {(0, ord(letter)): -float(place) for place, letter in enumerate("abcd")}
    reward = Table(cells)
    losses, _ = BradleyTerry(centering=0.0).losses(Models(reward=reward), batch)
    assert sorted(reward.seen) == sorted(b"abcd")
    gaps = [b - a for a, b in combinations(range(4), 2)]
    close(losses, [-math.log(sigmoid(gap)) for gap in gaps])
    policy, reference = Table(cells), Table(dict.fromkeys(cells, 0.0))
    method, models = DPO(beta=1.0), Models(policy=policy, reference=reference)
    prepared, _, _ = method.prepare(models, batch, method.initial_state())
    close(method.losses(models, prepared)[0], [-math.log(sigmoid(gap)) for gap in gaps])
    assert len(policy.seen) == len(reference.seen) == 4
