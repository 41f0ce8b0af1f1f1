"""What strangers wrote, in every field that shows text; and what an annotator must not learn before judging."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
XSS = json.loads((Path(__file__).parents[1] / "xss.json").read_text(encoding="utf-8"))
CLEAN = [text for text in XSS if "\x00" not in text]
"""The store refuses a NUL character at the door."""
NAME = '"><img src=x onerror=alert(1)>'
FOREIGN = "script:not([src^='/static/']), img, iframe, object, embed, style, base, meta[http-equiv], [onerror], [onclick], math"


def assert_harmless(person: Any) -> None:
    """Nothing of the corpus became an element, a request elsewhere, a dialog or a complaint of the browser."""
    found = person.driver.find_elements("css selector", FOREIGN)
    assert [element.get_attribute("outerHTML") for element in found] == []
    asked, _ = person.traffic()
    assert [url for url in asked if "tracker.test" in url or url.endswith("/x")] == []
    assert person.driver.execute_script("return location.origin") == person.server.url
    links = person.driver.execute_script("return [...document.querySelectorAll('.prose a[href]')].map((a) => a.href)")
    assert all(link.startswith(("https://ok.test", "https://tracker.test")) for link in links)
    assert person.complaints() == []


@pytest.fixture(scope="module")
def hostile(server: Any) -> dict[str, int]:
    """A project of each kind whose every text is the corpus."""
    from tutelage.feedback.payloads import TASKS
    from tutelage.feedback.projects import NewItem, NewResponse, set_instructions
    from tutelage.records import Message, Prompt

    roles = ("user", "assistant", "system", "tool")
    turns = tuple(Message(roles[i % 4], text) for i, text in enumerate(CLEAN))  # type: ignore[arg-type]
    whole = ("\n\n".join(CLEAN), "\n".join(reversed(CLEAN)), " ".join(CLEAN))
    projects = {}
    for task in TASKS:
        answers = tuple(
            NewResponse(text) for text in whole[: {"preference": 2, "ranking": 3, "demonstration": 0}.get(task, 1)]
        )
        hostile_options = (
            {"question": NAME} if task == "yesno" else {"skip_reasons": [NAME, "other"], "flag_tags": [NAME]}
        )
        projects[task] = server.project(
            task, [NewItem(Prompt(turns), answers)], name=f"{NAME} {task}", options=hostile_options
        )
        with server.db.write() as c:
            set_instructions(c, projects[task], whole[0], None)
    return projects


@pytest.mark.parametrize("task", ["preference", "ranking", "rating", "yesno", "critique", "demonstration"])
def test_the_corpus_on_every_judging_screen(person: Any, hostile: dict[str, int], task: str) -> None:
    person.enter(NAME)
    person.traffic()
    person.open(f"/p/{hostile[task]}/judge")
    person.wait_for("#drawer")
    assert "<script>alert(1)</script>" in person.text("#drawer")
    assert "<img src=x onerror=alert(1)>" in person.text("#stage")
    assert_harmless(person)
    person.press("Esc", "m")
    assert_harmless(person)
    person.press("Shift+d", "?", "Esc", "Shift+f", "1", "Esc", "Shift+s", "Esc")
    assert_harmless(person)


def test_the_corpus_in_what_people_write(person: Any, hostile: dict[str, int], server: Any, until: Any) -> None:
    """A critique, its comments, a flag's note: kept as drafts, shown again, and shown to the admin."""
    person.enter(NAME)
    person.open(f"/p/{hostile['critique']}/judge")
    person.wait_for("#drawer")
    person.press("g", "c")
    person.write(NAME)
    person.press("Esc", "a", "Home", *["Shift+Right"] * 30, "t", "1", "Tab")
    person.write(NAME)
    person.press("Ctrl+Enter", "f", "1", "Tab")
    person.write(NAME)
    person.press("Ctrl+Enter")
    person.open(f"/p/{hostile['critique']}/judge")
    assert person.find("#critique").get_property("value") == NAME
    assert NAME in person.text(".spans")
    assert_harmless(person)
    person.press("Ctrl+Enter")
    until(lambda: server.events(hostile["critique"]), "it arrives")
    event = server.events(hostile["critique"])[0]
    assert (event["payload"]["text"], event["payload"]["spans"][0]["note"]) == (NAME, NAME)
    for path in ("/", "/admin", f"/admin/p/{hostile['critique']}", f"/p/{hostile['critique']}/instructions"):
        person.open(path)
        assert NAME in person.driver.find_element("css selector", "body").text
        assert_harmless(person)


def test_blind_until_judged(person: Any, server: Any, items: Any, until: Any) -> None:
    """Neither the page nor any reply names the answers' author, their score, their ids or the canonical order."""
    project = server.project("preference", items("preference"))
    person.enter("Blind", "labeller", project)
    person.driver.execute_cdp_cmd("Network.enable", {})
    person.traffic()
    person.open(f"/p/{project}/judge")
    fetched = person.wait_for("#stage[data-ahead]").get_attribute("data-ahead")
    person.go("1", "Enter")
    until(lambda: person.find("#stage").get_attribute("data-ahead") != fetched, "accepted, and one more fetched ahead")
    events = [json.loads(entry["message"])["message"] for entry in person.driver.get_log("performance")]
    replies = [e["params"] for e in events if e["method"] == "Network.responseReceived"]
    bodies = {
        reply["response"]["url"]: person.driver.execute_cdp_cmd(
            "Network.getResponseBody", {"requestId": reply["requestId"]}
        )["body"]
        for reply in replies
        if "/api/task/" in reply["response"]["url"] and reply["response"]["status"] == 200
    }
    assert any("ahead=1" in url for url in bodies)
    assert any(url.endswith("/submit") for url in bodies)
    for body in (*bodies.values(), person.driver.page_source):
        assert "policy-nobody-may-see" not in body
        assert "permutation" not in body
        assert "0.25" not in body
    for url, body in bodies.items():
        task = json.loads(body)
        item = (task.get("next") or task)["item"]
        assert item.keys() == {"kind", "prompt", "responses", "media", "options"}, url
        assert all(answer.keys() == {"text", "html", "media"} for answer in item["responses"])
