"""What simulated annotators with known faults are said to be: each fault is found, in whom it is, and in nobody else."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tutelage.feedback.annotator_quality import annotator_quality, difference, expert_agreement, standing
from tutelage.feedback.charts import Bar, forest, heat_map, sparks
from tutelage.feedback.judgments import Item, Judgment, Labels, Person
from tutelage.feedback.pair_labels import PairLabel, by_annotator, by_unit, pair_labels
from tutelage.feedback.project_quality import adjudication_queue, pair_quality
from tutelage.feedback.quality import quality_of
from tutelage.feedback.sides import permutation
from tutelage.feedback.simulated import SimulatedAnnotator
from tutelage.records import Answer, user
from tutelage.statistics import Interval

CAREFUL = SimulatedAnnotator("careful", temperature=0.15)
AVERAGE = SimulatedAnnotator("average", temperature=0.3, lapse=0.05)
LEFT = SimulatedAnnotator("left", temperature=0.3, side_bias=1.0)
WORDY = SimulatedAnnotator("wordy", temperature=0.3, length_bias=1.5)
TIRING = SimulatedAnnotator("tiring", temperature=0.02, drift=0.1)
SHARP = SimulatedAnnotator("sharp", temperature=0.02)
COIN = SimulatedAnnotator("coin", lapse=1.0)


def collected(
    people: Sequence[SimulatedAnnotator], prompts: int, seed: int = 0, checks: int = 0, repeats: int = 0
) -> Labels:
    """Everybody judges every pair, sides drawn as the server draws them; the first `checks` are check items."""
    rng = np.random.default_rng(seed)
    items, gaps = [], []
    for i in range(prompts):
        quality = rng.random(2)
        lengths = rng.integers(5, 60, size=2)
        answers = tuple(Answer(("word " * int(n)) + f"{i} {k}") for k, n in enumerate(lengths))
        known = {"choice": "first" if quality[0] > quality[1] else "second"} if i < checks else None
        items.append(Item(i, "preference", user(f"question {i}", id=f"q{i}"), answers, {}, known))
        gaps.append((tuple(map(float, quality)), tuple(map(int, lengths))))
    judgments = []
    for who, person in enumerate(people):
        again = rng.permutation(prompts)[:repeats]
        for turn, index in enumerate([*rng.permutation(prompts), *again]):
            order = tuple(permutation("s", who, 2, turn))
            said = person.judge_pair(*gaps[index], first_shown=order[0], rng=rng, judged=turn)
            choice = "tie" if said == 0.5 else "first" if (said == 1.0) == (order[0] == 0) else "second"
            strength = int(rng.integers(1, 4)) if choice != "tie" else None
            payload = {"choice": choice, "strength": strength}
            judgments.append(
                Judgment(len(judgments), items[index], person.name, payload, order, float(turn), 5.0 + rng.random(), 1)
            )
    named = {p.name: Person(p.name, p.name.title(), "researcher" if p is CAREFUL else "labeller") for p in people}
    return Labels("simulated", "preference", tuple(judgments), named, {1: "Judge well."})


@pytest.fixture(scope="module")
def crowd() -> Labels:
    return collected([CAREFUL, AVERAGE, LEFT, WORDY, COIN], 260, seed=1, checks=60, repeats=100)


@pytest.fixture(scope="module")
def quality(crowd):
    return pair_quality(crowd, np.random.default_rng(0), draws=100)


@pytest.mark.slow
def test_the_side_bias_is_found_in_whom_it_is(quality) -> None:
    found = {name: one.first_shown for name, one in quality.people.items()}
    assert found["left"].low > 0.55
    assert quality.people["left"].side_p < 1e-4
    assert all(found[name].low < 0.5 < found[name].high for name in ("careful", "average", "wordy"))
    assert quality.model.side_bias["left"].low > 0.3


def test_the_length_bias_is_found_in_whom_it_is(quality) -> None:
    assert quality.people["wordy"].longer.low > max(quality.people[n].longer.estimate for n in ("careful", "average"))


def test_reliability_ranks_people_with_and_without_known_answers(quality) -> None:
    checks = {name: one.checks.share.estimate for name, one in quality.people.items()}
    eta = {name: found.estimate for name, found in quality.model.reliability.items()}
    assert max(checks, key=checks.get) == max(eta, key=eta.get) == "careful"
    assert min(eta, key=eta.get) == "coin"
    assert quality.people["careful"].checks.light == "green"
    assert quality.people["coin"].checks.light != "green"
    assert quality.accuracy["coin"].high < quality.accuracy["careful"].low


def test_agreement_with_experts_is_that_of_the_simulation(quality, crowd) -> None:
    pairs = by_unit(pair_labels(crowd.judgments))
    others = [x for unit in pairs.values() for x in unit if x.annotator == "average"]
    expert = {x.unit: x for unit in pairs.values() for x in unit if x.annotator == "careful"}
    same = np.mean([x.said == expert[x.unit].said for x in others])
    assert quality.people["average"].experts.decided.estimate == pytest.approx(same, abs=1e-12)
    assert quality.experts.decided.n == 4 * 260
    assert quality.people["coin"].experts.decided.high < quality.people["average"].experts.decided.low


def test_repeats_measure_a_person_against_themselves(quality) -> None:
    repeats = {name: one.repeats for name, one in quality.people.items()}
    assert (repeats["careful"].n, repeats["coin"].n) == (100, 100)
    assert repeats["careful"].low > repeats["coin"].high
    assert quality.repeat_ceiling is not None


@pytest.mark.slow
def test_drift_is_found() -> None:
    labels = collected([SHARP, TIRING, replace(SHARP, name="steady")], 400, seed=3)
    found = pair_quality(labels, np.random.default_rng(0), draws=100)
    assert found.people["tiring"].drift.high < 0
    assert found.people["tiring"].drift.high < found.people["steady"].drift.estimate


@pytest.mark.slow
def test_intervals_of_experts_and_sides_cover() -> None:
    """95 % intervals hold the truth in 93 to 97 % of simulated projects (and a little to each side for the draw)."""
    hits: list[bool] = []
    sides: list[bool] = []
    truth = _long_run()
    for seed in range(250):
        labels = collected([CAREFUL, AVERAGE], 120, seed=1000 + seed)
        found = pair_labels(labels.judgments)
        units = by_unit(found)
        one = annotator_quality(by_annotator(found)["average"], units, {"careful"})
        hits.append(one.experts.decided.low <= truth <= one.experts.decided.high)
        sides.append(one.first_shown.low <= 0.5 <= one.first_shown.high)
    assert 0.915 <= np.mean(hits) <= 0.985
    assert 0.915 <= np.mean(sides) <= 0.985


def _long_run() -> float:
    labels = collected([CAREFUL, AVERAGE], 20_000, seed=7)
    to_experts, _ = expert_agreement(by_unit(pair_labels(labels.judgments)), {"careful"})
    assert to_experts.decided is not None
    return to_experts.decided.estimate


def test_standing_is_the_wilson_lower_bound_rule() -> None:
    # 30 of 40: Wilson [0.598, 0.858]; 36 of 40: [0.769, 0.960]; 10 of 40: [0.142, 0.402]
    assert [standing(k, 40).light for k in (30, 36, 10)] == ["amber", "green", "red"]
    assert standing(25, 25).light == "amber"  # too few, however good: 5 more
    assert standing(25, 25).needed == 5
    amber = standing(30, 40)
    assert standing(0.75 * (40 + amber.needed), 40 + amber.needed).light == "green"
    assert standing(0.75 * (39 + amber.needed), 39 + amber.needed).light == "amber"


def label(unit: str, who: str, said, **more) -> PairLabel:
    return PairLabel(unit, unit, who, said, True, 1, **more)


def test_agreement_three_ways_by_hand() -> None:
    said = [("first", "first"), ("first", "tie"), ("tie", "tie"), ("second", "first")]
    rows = [label(f"u{i}", who, x) for i, pair in enumerate(said) for who, x in zip("ax", pair, strict=True)]
    found, _ = expert_agreement(by_unit(rows), {"x"})
    assert found.decided.estimate == 1 / 2  # of the two where both decide
    assert found.ties_half.estimate == (1 + 1 / 2 + 1 + 0) / 4
    assert found.three_classes.estimate == (1 + 0 + 1 + 0) / 4


def test_the_queue_is_disagreement_times_strength_without_what_experts_judged() -> None:
    rows = [
        *(label("weak", who, said, item=1, strength=1) for who, said in (("a", "first"), ("b", "second"))),
        *(label("strong", who, said, item=2, strength=3) for who, said in (("a", "first"), ("b", "second"))),
        *(label("agreed", who, "first", item=3, strength=3) for who in "ab"),
        *(label("settled", who, said, item=4) for who, said in (("a", "first"), ("b", "second"), ("x", "first"))),
    ]
    found = adjudication_queue(by_unit(rows), {"x"})
    assert [(one.item, round(one.score, 6)) for one in found] == [(2, 2.0), (1, 1.333333)]


def test_a_difference_needs_two_prompts_on_each_side() -> None:
    assert difference([(1.0, "a")], [(0.0, "b"), (1.0, "c")]) is None
    found = difference([(1.0, "a"), (0.5, "b")], [(0.0, "c"), (0.5, "d")])
    assert found.estimate == pytest.approx(-0.5)
    assert found.high > 0 > found.low  # four labels tell nothing


@pytest.mark.slow
def test_the_page_shows_everything_and_no_style_of_its_own(crowd) -> None:
    page = quality_of(crowd, np.random.default_rng(0), draws=100)
    assert set(page) == {"summary", "tiles", "sections"}
    titles = [part["title"] for part in page["sections"]]
    assert titles[:3] == ["Agreement between annotators", "Agreement with experts", "Annotators"]
    assert {"Side and length", "Drift", "To adjudicate", "Versions of the instructions", "Effort"} <= set(titles)
    assert "upper bound" in page["summary"]
    for part in page["sections"]:
        assert all(len(row) == len(part["head"]) for row in part["rows"])
        if part["svg"]:
            ElementTree.fromstring(part["svg"])
            assert not re.search(r"style=|<style|<script|\son\w+=|href", part["svg"])
    people = next(part for part in page["sections"] if part["title"] == "Annotators")
    assert {row[0] for row in people["rows"]} == {"Careful", "Average", "Left", "Wordy", "Coin"}


def test_the_page_of_nothing_says_so() -> None:
    page = quality_of(Labels("new", "preference", (), {}, {}), np.random.default_rng(0))
    assert (page["sections"], page["summary"][:16]) == ([], "No judgments yet")


@pytest.mark.parametrize("kind", ["rating", "yesno"])
def test_ratings_have_their_own_page(kind) -> None:
    rng = np.random.default_rng(5)
    judgments = []
    offsets = {"fair": 0, "kind": 1, "random": None}
    for i in range(60):
        truth = int(rng.integers(2, 6)) if kind == "rating" else int(rng.integers(0, 2))
        item = Item(i, kind, user(f"q{i}"), (Answer(f"a{i}"),), {"scale": [1, 7]}, {"value": truth} if i < 40 else None)
        for who, offset in offsets.items():
            high = 7 if kind == "rating" else 1
            low = 1 if kind == "rating" else 0
            value = int(rng.integers(low, high + 1)) if offset is None else min(high, truth + offset)
            payload = {"value": value if kind == "rating" else bool(value)}
            judgments.append(Judgment(len(judgments), item, who, payload, (0,), i, 3.0, 1))
    people = {who: Person(who, who) for who in offsets}
    page = quality_of(Labels("r", kind, tuple(judgments), people, {}), np.random.default_rng(0), draws=100)
    rows = {row[0]: row for part in page["sections"] if part["title"] == "Annotators" for row in part["rows"]}
    assert rows["fair"][6].startswith("1.00")
    assert "good" in rows["fair"][6]
    if kind == "rating":
        assert float(rows["kind"][5].split()[0]) > 0.5 > 0 > float(rows["fair"][5].split()[0]) - 0.5
    coefficients = page["sections"][0]["rows"]
    assert any(row[0].startswith("Gwet's AC2") and row[1] != "–" for row in coefficients)


def test_charts_are_svg_that_escapes_names() -> None:
    evil = '<script>alert("1")</script>'
    drawn = [
        forest(evil, [Bar(evil, Interval(0.5, 0.4, 0.6, 10, 10), "red"), Bar("none", None)], reference=0.5),
        heat_map(evil, [evil, "b"], [[1.0, -0.2], [-0.2, None]]),
        sparks(evil, [(evil, [0.1, 0.9])]),
    ]
    for svg in drawn:
        assert "<script" not in svg
        assert ElementTree.fromstring(svg).tag.endswith("svg")
    # 0.5 of the axis from 190 to 544 is 367
    assert 'cx="367.0"' in drawn[0]
    assert 'class="bad"' in drawn[0]


def test_somebody_alone_is_told_what_is_known_and_what_is_not() -> None:
    """Twenty pairs by one person, three of them against what the data preferred: no figure pretends to be agreement."""
    judgments = []
    for i in range(20):
        answers = (Answer(f"one {i}"), Answer(f"another {i}"))
        one = Item(i, "preference", user(f"question {i}"), answers, {}, earlier="second" if i % 2 else "first")
        shown = (1, 0) if i % 3 else (0, 1)
        better = (i % 2) if i >= 3 else 1 - i % 2
        judgments.append(Judgment(i, one, "ann", {"choice": ("first", "second")[shown.index(better)]}, shown))
    labels = Labels("alone", "preference", tuple(judgments), {"ann": Person("ann", "Ann")}, {})
    page = quality_of(labels, np.random.default_rng(0), draws=100)
    tiles = {each["label"]: each for each in page["tiles"]}
    assert tiles["Same as the data"]["value"] == "85%"  # 17 of 20
    assert page["summary"].startswith("Project 'alone', task preference, 1 judgment asked for each item.")
    titles = [each["title"] for each in page["sections"]]
    assert titles == ["Agreement between annotators", "Annotators", "Side and length", "Effort"]
    assert "No pair was judged by two people" in page["sections"][0]["text"]
    mute = [replace(one, item=replace(one.item, earlier=None)) for one in judgments]
    silent = quality_of(replace(labels, judgments=tuple(mute)), np.random.default_rng(0), draws=100)
    assert "Same as the data" not in {each["label"] for each in silent["tiles"]}
