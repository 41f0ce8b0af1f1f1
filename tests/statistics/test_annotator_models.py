"""Dawid-Skene and Crowd-BT: the known truth comes back from simulated labels, with intervals that cover it."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.special import expit

from tutelage.statistics import PairVote, crowd_bt, dawid_skene, dawid_skene_accuracy
from tutelage.statistics.crowd_bt import _objective, _start, _Votes

ETA = (0.92, 0.85, 0.75, 0.6, 0.3)
SIDE = (0.0, 0.3, 0.8, 0.0, -0.5)


def votes_of(rng: np.random.Generator, pairs: int, spread: float = 2.0) -> list[PairVote]:
    """Every annotator on every pair, drawn from the model itself."""
    out = []
    for pair in range(pairs):
        gap = spread * rng.normal()
        for who, (eta, side) in enumerate(zip(ETA, SIDE, strict=True)):
            first = bool(rng.random() < 0.5)
            pull = side if first else -side
            p = eta * expit(gap + pull) + (1 - eta) * expit(-gap + pull)
            out.append(PairVote(pair, who, float(rng.random() < p), first))
    return out


def test_crowd_bt_gradient_is_the_slope_of_its_likelihood() -> None:
    rng = np.random.default_rng(0)
    votes = votes_of(rng, 12)
    votes[3] = PairVote(0, 3, 0.5, None)
    table = _Votes.of(votes)
    at = _start(table) + 0.4 * rng.normal(size=11)
    numeric = approx_fprime(at, lambda x: _objective(x, table)[0], 1e-6)
    np.testing.assert_allclose(_objective(at, table)[1], numeric, rtol=1e-4, atol=1e-4)


def test_crowd_bt_finds_the_reliable_the_biased_and_the_swapped_keys() -> None:
    found = crowd_bt(votes_of(np.random.default_rng(1), 600))
    for who, (eta, side) in enumerate(zip(ETA, SIDE, strict=True)):
        assert found.reliability[who].low - 0.03 <= eta <= found.reliability[who].high + 0.03
        assert found.side_bias[who].low - 0.1 <= side <= found.side_bias[who].high + 0.1
    estimates = [found.reliability[who].estimate for who in range(5)]
    assert estimates == sorted(estimates, reverse=True)
    assert estimates[4] < 0.5 < estimates[3]
    assert found.spread == pytest.approx(2.0, rel=0.35)


def test_crowd_bt_by_hand_on_one_voice() -> None:
    # one annotator, one vote: eta = 1/2 by its prior's symmetry is pulled up by nothing but the shared gap, so P stays 1/2
    found = crowd_bt([PairVote("p", "a", 1.0, None), PairVote("q", "a", 0.5, None)])
    assert found.first_wins["q"] == pytest.approx(0.5, abs=1e-6)  # a tie says neither
    both = [PairVote(p, who, 1.0, None) for p in range(40) for who in "abc"]
    agreed = crowd_bt(both)
    assert agreed.first_wins[0] > 0.8  # three who always agree
    turned = [PairVote(v.pair, v.annotator, 1 - v.outcome, None) for v in both]
    other = crowd_bt(turned)
    assert other.first_wins[0] == pytest.approx(1 - agreed.first_wins[0], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("votes", [1, 2, 3, 5])
def test_crowd_bt_on_a_handful_of_votes_knows_next_to_nothing(votes: int) -> None:
    rng = np.random.default_rng(votes)
    for _ in range(20):
        few = [PairVote(int(rng.integers(2)), who, float(rng.integers(2)), bool(rng.integers(2))) for who in (0, 1)]
        found = crowd_bt(few * votes if votes > 3 else few[:votes])
        for one in (*found.reliability.values(), *found.side_bias.values()):
            assert one.low <= one.estimate <= one.high
        assert all(one.high - one.low > 0.5 for one in found.reliability.values())


def test_crowd_bt_pairs_of_one_prompt_that_say_the_same_count_as_one() -> None:
    once = votes_of(np.random.default_rng(9), 150)
    copies = [replace(vote, pair=(vote.pair, copy), cluster=vote.pair) for vote in once for copy in range(2)]
    alone, twice = crowd_bt(once), crowd_bt(copies)
    blind = crowd_bt([replace(vote, cluster=None) for vote in copies])
    width = {
        name: [i.high - i.low for i in found.side_bias.values()]
        for name, found in zip("otb", (alone, twice, blind), strict=True)
    }
    np.testing.assert_allclose(width["t"], width["o"], rtol=0.2)  # not narrower for having been copied
    assert sum(width["b"]) < 0.8 * sum(width["o"])  # as it would be if nobody said where the pairs came from


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [400, 120])
def test_crowd_bt_intervals_cover_what_they_say(pairs: int) -> None:
    """Over projects whose gaps are as wide as the prior expects, 95 % intervals hold the truth 93 to 97 times in a hundred."""
    rng, projects = np.random.default_rng(3), 200
    hits = np.zeros((2, 5))
    for _ in range(projects):
        found = crowd_bt(votes_of(rng, pairs, spread=2 * np.exp(0.5 * rng.normal())))
        hits[0] += [found.reliability[k].low <= ETA[k] <= found.reliability[k].high for k in range(5)]
        hits[1] += [found.side_bias[k].low <= SIDE[k] <= found.side_bias[k].high for k in range(5)]
    print(pairs, hits / projects, hits.mean() / projects)
    assert (hits / projects).min() > 0.89, hits / projects
    assert 0.93 <= hits.mean() / projects <= 0.97, hits / projects


CONFUSION = np.array(
    [
        [[0.90, 0.05, 0.05], [0.05, 0.90, 0.05], [0.1, 0.1, 0.8]],
        [[0.70, 0.20, 0.10], [0.10, 0.70, 0.20], [0.2, 0.2, 0.6]],
        [[0.80, 0.10, 0.10], [0.40, 0.50, 0.10], [0.3, 0.1, 0.6]],
        [[0.40, 0.30, 0.30], [0.30, 0.40, 0.30], [0.3, 0.3, 0.4]],
    ]
)
CLASSES = ("A", "B", "tie")


def classified(rng: np.random.Generator, items: int) -> tuple[list[tuple[int, int, str]], list[int]]:
    truth = rng.choice(3, size=items, p=[0.45, 0.35, 0.2])
    labels = [(i, k, CLASSES[rng.choice(3, p=CONFUSION[k, c])]) for i, c in enumerate(truth) for k in range(4)]
    return labels, truth.tolist()


def test_dawid_skene_recovers_confusion_and_truth() -> None:
    labels, truth = classified(np.random.default_rng(4), 1500)
    fitted = dawid_skene(labels, CLASSES)
    assert np.abs(fitted.confusion - CONFUSION).max() < 0.08
    assert fitted.prevalence == pytest.approx([0.45, 0.35, 0.2], abs=0.06)
    majority = [max(CLASSES, key=[x[2] for x in labels[4 * i : 4 * i + 4]].count) for i in range(1500)]
    of_majority = np.mean([CLASSES.index(m) == t for m, t in zip(majority, truth, strict=True)])
    of_model = np.mean(fitted.posterior.argmax(axis=1) == truth)
    assert of_model > of_majority + 0.02  # it knows whom to believe


def test_dawid_skene_posterior_is_bayes_rule() -> None:
    labels, _ = classified(np.random.default_rng(5), 60)
    fitted = dawid_skene(labels, CLASSES)
    for item in (0, 17, 59):
        joint = fitted.prevalence.copy()
        for (_, who, said), true in itertools.product([x for x in labels if x[0] == item], range(3)):
            joint[true] *= fitted.confusion[who, true, CLASSES.index(said)]
        np.testing.assert_allclose(fitted.posterior[item], joint / joint.sum(), atol=1e-4)


def test_dawid_skene_intervals_hold_the_truth_and_say_how_many() -> None:
    labels, _ = classified(np.random.default_rng(6), 400)
    truth = np.einsum("c,kcc->k", [0.45, 0.35, 0.2], CONFUSION)
    found = dawid_skene_accuracy(labels, CLASSES, rng=np.random.default_rng(7), draws=60)
    assert all(found[k].low - 0.04 <= truth[k] <= found[k].high + 0.04 for k in range(4))
    assert found[0].low > found[3].high
    assert (found[0].n, found[0].clusters) == (400, 400)


@pytest.mark.slow
def test_dawid_skene_intervals_cover() -> None:
    rng = np.random.default_rng(8)
    truth = np.einsum("c,kcc->k", [0.45, 0.35, 0.2], CONFUSION)
    hits = []
    for _ in range(60):
        found = dawid_skene_accuracy(classified(rng, 300)[0], CLASSES, rng=rng, draws=100)
        hits += [found[k].low <= truth[k] <= found[k].high for k in range(4)]
    assert 0.9 <= np.mean(hits) <= 0.99


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dawid_skene([], CLASSES), "needs labels; got none"),
        (lambda: dawid_skene([(1, 1, "C")], CLASSES), "label 'C' is no class"),
        (lambda: dawid_skene([(1, 1, "A")], ["A"]), "at least two different names"),
        (lambda: crowd_bt([]), "needs votes; got none"),
        (lambda: crowd_bt([PairVote(1, "a", 0.7)]), "got 0.7 by 'a'"),
    ],
)
def test_bad_input_is_named_at_the_door(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
