"""Simulated annotators: hand-worked probabilities, frequencies that match them, and agreement with the gold rule."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tutelage.evaluation.gold import gold_score
from tutelage.feedback.simulated import LABELLERS, Ranking, SimulatedAnnotator, compare_all, rank_all
from tutelage.records import Answer, AnswerGroup, group_from_json, read_jsonl, user

FIXTURE = Path(__file__).parents[1] / "data" / "reference_answers.jsonl"
CLEAR = SimulatedAnnotator("clear", temperature=1e-6)


def groups_of_lengths(count: int, answers: int = 4) -> list[AnswerGroup]:
    """Groups whose answers have 1, 2, 3, ... words."""
    return [
        AnswerGroup(user(f"question {i}", id=f"p{i}"), tuple(Answer("word " * (k + 1)) for k in range(answers)))
        for i in range(count)
    ]


def words(_, answer: Answer) -> float:
    return float(len(answer.text.split()))


@pytest.fixture(scope="module")
def reference() -> list[AnswerGroup]:
    return [group_from_json(row) for row in read_jsonl(FIXTURE)]


def test_preference_by_hand():
    # (0.3 - 0.1) / 0.1 = 2, sigmoid(2) = 0.8808
    assert SimulatedAnnotator("a", temperature=0.1).preference((0.3, 0.1), (5, 5)) == pytest.approx(0.880797)
    # side bias 0.5: sigmoid(2.5) = 0.9241 on the left, sigmoid(1.5) = 0.8176 on the right
    biased = SimulatedAnnotator("b", temperature=0.1, side_bias=0.5)
    assert biased.preference((0.3, 0.1), (5, 5), first_shown=0) == pytest.approx(0.924142)
    assert biased.preference((0.3, 0.1), (5, 5), first_shown=1) == pytest.approx(0.817574)
    # a lapse in five: 0.1 + 0.8 * 0.880797
    assert SimulatedAnnotator("c", lapse=0.2).preference((0.3, 0.1), (5, 5)) == pytest.approx(0.804638)
    # equal utilities, twice as long, length bias 1: sigmoid(ln 2) = 2 / 3
    assert SimulatedAnnotator("d", length_bias=1.0).preference((0.3, 0.3), (20, 10)) == pytest.approx(2 / 3)
    # drift 0.1 after ten judgments doubles the temperature: sigmoid(1) = 0.7311
    assert SimulatedAnnotator("e", drift=0.1).preference((0.3, 0.1), (5, 5), judged=10) == pytest.approx(0.731059)


def test_preference_is_antisymmetric():
    annotator = SimulatedAnnotator("a", lapse=0.1, side_bias=0.4, length_bias=0.3)
    here = annotator.preference((0.7, 0.6), (12, 30), first_shown=0)
    there = annotator.preference((0.6, 0.7), (30, 12), first_shown=1)
    assert here + there == pytest.approx(1)


@pytest.mark.parametrize("first_shown", [0, 1])
def test_judged_pairs_come_out_as_often_as_stated(first_shown: int):
    annotator = SimulatedAnnotator("a", temperature=0.2, lapse=0.3, side_bias=0.6)
    rng, count = np.random.default_rng(0), 20_000
    drawn = [annotator.judge_pair((0.5, 0.4), (9, 9), first_shown, rng) for _ in range(count)]
    # sigmoid(0.5 + 0.6) = 0.75026 and sigmoid(0.5 - 0.6) = 0.47502; 0.15 + 0.7 p
    expected = 0.15 + 0.7 * (0.75026, 0.47502)[first_shown]
    assert np.mean(drawn) == pytest.approx(expected, abs=4 * math.sqrt(0.25 / count))


@pytest.mark.parametrize("lapse", [0.0, 0.4])
def test_every_pair_of_a_ranking_follows_the_pair_model(lapse: float):
    annotator = SimulatedAnnotator("a", temperature=0.2, lapse=lapse, length_bias=0.5)
    utilities, lengths = [0.1, 0.5, 0.3, 0.45], [10, 20, 5, 10]
    rng, count = np.random.default_rng(1), 10_000
    wins = np.zeros((4, 4))
    for _ in range(count):
        for better, worse in itertools.combinations(annotator.rank(utilities, lengths, (0, 1, 2, 3), rng), 2):
            wins[better, worse] += 1
    for i, j in itertools.permutations(range(4), 2):
        stated = annotator.preference((utilities[i], utilities[j]), (lengths[i], lengths[j]))
        assert wins[i, j] / count == pytest.approx(stated, abs=4 * math.sqrt(0.25 / count)), (i, j)


def test_side_bias_of_a_ranking_is_spread_over_the_screen():
    annotator = SimulatedAnnotator("a", side_bias=1.5)
    rng, count = np.random.default_rng(2), 10_000
    shown = (2, 0, 3, 1)
    above = np.zeros((4, 4))
    for _ in range(count):
        for better, worse in itertools.combinations(annotator.rank([0.0] * 4, [1] * 4, shown, rng), 2):
            above[shown.index(better), shown.index(worse)] += 1
    # first against last sigmoid(1.5) = 0.8176, neighbours sigmoid(0.5) = 0.6225
    assert above[0, 3] / count == pytest.approx(0.8176, abs=0.02)
    assert [above[p, p + 1] / count for p in range(3)] == pytest.approx([0.6225] * 3, abs=0.02)


def test_two_shown_answers_are_ranked_as_a_pair_is_judged():
    annotator = SimulatedAnnotator("a", temperature=0.2, side_bias=0.8)
    rng, count = np.random.default_rng(3), 10_000
    first = np.mean([annotator.rank([0.5, 0.4], [1, 1], (1, 0), rng)[0] == 0 for _ in range(count)])
    assert first == pytest.approx(annotator.preference((0.5, 0.4), (1, 1), first_shown=1), abs=0.02)


def test_ties_are_called_inside_the_margin_only():
    annotator, rng = SimulatedAnnotator("a", tie_margin=0.05), np.random.default_rng(0)
    assert annotator.judge_pair((0.50, 0.54), (1, 1), 0, rng) == 0.5
    assert annotator.judge_pair((0.50, 0.56), (1, 1), 0, rng) in (0.0, 1.0)
    same = AnswerGroup(user("q"), (Answer("a"), Answer("b"), Answer("c d e")))
    pairs = compare_all([same], words, [CLEAR])
    assert sorted(pair.preference for pair in pairs) == [0.5, 1.0, 1.0]
    assert {pair.chosen.text for pair in pairs if pair.preference == 1.0} == {"c d e"}


def test_a_noiseless_annotator_gives_the_true_order_and_all_pairs():
    pairs = compare_all(groups_of_lengths(5), words, [CLEAR])
    assert len(pairs) == 5 * 6
    assert all(words(pair.prompt, pair.chosen) > words(pair.prompt, pair.rejected) for pair in pairs)
    assert {pair.preference for pair in pairs} == {1.0}
    assert {len([p for p in pairs if p.group == pair.group]) for pair in pairs} == {6}


def test_overlap_shares_the_work_out():
    annotators = [replace(CLEAR, name=name) for name in "xyz"]
    rankings = rank_all(groups_of_lengths(6), words, annotators, overlap=2)
    assert len(rankings) == 12
    assert len({ranking.id for ranking in rankings}) == 12
    for group in range(6):
        assert len({r.annotator for r in rankings if r.prompt.id == f"p{group}"}) == 2
    assert [sum(r.annotator == name for r in rankings) for name in "xyz"] == [4, 4, 4]


def test_seed_decides_everything_and_shown_orders_vary():
    groups = groups_of_lengths(30)
    noisy = [SimulatedAnnotator("n", temperature=5.0)]
    assert rank_all(groups, words, noisy, seed=1) == rank_all(groups, words, noisy, seed=1)
    assert rank_all(groups, words, noisy, seed=1) != rank_all(groups, words, noisy, seed=2)
    assert len({ranking.shown for ranking in rank_all(groups, words, noisy)}) > 10


def test_one_group_is_judged_alike_whatever_stands_beside_it():
    groups, noisy = groups_of_lengths(8), [SimulatedAnnotator("n", temperature=5.0)]
    alone = rank_all(groups[3:4], words, noisy)[0]
    among = rank_all(groups, words, noisy)[3]
    assert (alone.shown, alone.order) == (among.shown, among.order)


def test_drift_makes_late_rankings_worse():
    groups = groups_of_lengths(400)
    tiring = [SimulatedAnnotator("t", temperature=0.2, drift=0.2)]
    right = [words(p.prompt, p.chosen) > words(p.prompt, p.rejected) for p in compare_all(groups, words, tiring)]
    early, late = np.mean(right[: 50 * 6]), np.mean(right[-50 * 6 :])
    assert early > 0.8
    assert late < early - 0.15


def agreement(first: list[float], second: list[float]) -> float:
    """Share of the same choices among pairs that neither called a tie."""
    chosen = [(a, b) for a, b in zip(first, second, strict=True) if 0.5 not in (a, b)]
    return sum(a == b for a, b in chosen) / len(chosen)


def labels(rankings: list[Ranking]) -> list[float]:
    """For every pair (i, j), i < j, of every ranking: 1 if i was put first, 0 if j, 0.5 for a tie."""
    said = []
    for ranking in rankings:
        for i, j in itertools.combinations(range(len(ranking.answers)), 2):
            said.append(0.5 if (i, j) in ranking.ties else float(ranking.order.index(i) < ranking.order.index(j)))
    return said


def test_labellers_agree_with_gold_and_each_other_like_people_do(reference: list[AnswerGroup]):
    """Careful, average, hasty; people: 63-77 % with experts and 73 % with each other (arXiv:2009.01325, 2203.02155)."""
    truth = labels(rank_all(reference, gold_score, [replace(CLEAR, tie_margin=0.01)]))
    said = [labels(rank_all(reference, gold_score, [labeller])) for labeller in LABELLERS]
    careful, average, hasty = (agreement(one, truth) for one in said)
    assert 0.80 < careful < 0.92
    assert 0.72 < average < 0.86
    assert 0.66 < hasty < 0.80
    assert careful > average > hasty
    assert all(0.60 < agreement(a, b) < 0.82 for a, b in itertools.combinations(said, 2))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"lapse": 1.2}, "lapse"),
        ({"tie_margin": -1.0}, "tie_margin"),
        ({"drift": math.nan}, "drift"),
    ],
)
def test_values_out_of_range_are_named(fields: dict[str, float], named: str):
    with pytest.raises(ValueError, match=named):
        SimulatedAnnotator("a", **fields)


def test_bad_requests_are_named():
    groups = groups_of_lengths(2)
    with pytest.raises(ValueError, match=r"overlap must be in 1\.\.3"):
        compare_all(groups, words, overlap=4)
    with pytest.raises(ValueError, match="different names"):
        compare_all(groups, words, [CLEAR, CLEAR])
    with pytest.raises(ValueError, match=r"p0.*finite"):
        compare_all(groups, lambda prompt, answer: math.nan)


def test_the_same_answer_twice_is_no_comparison():
    """Answers a, b, a: three pairs less the one of equal texts."""
    answers = (Answer("a", (1,)), Answer("b", (2,)), Answer("a", (1,)))
    found = compare_all([AnswerGroup(user("Say a letter."), answers)], lambda prompt, answer: len(answer.text), seed=0)
    assert sorted((c.chosen.text, c.rejected.text) in {("a", "b"), ("b", "a")} for c in found) == [True, True]
