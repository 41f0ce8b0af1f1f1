"""Two people, two tabs, double clicks, the back button, no network, SIGKILL: nothing acknowledged is lost or doubled.

What the database decides runs on PostgreSQL too: two people at once, and a server that dies between commit and reply.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def choices(server: Any, project: int) -> list[str]:
    """What was chosen, in the order of arrival."""
    return [event["payload"]["choice"] for event in server.events(project)]


def test_two_people_at_once(person: Any, either: Any, items: Any, until: Any, new_browser: Any) -> None:
    project = either.project("preference", items("preference", 8))
    person, other = type(person)(person.driver, either), type(person)(new_browser(), either)
    for someone, name in ((person, "Two A"), (other, "Two B")):
        someone.enter(name).open(f"/p/{project}/judge")
    while not (person.find(".stage.ended") and other.find(".stage.ended")):
        for someone, key in ((person, "1"), (other, "2")):
            if someone.judges():
                someone.go(key, "Enter")
    until(lambda: len(either.events(project)) == 8, "all arrive")
    events = either.events(project)
    assert max(Counter(event["item_id"] for event in events).values()) == 1, "each item once: the overlap is 1"
    assert len({event["annotator_id"] for event in events}) == 2
    assert not any(event["late"] for event in events)
    assert other.complaints() == []


def test_two_tabs(person: Any, server: Any, items: Any, until: Any) -> None:
    project = server.project("preference", items("preference", 3))
    person.enter("Tabs").open(f"/p/{project}/judge")
    first = person.driver.current_window_handle
    asked = person.judges()
    person.driver.switch_to.new_window("tab")
    person.open(f"/p/{project}/judge")
    assert person.judges() == asked, "one person holds one item, in every tab"
    person.go("1", "Enter")
    until(lambda: len(server.events(project)) == 1, "it arrives")
    person.driver.close()
    person.driver.switch_to.window(first)
    until(lambda: person.judges() != asked, "the other tab goes on")
    person.go("2", "Enter")
    until(lambda: len(server.events(project)) == 2, "it arrives")
    assert len({event["item_id"] for event in server.events(project)}) == 2


def test_double_click_and_held_enter(person: Any, server: Any, items: Any, until: Any) -> None:
    from selenium.webdriver import ActionChains

    project = server.project("preference", items("preference", 3))
    person.enter("Double").open(f"/p/{project}/judge")
    person.go("1", "Enter")
    person.press("2", "u")
    until(lambda: len(server.events(project)) == 2, "undone")
    until(lambda: person.find(".answer.chosen"), "reopened")
    ActionChains(person.driver).double_click(person.find("[data-command=submit]")).perform()
    until(lambda: len(server.events(project)) == 3, "judged again")
    assert person.find(".answer.chosen"), (
        "the next item, whose draft is complete, was not submitted by the second click"
    )
    person.press("Enter", "Enter")
    until(lambda: len(server.events(project)) == 4, "judged")
    assert person.judges()
    assert [event["kind"] for event in server.events(project)] == ["judgment", "undo", "judgment", "judgment"]


def test_back_button(person: Any, server: Any, items: Any, until: Any) -> None:
    project = server.project("preference", items("preference", 3))
    person.enter("Back").open("/")
    person.open(f"/p/{project}/judge")
    first = person.judges()
    person.go("1", "Enter")
    until(lambda: len(server.events(project)) == 1, "it arrives")
    second = person.judges()
    person.driver.back()
    person.wait_for(".project-card")
    person.driver.forward()
    until(lambda: person.judges() == second, "the item in hand, not the one that was judged")
    assert first != second
    assert choices(server, project) == ["first"]


def test_offline_and_back(person: Any, server: Any, items: Any, until: Any) -> None:
    project = server.project("preference", items("preference", 4))
    person.enter("Train").open(f"/p/{project}/judge")
    person.wait_for("#stage[data-ahead]", "the next item is fetched ahead")
    person.offline(True)
    person.go("1", "Enter")
    person.press("2", "Enter")
    until(lambda: "2 judgments are kept" in person.text("#banner"), "the banner says what is kept")
    assert server.events(project) == []
    person.offline(False)
    until(lambda: choices(server, project) == ["first", "second"], "both arrive, in order, once")
    until(lambda: not person.find("#banner"), "the banner goes")
    until(person.judges, "the third item")
    person.go("1", "Enter")
    until(lambda: len(server.events(project)) == 3, "and on it goes")
    assert len({event["item_id"] for event in server.events(project)}) == 3


def test_undo_while_offline(person: Any, server: Any, items: Any, until: Any) -> None:
    """What has not left this device is taken back here; what may have arrived waits for the connection."""
    project = server.project("preference", items("preference", 4))
    person.enter("Tunnel").open(f"/p/{project}/judge")
    person.wait_for("#stage[data-ahead]", "the next item is fetched ahead")
    person.offline(True)
    person.go("1", "Enter")
    until(lambda: "1 judgment is kept" in person.text("#banner"), "kept")
    person.press("2", "Enter")
    until(lambda: "2 judgments are kept" in person.text("#banner"), "kept")
    person.press("u")
    until(lambda: person.find(".answer.chosen[data-index='1']"), "the second is open again")
    person.press("1", "Enter")
    person.offline(False)
    until(lambda: choices(server, project) == ["first", "first"], "the first as it was, the second as it was changed")


@pytest.mark.parametrize(("when", "committed"), [("before-commit", 0), ("before-reply", 1)])
def test_sigkill(person: Any, either: Any, items: Any, until: Any, when: str, committed: int) -> None:
    project = either.project("preference", items("preference", 3))
    person = type(person)(person.driver, either)
    person.enter(f"Kill {when}").open(f"/p/{project}/judge")
    person.wait_for("#stage[data-ahead]", "the next item is fetched ahead")
    either.kill()
    either.start(when)
    person.go("2", "Enter")
    until(lambda: either.process.poll() is not None, "the server is dead")
    until(lambda: "1 judgment is kept" in person.text("#banner"), "the page says so")
    assert len(either.events(project)) == committed
    either.start()
    until(lambda: not person.find("#banner"), "the page has reached the server again")
    assert choices(either, project) == ["second"], "neither lost nor doubled"
    person.go("1", "Enter")
    until(lambda: choices(either, project) == ["second", "first"], "and on it goes")
