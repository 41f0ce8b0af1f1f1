"""Which annotators an export takes, what the annotator model says of them, and the agreement table of its manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tutelage.feedback.judgments import Labels
from tutelage.feedback.pair_labels import by_annotator, by_unit, pair_labels, score_labels
from tutelage.statistics import CrowdBT, crowd_bt, krippendorff_alpha, pairwise_agreement


def choose_annotators(labels: Labels, which: str, good: Callable[[float, int], bool]) -> Labels:
    """The labels of all, of the screened (`good` of right and all check items) or of the other annotators; held-out stay.

    Raises ValueError where nobody is left.
    """
    if which == "all":
        return labels
    pairs = by_annotator(x for x in pair_labels(labels.judgments) if x.truth is not None and not x.repeat)
    scores = by_annotator(x for x in score_labels(labels.judgments) if x.truth is not None and not x.repeat)
    right = {who: (sum(x.said == x.truth for x in mine), len(mine)) for who, mine in pairs.items()}
    right |= {who: (sum(x.value == x.truth for x in mine), len(mine)) for who, mine in scores.items()}
    passed = {who for who, (k, n) in right.items() if good(k, n)}
    held_out = {key for key, person in labels.people.items() if person.held_out}
    keep = held_out | {who for who in labels.people if (who in passed) == (which == "screened")}
    judgments = tuple(one for one in labels.judgments if one.annotator in keep)
    if not judgments:
        raise ValueError(
            f"--annotators {which}: nobody is left; {len(passed)} of {len(labels.people)} passed the check items"
        )
    return replace(labels, judgments=judgments)


def model_of(labels: Labels) -> CrowdBT:
    """Crowd-BT of the pairs. Raises ValueError where the task has none."""
    votes = [label.vote for label in pair_labels(labels.judgments) if not label.repeat]
    if not votes:
        raise ValueError(
            f"--weights reliability and --labels model need preferences or rankings; the task is {labels.kind}"
        )
    return crowd_bt(votes)


def with_agreement(about: Mapping[str, Any], labels: Labels) -> dict[str, Any]:
    """`about` and an agreement table: how far two people say the same, and alpha, where items overlap."""
    pairs = [[x.said for x in unit] for unit in by_unit(pair_labels(labels.judgments)).values()]
    scores = [[x.value for x in unit] for unit in by_unit(score_labels(labels.judgments)).values()]
    units: list[list[Any]] = [*pairs, *scores]
    if not any(len(unit) >= 2 for unit in units):
        return {**about, "agreement": {"overlap": "no item was judged twice: nothing is known about agreement"}}
    table = {
        "two people say the same": str(pairwise_agreement(units)),
        "Krippendorff's alpha, nominal": f"{krippendorff_alpha(units):.3f}",
    }
    return {**about, "agreement": table}
