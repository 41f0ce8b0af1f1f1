"""Label quality as people read it: tiles, tables and figures for the dashboard and for `tutelage labels report`."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

import numpy as np

from tutelage.feedback.charts import heat_map
from tutelage.feedback.database import Database
from tutelage.feedback.judgments import Labels
from tutelage.feedback.label_store import read_labels
from tutelage.feedback.pair_quality_sections import pair_sections
from tutelage.feedback.project_quality import Coefficients, PairQuality, pair_quality
from tutelage.feedback.score_quality import ScoreQuality, Scorer, score_quality
from tutelage.feedback.wording import cell, count_of, names_of, section, standing_text, tile
from tutelage.statistics import needed_for_half_width

METRICS = {
    "nominal": "Krippendorff's alpha, nominal (every difference counts alike)",
    "ordinal": "Krippendorff's alpha, ordinal (by rank)",
    "interval": "Krippendorff's alpha, interval (by distance)",
}


def quality_page(db: Database, project: int) -> dict[str, Any]:
    """The dashboard of a project: {summary, tiles, sections} as quality.html shows them. Bootstraps are seeded by the project."""
    with db.read() as connection:
        labels = read_labels(connection, project)
    return quality_of(labels, np.random.default_rng(project))


def quality_of(labels: Labels, rng: np.random.Generator, draws: int = 1000) -> dict[str, Any]:
    """{summary, tiles [{label, value, note, light}], sections [{title, text, svg, head, rows}]} of a project's labels."""
    judged = [one for one in labels.judgments if not one.skipped]
    skipped = len(labels.judgments) - len(judged)
    tiles = [
        tile("Judgments", str(len(judged)), f"{skipped} skipped, {labels.flags} flags"),
        tile("Annotators", str(len({one.annotator for one in judged})), "who judged something that still counts"),
    ]
    if not judged:
        return {"summary": "No judgments yet: come back when some are in.", "tiles": tiles, "sections": []}
    pairs, scores = pair_quality(labels, rng, draws), score_quality(labels, rng, draws)
    sections = []
    if pairs is not None:
        tiles += _pair_tiles(pairs)
        sections += [_coefficients(pairs.coefficients, labels)] if pairs.shared else [_alone()]
        sections += pair_sections(pairs, labels)
    if scores is not None:
        tiles += _score_tiles(scores)
        sections += [_coefficients(scores.coefficients, labels), _scorers(scores.people, labels)]
    sections.append(_effort(labels))
    return {"summary": _summary(labels, pairs), "tiles": tiles, "sections": sections}


def _summary(labels: Labels, pairs: PairQuality | None) -> str:
    late = sum(one.late for one in labels.judgments)
    text = (
        f"Project {labels.project!r}, task {labels.kind}, {count_of(labels.overlap, 'judgment')} asked for each item."
    )
    text += f" {late} came after the item had enough; they count." if late else ""
    if pairs is not None and pairs.ceiling is not None:
        text += (
            f" A model tested on single labels like these can show at most about {pairs.ceiling:.0%} accuracy: an upper"
            " bound that assumes items of equal difficulty, so the truth is lower."
        )
    return text + " Nothing here deletes a label; exports can weigh them."


def _pair_tiles(quality: PairQuality) -> list[dict[str, Any]]:
    tiles = []
    if (pairwise := quality.coefficients.pairwise) is not None:
        share = min(0.99, max(0.01, pairwise.estimate))
        wanted = needed_for_half_width(share, 0.03)
        note = f"{cell(pairwise)}; {wanted} pairs with two labels give +- 3 points"
        tiles.append(tile("Two people say the same", f"{pairwise.estimate:.0%}", note))
    alpha = quality.coefficients.alpha.get("nominal")
    if alpha is not None:
        tiles.append(tile("Alpha", f"{alpha.estimate:.2f}", f"Krippendorff, nominal, {cell(alpha)}"))
    if (experts := quality.experts.decided) is not None:
        tiles.append(tile("Agreement with experts", f"{experts.estimate:.0%}", f"ties left out, {cell(experts)}"))
    if quality.earlier is not None:
        note = f"the answer that the data calls better, {cell(quality.earlier)}"
        tiles.append(tile("Same as the data", f"{quality.earlier.estimate:.0%}", note))
    if quality.ceiling is not None:
        note = "upper bound from agreement between people"
        if quality.repeat_ceiling is not None:
            note += f"; {quality.repeat_ceiling:.0%} from repeats by the same person"
        tiles.append(tile("Ceiling", f"{quality.ceiling:.0%}", note))
    return tiles


def _score_tiles(quality: ScoreQuality) -> list[dict[str, Any]]:
    found = quality.coefficients
    if found.pairwise is None:
        return []
    alpha = found.alpha["ordinal"]
    return [
        tile("Two people rate the same", f"{found.pairwise.estimate:.0%}", cell(found.pairwise)),
        tile("Alpha", f"{alpha.estimate:.2f}", f"Krippendorff, ordinal, {cell(alpha)}"),
    ]


def _alone() -> dict[str, Any]:
    text = (
        "No pair was judged by two people, so nothing is known of agreement, reliability or drift. Invite somebody and ask"
        " for --overlap 2, or mix in pairs with a known answer (--check-items)."
    )
    return section("Agreement between annotators", text, "", [], [])


def _coefficients(found: Coefficients, labels: Labels) -> dict[str, Any]:
    """Agreement by every coefficient, and the map of every two people."""
    rows = [["Share of annotator pairs that agree", cell(found.pairwise)]]
    rows += [[METRICS[metric], cell(interval)] for metric, interval in found.alpha.items()]
    scored = labels.kind in ("rating", "yesno")
    rows.append(["Gwet's AC2, quadratic weights" if scored else "Gwet's AC1", cell(found.ac)])
    rows.append(["Fleiss' kappa (only where every item has equally many labels)", cell(found.fleiss)])
    if labels.kind == "ranking":
        rows.append(["Kendall's W, mean over items", cell(found.kendall)])
    names = names_of(labels)
    people = sorted({who for pair in found.kappas for who in pair})
    square = [[1.0 if a == b else found.kappas.get((a, b)) for b in people] for a in people]
    title = "Cohen's kappa of every two people" + (", quadratic weights" if scored else "")
    svg = heat_map(title, [names[who] for who in people], square) if people else ""
    text = "1 is perfect agreement, 0 is what chance gives. Intervals: 95 %, whole prompts drawn with replacement."
    return section("Agreement between annotators", text, svg, ["Measure", "Value"], rows)


def _scorers(people: Mapping[str, Scorer], labels: Labels) -> dict[str, Any]:
    names = names_of(labels)
    rows = [
        [
            names[who],
            str(one.judged),
            f"{one.median_seconds:.0f} s",
            cell(one.exact),
            cell(one.experts),
            cell(one.offset),
            standing_text(one.checks),
            cell(one.repeats),
        ]
        for who, one in people.items()
    ]
    head = ["Annotator", "Judged", "Median time", "As others", "As experts", "Lenient (+)", "Check items", "Repeats"]
    return section("Annotators", "Offset: own rating minus the others' mean of the same answers.", "", head, rows)


def _effort(labels: Labels) -> dict[str, Any]:
    names = names_of(labels)
    rows = []
    for who in dict.fromkeys(one.annotator for one in labels.judgments):
        mine = [one for one in labels.judgments if one.annotator == who]
        times = [one.active_seconds for one in mine if not one.skipped]
        skips = sum(one.skipped for one in mine)
        rows.append(
            [
                names[who],
                str(len(times)),
                str(skips),
                f"{median(times):.0f} s" if times else "",
                f"{sum(times) / 3600:.1f} h",
            ]
        )
    head = ["Annotator", "Judgments", "Skips", "Median time", "Active time"]
    return section("Effort", "Active time: the page was in front and used.", "", head, rows)
