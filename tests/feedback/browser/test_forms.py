"""The forms of the pages as a browser sends them: who joins, who manages, who leaves, by keyboard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def project(server: Any, items: Any) -> int:
    """Two pairs to judge."""
    return server.project("preference", items("preference", 2))


def to_button(person: Any, text: str, beside: str = "", steps: int = 60) -> None:
    """Go on with Tab until a button or link of that text has the focus, in a table in the row of `beside`, and press it."""
    for _ in range(steps):
        person.press("Tab")
        focused = person.driver.switch_to.active_element
        row = person.driver.execute_script("return arguments[0].closest('tr')?.textContent ?? ''", focused)
        shown = " ".join(focused.text.split())
        if focused.tag_name in ("button", "a", "summary") and shown.startswith(text) and beside in row:
            person.press("Enter")
            return
    pytest.fail(f"Tab does not come to {text!r}")


def test_join_judge_and_sign_out(person: Any, server: Any, project: int, until: Any) -> None:
    from tutelage.feedback.people import new_invite, owner

    with server.db.write() as c:
        invite = new_invite(c, owner(c), "labeller", project, uses=1)
    person.enter("Somebody before")
    person.driver.delete_all_cookies()
    person.open(f"/join/{invite}")
    person.write("Ada Lovelace")
    person.press("Enter")
    until(lambda: "Ada Lovelace" in person.text("header"), "she is in")
    own = person.find("#return-url").get_attribute("value")
    assert own.startswith(server.url + "/enter/")
    person.open(f"/p/{project}/judge").go("1", "Enter")
    until(lambda: len(server.events(project)) == 1, "her judgment arrives")
    person.open("/")
    to_button(person, "Sign out")
    until(lambda: "signed out" in person.text("main"), "she is out")
    person.driver.get(own)
    until(lambda: "Ada Lovelace" in person.text("header"), "her own link lets her in again")
    person.open(f"/join/{invite}")
    assert "does not work any more" in person.text("main"), "one use"
    assert [text for text in person.complaints() if "404" not in text] == []


def test_pause_open_invite_instruct_and_add(person: Any, server: Any, project: int, until: Any, tmp_path: Path) -> None:
    person.enter("Grace Hopper").open(f"/admin/p/{project}")
    to_button(person, "Pause")
    until(lambda: "paused" in person.text(".card-head"), "paused")
    to_button(person, "Open again")
    until(lambda: "open" in person.text(".card-head"), "open")
    to_button(person, "Make a link")
    link = until(lambda: person.find("#invite-url"), "a link").get_attribute("value")
    assert link.startswith(server.url + "/join/")
    to_button(person, "Revoke")
    until(lambda: "Revoke" not in person.text("main"), "revoked")
    person.find("#text").send_keys("Prefer what is true.")
    to_button(person, "Save version 1")
    until(lambda: "Save version 2" in person.text("main"), "saved")
    rows = tmp_path / "more.jsonl"
    rows.write_text(json.dumps({"prompt": "One more?", "responses": ["Yes.", "Of course."]}) + "\n", encoding="utf-8")
    person.find("#file").send_keys(str(rows))
    to_button(person, "Add")
    until(lambda: person.find(".callout"), "an answer")
    assert "3 items" in person.text("main"), person.text("main")
    to_button(person, "Close")
    until(lambda: "closed" in person.text(".card-head"), "closed")
    assert person.complaints() == []


def test_link_for_somebody_and_erasure(person: Any, server: Any, project: int, until: Any) -> None:
    person.enter("Soon Forgotten", "labeller", project).open(f"/p/{project}/judge").go("1", "Enter")
    until(lambda: len(server.events(project)) == 1, "a judgment")
    person.enter("Grace Hopper").open(f"/admin/p/{project}")
    to_button(person, "New link", "Soon Forgotten")
    to_button(person, "Make a link", "Soon Forgotten")
    until(lambda: f"{server.url}/enter/" in person.text("main"), "a link")
    person.open(f"/admin/p/{project}")
    to_button(person, "Erase", "Soon Forgotten")
    to_button(person, "Erase Soon")
    until(lambda: person.find("main") and "Soon Forgotten" not in person.text("table"), "the name is gone")
    assert len(server.events(project)) == 1, "what was chosen stays"
    assert person.complaints() == []


def test_revoke_a_programs_token(person: Any, server: Any, until: Any) -> None:
    from tutelage.feedback.tokens import bearer, new_token

    with server.db.write() as c:
        token = new_token(c, "lost laptop", ["judgments:read"])
    person.enter("Grace Hopper").open("/admin")
    assert "lost laptop" in person.text("main")
    to_button(person, "Revoke the token lost laptop")
    until(lambda: "lost laptop" not in person.text("main"), "it is gone")
    with server.db.read() as c:
        assert bearer(c, token) is None
    assert person.complaints() == []
