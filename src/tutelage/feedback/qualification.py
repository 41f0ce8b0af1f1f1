"""The qualification test: check items whose answer is explained after each, until a person is shown to be good enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, select

from tutelage.feedback.judgments import canonical_payload, pairs, shown_payload
from tutelage.feedback.markdown import render
from tutelage.feedback.payloads import Task
from tutelage.feedback.schema import assignment, item, judgment_event, project, slot


@dataclass(frozen=True)
class Qualification:
    """How far somebody is: `right` of `judged` known answers; `passed` by Wilson's lower bound, `failed` when out of reach."""

    judged: int
    right: float
    least: int
    threshold: float
    light: str

    @property
    def passed(self) -> bool:
        """At least `least` answers, and the lower 95 % bound of the share is `threshold` or more."""
        return self.light == "green"

    @property
    def failed(self) -> bool:
        """At least `least` answers, and even the upper bound is below: more would not help."""
        return self.light == "red" and self.judged >= self.least

    @property
    def shown(self) -> dict[str, Any]:
        """For the page."""
        about = {"judged": self.judged, "right": self.right, "least": self.least, "threshold": self.threshold}
        return about | {"passed": self.passed, "failed": self.failed}


_JUDGED = (
    select(judgment_event.c.item_id, judgment_event.c.payload, judgment_event.c.permutation)
    .add_columns(item.c.kind, item.c.check_answer)
    .join(assignment, assignment.c.id == judgment_event.c.assignment_id)
    .join(slot, slot.c.id == assignment.c.slot_id)
    .join(item, item.c.id == judgment_event.c.item_id)
    .where(judgment_event.c.project_id == bindparam("project"), judgment_event.c.annotator_id == bindparam("annotator"))
    .where(judgment_event.c.kind == "judgment", slot.c.pool == "qualify")
    .order_by(judgment_event.c.seq)
)
_KNOWN = (
    select(item.c.kind, item.c.check_answer, item.c.explanation, assignment.c.permutation, assignment.c.project_id)
    .add_columns(assignment.c.annotator_id, project.c.options, judgment_event.c.payload)
    .join_from(assignment, item, item.c.id == assignment.c.item_id)
    .join(project, project.c.id == assignment.c.project_id)
    .join(judgment_event, judgment_event.c.assignment_id == assignment.c.id)
    .where(assignment.c.id == bindparam("assignment"), judgment_event.c.kind == "judgment")
    .order_by(judgment_event.c.seq)
    .limit(1)
)


def standing_before_work(c: Connection, one: RowMapping, person: RowMapping) -> Qualification | None:
    """How far a labeller is who has a test to pass; None for everybody who may work.

    The option `qualify` is the least number of known answers. Researchers and admins are the measure, and the held-out
    group stays unscreened on purpose: neither is tested.
    """
    if not one["options"].get("qualify") or person["role"] != "labeller" or person["held_out"]:
        return None
    test = standing_of(c, one["id"], person["id"], one["options"])
    return None if test.passed else test


def standing_of(c: Connection, project_id: int, who: int, options: dict[str, Any]) -> Qualification:
    """How far somebody is. The first judgment of an item counts: what was said after its answer was shown proves nothing."""
    from tutelage.feedback.annotator_quality import LEAST, THRESHOLD, standing  # scipy: not for every page

    first: dict[int, float] = {}
    for row in c.execute(_JUDGED, {"project": project_id, "annotator": who}):
        said = canonical_payload(row.kind, row.payload, row.permutation)
        first.setdefault(row.item_id, agreement(row.kind, said, row.check_answer))
    least, threshold = options.get("qualify") or LEAST, options.get("qualify_threshold", THRESHOLD)
    right = sum(first.values())
    light = standing(right, len(first), threshold, least).light if first else "amber"
    return Qualification(len(first), right, least, threshold, light)


def agreement(kind: Task, said: dict[str, Any], known: dict[str, Any]) -> float:
    """1 for the known answer, 0 for another; of a ranking, the share of its pairs that stand as they should."""
    if kind == "ranking":
        count = len(known["ranks"])
        wanted = list(pairs(kind, known, count))
        return sum(a == b for a, b in zip(pairs(kind, said, count), wanted, strict=True)) / len(wanted)
    key = "choice" if kind == "preference" else "value"
    return float(said[key] == known[key])


def feedback(c: Connection, assignment_id: int) -> dict[str, Any]:
    """What the page says after a judgment of the test: {"right", "answer" in shown places, "explanation" (HTML), "test"}."""
    one = c.execute(_KNOWN, {"assignment": assignment_id}).mappings().one()
    said = canonical_payload(one["kind"], one["payload"], one["permutation"])
    return {
        "right": agreement(one["kind"], said, one["check_answer"]) == 1.0,
        "answer": shown_payload(one["kind"], one["check_answer"], one["permutation"]),
        "explanation": render(one["explanation"]) if one["explanation"] else "",
        "test": standing_of(c, one["project_id"], one["annotator_id"], one["options"]).shown,
    }
