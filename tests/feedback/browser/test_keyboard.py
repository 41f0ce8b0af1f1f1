"""Every kind of task by keyboard alone, in real Chromium: what was pressed is what is stored, for what was shown."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def desk(person: Any, server: Any, items: Any, until: Any) -> Any:
    """`desk(task, n)`: somebody in front of a fresh project of n items; the desk has project, go() and events(n)."""

    class Desk:
        def __init__(self, task: str, count: int | None = None, **settings: Any) -> None:
            self.project = server.project(task, items(task, count), **settings)
            person.enter(f"{task} {self.project}").open(f"/p/{self.project}/judge")

        def go(self, *keys: str) -> None:
            """Press keys that end the item, and wait for what comes next."""
            person.go(*keys)

        def events(self, count: int) -> list[dict[str, Any]]:
            """The project's events, as soon as there are that many; there are no more."""
            until(lambda: len(server.events(self.project)) >= count, f"{count} events")
            found: list[dict[str, Any]] = server.events(self.project)
            assert len(found) == count
            return found

    return Desk


def test_preference(person: Any, desk: Any) -> None:
    here = desk("preference", 5)
    assert person.find("[aria-pressed=true][data-choice]") is None, "nothing is chosen beforehand"
    person.press("Enter")
    assert "Choose an answer" in person.text("#toast")
    for keys in (["1"], ["2", "2"], ["Shift+Right"], ["Left", "="], ["b"]):
        here.go(*keys, "Enter")
    events = here.events(5)
    expected = [("first", 1), ("second", 2), ("second", 3), ("tie", None), ("both_bad", None)]
    assert [(e["payload"]["choice"], e["payload"].get("strength")) for e in events] == expected
    assert [e["keys"] for e in events] == [3, 3, 3, 3, 2]  # Enter in vain; Shift is a key
    assert all(0 < e["active_ms"] <= e["visible_ms"] + 100 for e in events)
    person.wait_for(".stage.ended")
    assert person.wait_for(".stage a.primary").get_attribute("href").endswith(f"/admin/p/{here.project}/quality")


def test_without_strength_ties_and_both_bad(person: Any, desk: Any) -> None:
    here = desk("preference", 2, options={"strength": False, "ties": False, "both_bad": False})
    assert len(person.driver.find_elements("css selector", "[data-choice]")) == 2
    person.press("0", "b", "1", "1")
    here.go("Enter")
    here.go("2", "Enter")
    assert [e["payload"] for e in here.events(2)] == [{"choice": "first"}, {"choice": "second"}]


def test_the_side_that_was_pressed_is_the_text_that_was_on_it(person: Any, desk: Any, server: Any) -> None:
    """Key -> place on the screen -> text, through the permutation that the event carries and that exports undo."""
    here = desk("preference", 8)
    person.press("m")
    shown = []
    for _ in range(8):
        person.press("2")
        shown.append(person.text(".answer.chosen .raw"))
        here.go("Enter")
    events = here.events(8)
    for event, text in zip(events, shown, strict=True):
        assert server.responses(event["item_id"])[event["permutation"][1]].split() == text.split()
        assert event["view"] == "raw"
    sides = [tuple(event["permutation"]) for event in events]
    assert sides.count((0, 1)) == sides.count((1, 0)) == 4, "sides are balanced for each person"


def test_ranking(person: Any, desk: Any) -> None:
    here = desk("ranking", 4)
    person.press("1", "3", "2", "2")
    assert person.text(".pairs") == "implied pairs: 5 of 6"
    assert person.text(".tiers").split() == ["A", ">", "C", "=", "D", ">", "B"]
    here.go("Enter")
    here.go("c", "1", "a", "4", "b", "2", "d", "3", "Enter")
    person.press("1", "Enter")
    assert "B, C, D" in person.text("#toast")
    here.go("2", "2", "2", "a", "Shift+Down", "n", "Enter")
    here.go("n", "Enter")
    assert [(e["payload"]["ranks"], e["payload"]["none_acceptable"]) for e in here.events(4)] == [
        ([1, 4, 2, 2], False),
        ([4, 2, 1, 3], False),
        ([1, 1, 1, 1], True),
        ([1, 1, 1, 1], True),
    ]


def test_rating_with_statements(desk: Any) -> None:
    here = desk("rating", 2)
    here.go("6", "Shift+3", "Enter")
    here.go("Right", "Right", "x", "Down", "Space", "Enter")
    assert [(e["payload"]["value"], e["payload"]["flags"]) for e in here.events(2)] == [
        (6, ["Hallucination"]),
        (2, ["Inappropriate for a customer assistant"]),
    ]


def test_yes_or_no(desk: Any) -> None:
    here = desk("yesno", 2)
    here.go("y", "Enter")
    here.go("y", "n", "Shift+9", "Enter")
    assert [(e["payload"]["value"], e["payload"]["flags"]) for e in here.events(2)] == [
        (True, []),
        (False, ["Gives harmful advice"]),
    ]


def test_critique_of_the_whole_and_of_parts(person: Any, desk: Any, server: Any) -> None:
    """Offsets count characters, not UTF-16 units: the text has a wave (U+1F30A) in it."""
    here = desk("critique", 1)
    person.press("a", "Home", *["Shift+Right"] * 7, "t", "6", "Enter")
    person.press("a", "Home", *["Right"] * 24, *["Shift+Right"] * 9, "t", "1", "Tab")
    person.write("what turns?")
    person.press("Ctrl+Enter", "c")
    person.write("Good, but nine days is wrong.")
    person.press("Esc", "w")
    person.write(" Or longer.")
    here.go("Ctrl+Enter")
    event = here.events(1)[0]
    text = server.responses(event["item_id"])[0]
    payload = event["payload"]
    assert [(s["quote"], s["tag"], s["note"]) for s in payload["spans"]] == [
        ("The sun", "good", ""),
        ("and turns", "wrong", "what turns?"),
    ]
    assert all(text[s["start"] : s["end"]] == s["quote"] for s in payload["spans"])
    assert payload["text"] == "Good, but nine days is wrong."
    assert payload["rewrite"] == text + " Or longer."


def test_demonstration(person: Any, desk: Any) -> None:
    here = desk("demonstration", 1)
    person.write("Hi Sam,")
    person.press("Enter")
    person.write("any news? Just ask, s u g g e s t.")
    assert person.text(".length") == "13 words, 42 characters"
    here.go("Ctrl+Enter")
    assert here.events(1)[0]["payload"] == {"text": "Hi Sam,\nany news? Just ask, s u g g e s t."}


def test_skip_and_flag(person: Any, desk: Any) -> None:
    here = desk("preference", 3)
    here.go("s", "2", "Enter")
    person.press("s", "4", "Enter")
    assert "Say why" in person.text("dialog .error")
    person.write("a song")
    here.go("Enter")
    person.press("f", "1", "3", "Tab", "Tab", "Tab")
    person.write("look")
    person.press("Ctrl+Enter")
    assert "Flagged: unsafe, prompt unclear" in person.text("[data-command=flag]")
    here.go("1", "Enter")
    events = here.events(3)
    assert [e["payload"].get("skip") for e in events] == ["cannot judge", "other: a song", None]
    assert events[2]["payload"]["flag"] == {"tags": ["unsafe", "prompt unclear"], "note": "look"}


def test_undo_reopens_with_what_was_said(person: Any, desk: Any, until: Any) -> None:
    here = desk("preference", 3)
    first = person.judges()
    here.go("2", "Enter")
    here.events(1)
    person.press("1", "u")
    until(lambda: person.judges() == first, "the first item again")
    assert person.find(".answer.chosen[data-index='1']"), "what was said is there"
    here.go("1", "Enter")
    events = here.events(3)
    assert [e["kind"] for e in events] == ["judgment", "undo", "judgment"]
    assert events[1]["supersedes"] == events[0]["seq"]
    assert [e["payload"].get("choice") for e in events] == ["second", None, "first"]
    assert events[0]["item_id"] == events[2]["item_id"]
    assert person.find(".answer.chosen[data-index='0']"), "the draft of the item that was set aside"


def test_drafts_survive_a_reload_and_another_browser(person: Any, desk: Any, server: Any, until: Any) -> None:
    here = desk("demonstration", 2)
    person.write("half a sent")
    person.open(f"/p/{here.project}/judge")
    assert person.find("#demonstration").get_property("value") == "half a sent"
    person.write("ence")
    from sqlalchemy import select

    from tutelage.feedback.schema import draft

    def saved() -> bool:
        with server.db.read() as c:
            return {"text": "half a sentence"} in c.execute(select(draft.c.payload)).scalars().all()

    until(saved, "the draft reaches the server")
    person.driver.execute_script("localStorage.clear()")
    person.open(f"/p/{here.project}/judge")
    assert person.find("#demonstration").get_property("value") == "half a sentence"


def test_instructions_help_raw_and_differences(person: Any, desk: Any, server: Any) -> None:
    from tutelage.feedback.projects import set_instructions

    here = desk("preference", 2)
    with server.db.write() as c:
        set_instructions(c, here.project, "Prefer what is *true*.", None)
        set_instructions(c, here.project, "Prefer what is **kind**.", None)
    person.open(f"/p/{here.project}/judge")
    assert "Prefer what is kind." in person.wait_for("#drawer").text, "opened by itself: they are new"
    assert len(person.driver.find_elements("css selector", "#instructions-version option")) == 2
    person.press("2", "g")
    assert person.find("#drawer") is None
    assert person.find(".answer.chosen"), "keys judge while the drawer is open"
    person.press("?")
    assert "Both bad" in person.text("dialog.help")
    person.press("1", "Esc")
    assert person.find(".answer.chosen[data-index='1']"), "keys in the help sheet judge nothing"
    person.press("d")
    assert len(person.driver.find_elements("css selector", "mark.own")) > 2
    person.press("d", "m")
    assert "**not ruined**" in person.text(".answers")
    person.press("m")
    assert "**" not in person.text(".answers")
