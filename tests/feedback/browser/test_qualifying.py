"""The qualification test in the browser: the goal above the item, the right answer and why after each, then real work."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def project(server: Any, items: Any) -> int:
    """Two items to judge, behind a test of five known answers, of which all five must be right."""
    from dataclasses import replace

    known = [
        replace(one, check_answer={"choice": "first"}, explanation=f"Number **{i}** says what was asked.", key=f"k{i}")
        for i, one in enumerate(items("preference", 9))
    ]
    options = {"qualify": 5, "qualify_threshold": 0.55}  # 5 of 5: lower bound 5 / (5 + 1.96^2) = .566
    return server.project("preference", [*items("preference", 11)[9:], *known], check_share=0.0, options=options)


def right_key(person: Any, server: Any, project: int) -> str:
    """The key of the known answer: the text on the screen that is the item's first."""
    from sqlalchemy import select

    from tutelage.feedback.schema import assignment

    with server.db.read() as c:
        newest = select(assignment.c.permutation).where(assignment.c.project_id == project)
        held = c.execute(newest.order_by(assignment.c.id)).scalars().all()
    return str(held[len(server.events(project))].index(0) + 1)


def test_pass_and_go_on(person: Any, server: Any, project: int, until: Any) -> None:
    person.enter("Newcomer", "labeller", project).open(f"/p/{project}/judge")
    assert "at least 5 answers" in person.text(".callout.test")
    for n in range(5):
        person.press(right_key(person, server, project), "Enter")
        person.wait_for("dialog.told")
        assert "Right" in person.text("dialog.told h2")
        assert "says what was asked" in person.text("dialog.told .prose")
        assert ("You have passed" in person.text("dialog.told")) == (n == 4)
        person.press("Enter")
        until(lambda: not person.find("dialog") and person.find("#stage[aria-busy=false]"), "the next item")
    assert person.find(".callout.test") is None, "real work now"
    person.press("u")
    until(lambda: "nothing to undo" in person.text("#toast"), "what was told is not taken back")
    assert [text for text in person.complaints() if "409" not in text] == []
    person.go("1", "Enter")
    until(lambda: len(server.events(project)) == 6, "it arrives")
    assert person.find("dialog") is None


def test_a_wrong_answer_is_explained_and_many_end_the_test(person: Any, server: Any, project: int, until: Any) -> None:
    person.enter("Hasty", "labeller", project).open(f"/p/{project}/judge")
    for _ in range(5):
        wrong = {"1": "2", "2": "1"}[right_key(person, server, project)]
        person.press(wrong, "Enter")
        person.wait_for("dialog.told.wrong")
        right = {"1": "Answer 2", "2": "Answer 1"}[wrong]
        assert f"The known answer: {right} is better." in person.text("dialog.told")
        person.press("Enter")
        until(lambda: not person.find("dialog"), "read")
    person.wait_for(".stage.ended")
    assert "The qualification test is over" in person.text(".stage")
    assert len(server.events(project)) == 5
