"""The dashboard's parts about preferences and rankings: experts, reliability, biases, drift, what to look at again."""

from __future__ import annotations

from typing import Any

from tutelage.feedback.annotator_quality import THRESHOLD, AnnotatorQuality, rolling
from tutelage.feedback.charts import Bar, forest, sparks
from tutelage.feedback.judgments import Labels
from tutelage.feedback.pair_labels import by_annotator
from tutelage.feedback.project_quality import PairQuality
from tutelage.feedback.wording import cell, names_of, section, standing_text
from tutelage.statistics import Interval

Named = dict[str, str]


def pair_sections(quality: PairQuality, labels: Labels) -> list[dict[str, Any]]:
    """The sections, in the order of the page; those that compare people only where two judged the same pair."""
    names = names_of(labels)
    if not quality.shared:
        return [_people(quality, names), _biases(quality, names)]
    return [
        _experts(quality, names),
        _people(quality, names),
        _reliability(quality, names),
        _biases(quality, names),
        _drift(quality, names),
        _again(quality, names),
        _versions(quality),
    ]


def _experts(quality: PairQuality, names: Named) -> dict[str, Any]:
    rows = []
    for who, found in (
        ("Labellers with experts", quality.experts),
        ("Experts with each other", quality.between_experts),
    ):
        rows.append([who, cell(found.decided), cell(found.ties_half), cell(found.three_classes)])
    for who, one in quality.people.items():
        if one.experts.ties_half is not None:
            found = one.experts
            rows.append([names[who], cell(found.decided), cell(found.ties_half), cell(found.three_classes)])
    bars = [Bar(names[who], one.experts.ties_half) for who, one in quality.people.items() if one.experts.ties_half]
    svg = forest("Agreement with experts, ties half", bars, reference=0.5) if bars else ""
    head = ["Who", "Ties left out", "Ties count half", "Tie as a third class"]
    text = "Experts are admins and researchers; both people judged the same pair. 95 % intervals, clustered by prompt."
    return section("Agreement with experts", text, svg, head, rows)


def _people(quality: PairQuality, names: Named) -> dict[str, Any]:
    head = [
        "Annotator",
        "Judged",
        "Median time",
        "As others",
        "Check items",
        "Repeats",
        "Ties",
        "Both bad",
        "Time and agreement",
    ]
    rows = [
        [
            names[who],
            str(one.judged),
            f"{one.median_seconds:.0f} s",
            cell(one.peers),
            standing_text(one.checks),
            cell(one.repeats),
            f"{one.ties.estimate:.0%}",
            f"{one.both_bad.estimate:.0%}",
            cell(one.speed),
        ]
        for who, one in quality.people.items()
    ]
    bars = [Bar(names[who], _share(one), _light(one)) for who, one in quality.people.items()]
    svg = forest("Check items answered right", bars, reference=THRESHOLD) if any(b.interval for b in bars) else ""
    text = (
        f"Green: at least 30 check items and the lower bound at {THRESHOLD:.0%} or above; red: the upper bound below it; amber:"
        " not told yet, and how many more would tell. Time and agreement: Spearman's correlation."
    )
    return section("Annotators", text, svg, head, rows)


def _share(one: AnnotatorQuality) -> Interval | None:
    return one.checks.share if one.checks else None


def _light(one: AnnotatorQuality) -> str:
    return one.checks.light if one.checks else ""


def _reliability(quality: PairQuality, names: Named) -> dict[str, Any]:
    eta, side = quality.model.reliability, quality.model.side_bias
    order = sorted(quality.people, key=lambda who: -eta[who].estimate)
    rows = [[names[who], cell(eta[who]), cell(quality.accuracy.get(who)), cell(side[who])] for who in order]
    bars = [Bar(names[who], eta[who]) for who in order]
    text = (
        "From the labels alone. Crowd-BT eta: 1 is reliable, 1/2 a coin, less than that swapped keys. Dawid-Skene: how often the"
        " pair's true class is said. Side: log-odds for what stands first. With fewer than four labels a pair, compare"
        " people by these numbers; do not read them as shares of right answers."
    )
    head = ["Annotator", "Crowd-BT eta", "Dawid-Skene accuracy", "Side bias"]
    svg = forest("Crowd-BT reliability", bars, reference=0.5)
    return section("Reliability without known answers", text, svg, head, rows)


def _biases(quality: PairQuality, names: Named) -> dict[str, Any]:
    rows = [
        [
            names[who],
            cell(one.first_shown),
            "–" if one.side_p is None else f"{one.side_p:.3f}",
            cell(one.longer),
        ]
        for who, one in quality.people.items()
    ]
    bars = []
    for who, one in quality.people.items():
        bars += [Bar(f"{names[who]}: first shown", one.first_shown), Bar(f"{names[who]}: longer", one.longer)]
    text = (
        "Shares of decided pairs. Sides are drawn at random and balanced, so the first shown should win half; the longer"
        " answer may really be the better one."
    )
    head = ["Annotator", "First shown preferred", "p", "Longer preferred"]
    return section("Side and length", text, forest("Side and length", bars, reference=0.5), head, rows)


def _drift(quality: PairQuality, names: Named) -> dict[str, Any]:
    rows = [[names[who], cell(one.drift)] for who, one in quality.people.items()]
    found = by_annotator(label for unit in quality.units.values() for label in unit)
    ordered = {who: sorted(mine, key=lambda label: label.at) for who, mine in found.items()}
    curves = [(names[who], rolling(mine, quality.units)) for who, mine in ordered.items()]
    curves = [(name, values) for name, values in curves if len(values) > 1]
    svg = sparks("Agreement with others over the last 30 labels", curves) if curves else ""
    text = "Agreement with others in the later half of a person's judgments minus the earlier half; an interval off 0 is drift."
    return section("Drift", text, svg, ["Annotator", "Later minus earlier"], rows)


def _again(quality: PairQuality, names: Named) -> dict[str, Any]:
    rows = [
        [str(one.item), f"{one.score:.2f}", "; ".join(f"{names[who]}: {said}" for who, said in one.said.items())]
        for one in quality.queue
    ]
    text = (
        "Disagreement x strength, worst first, where no expert has judged yet. First and second are in a fixed order."
    )
    return section("To adjudicate", text, "", ["Item", "Score", "What was said"], rows)


def _versions(quality: PairQuality) -> dict[str, Any]:
    rows = [[str(version or "none"), str(n), cell(found)] for version, (n, found) in quality.versions.items()]
    text = "Agreement of two people who both read this version."
    return section("Versions of the instructions", text, "", ["Version", "Labels", "Agreement"], rows)
