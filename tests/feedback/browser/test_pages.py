"""Every page and every kind of task, looked at: accessible, small, blind, on this server alone, fit for any screen.

With TUTELAGE_SCREENSHOTS set (`make screenshots`) each view is also written there as a picture, and all as one sheet.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
TASKS = ("preference", "ranking", "rating", "yesno", "critique", "demonstration")
LIGHTEST = 150_000
"""Bytes that a page may weigh, all its files together."""
VIEWS = {
    "wide": (1280, 860, 1, "light"),
    "dark": (1280, 860, 1, "dark"),
    "phone": (320, 640, 1, "light"),
    "zoom": (640, 430, 2, "light"),  # 1280 x 860 at 200 %
}
GUIDE = "# What to prefer\n\nPrefer the answer that **helps more**:\n\n1. It is true.\n2. It answers what was asked."


def look(person: Any, view: str) -> None:
    """The screen of a view."""
    width, height, scale, scheme = VIEWS[view]
    metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
    person.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    person.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@pytest.fixture(scope="module")
def axe() -> str:
    """The source of axe-core, from the package that carries it."""
    spec = importlib.util.find_spec("axe_playwright_python")
    if spec is None or spec.origin is None:
        pytest.skip("tool absent: axe-core (make installs axe-playwright-python without its dependencies)")
    return (Path(spec.origin).parent / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pictures() -> Iterator[Callable[[Any, str], None]]:
    """`pictures(person, name)` writes the screen, if pictures are wanted; at the end all of them as one sheet."""
    folder = Path(os.environ["TUTELAGE_SCREENSHOTS"]) if os.environ.get("TUTELAGE_SCREENSHOTS") else None
    taken: list[Path] = []

    def take(person: Any, name: str) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            taken.append(folder / f"{name}.png")
            person.driver.save_screenshot(str(taken[-1]))

    yield take
    if folder is not None:
        contact_sheet(taken, folder / "contact-sheet.png")


def contact_sheet(paths: list[Path], out: Path, columns: int = 4, height: int = 380) -> None:
    """Small copies of all pictures, beside each other, named."""
    from PIL import Image, ImageDraw

    width = height * 3 // 2
    sheet = Image.new("RGB", (columns * (width + 12), -(-len(paths) // columns) * (height + 34)), "#777d88")
    for i, path in enumerate(paths):
        with Image.open(path) as picture:
            picture = picture.convert("RGB")
            picture.thumbnail((width, height))
            at = (i % columns * (width + 12) + 6, i // columns * (height + 34) + 26)
            sheet.paste(picture, at)
            ImageDraw.Draw(sheet).text((at[0], at[1] - 18), path.stem, fill="white")
    sheet.save(out)


def check(person: Any, axe: str) -> None:
    """No console complaint, no serious or critical issue of axe-core, nothing wider than the screen."""
    assert person.complaints() == []
    person.driver.execute_script(axe)
    run = "const done = arguments[0]; axe.run(document, {resultTypes: ['violations']}).then((r) => done(r.violations))"
    found = person.driver.execute_async_script(run)
    issues = [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in found if v["impact"] in ("serious", "critical")]
    assert issues == []
    person.complaints()  # what axe-core itself asked the browser for
    wide = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    scroll, client = person.driver.execute_script(wide)
    assert scroll <= client, f"{scroll - client} px wider than the screen"


@pytest.fixture(scope="module")
def site(server: Any, items: Any) -> dict[str, Any]:
    """A project of each kind with instructions and some work done; the paths of the pages."""
    from tutelage.feedback.people import new_invite, owner
    from tutelage.feedback.projects import set_instructions

    names = {"preference": "Cooking and science, round 3"}
    made = {task: server.project(task, items(task), names.get(task, f"{task}, first round")) for task in TASKS}
    with server.db.write() as c:
        for project in made.values():
            set_instructions(c, project, GUIDE, None)
        invite = new_invite(c, owner(c), "labeller", made["preference"], uses=9)
    one = made["preference"]
    pages = {
        "home": "/",
        "join": f"/join/{invite}",
        "instructions": f"/p/{one}/instructions",
        "manage": "/admin",
        "project": f"/admin/p/{one}",
        "missing": f"/join/{invite[:-1]}x",
    }
    return {"pages": pages, "projects": made}


def test_pages(person: Any, site: dict[str, Any], axe: str, pictures: Any) -> None:
    person.enter("Grace Hopper")
    for name, path in site["pages"].items():
        for view in VIEWS:
            look(person, view)
            person.open(path)
            if name == "missing":
                assert [text for text in person.complaints() if "404" not in text] == []
            check(person, axe)
            pictures(person, f"{name}-{view}")


@pytest.mark.parametrize("task", TASKS)
def test_judging(person: Any, site: dict[str, Any], axe: str, pictures: Any, task: str) -> None:
    chosen = {"preference": ["2", "2"], "ranking": ["1", "3", "2", "2"], "rating": ["6", "Shift+3"], "yesno": ["y"]}
    person.enter("Grace Hopper")
    for view in VIEWS:
        look(person, view)
        person.open(f"/p/{site['projects'][task]}/judge")
        if person.find("#drawer"):
            person.press("Esc", "Esc")
        person.press(*chosen.get(task, ["Esc"]))
        check(person, axe)
        pictures(person, f"{task}-{view}")


def test_dialogs_drawer_and_differences(person: Any, site: dict[str, Any], axe: str, pictures: Any) -> None:
    person.enter("Grace Hopper")
    for view in ("wide", "phone"):
        look(person, view)
        person.open(f"/p/{site['projects']['preference']}/judge")
        person.wait_for("#drawer")
        check(person, axe)
        pictures(person, f"drawer-{view}")
        person.press("g")
        for key, name in (("?", "help"), ("s", "skip"), ("f", "flag")):
            person.press(key)
            person.wait_for("dialog[open]")
            check(person, axe)
            pictures(person, f"{name}-{view}")
            person.press("Esc")
        person.press("d")
        check(person, axe)
        pictures(person, f"differences-{view}")
        person.press("d")
        person.driver.execute_script("localStorage.clear()")


def test_right_to_left_and_the_end(person: Any, site: dict[str, Any], axe: str, pictures: Any) -> None:
    person.enter("Grace Hopper")
    look(person, "wide")
    person.open(f"/p/{site['projects']['preference']}/judge")
    while "لغة" not in person.judges():
        person.go("1", "Enter")
    lines = person.driver.execute_script(
        "return [...document.querySelectorAll('.answer .rendered p')].map((p) => {"
        "const range = document.createRange(); range.selectNodeContents(p);"
        "return [range.getClientRects()[0].right, p.getBoundingClientRect().right]})"
    )
    assert all(abs(text - edge) < 2 for text, edge in lines), "Arabic begins at the right edge"
    check(person, axe)
    pictures(person, "right-to-left-wide")
    person.go("1", "Enter")
    while not person.find(".stage.ended"):
        person.go("1", "Enter")
    check(person, axe)
    pictures(person, "done-wide")


def test_joining_and_the_qualification_test(
    person: Any, site: dict[str, Any], server: Any, items: Any, axe: str, pictures: Any
) -> None:
    """From an invitation to the link to keep; then known answers, told right and wrong, to the end of the test."""
    from dataclasses import replace

    person.enter("Grace Hopper")
    person.driver.delete_all_cookies()
    look(person, "wide")
    person.open(site["pages"]["join"])
    person.write("Ada Lovelace")
    person.press("Enter")
    person.wait_for("h1")
    check(person, axe)
    pictures(person, "joined-wide")
    why = "It says **what was asked**, and no more."
    known = [
        replace(one, check_answer={"choice": "first"}, explanation=why, key=f"q{i}")
        for i, one in enumerate(items("preference", 12))
    ]
    options = {"qualify": 12, "qualify_threshold": 0.99}
    project = server.project("preference", known, "Before you begin", check_share=0.0, options=options)
    person.enter("Newcomer at the door", "labeller", project).open(f"/p/{project}/judge")
    for view in VIEWS:
        look(person, view)
        check(person, axe)
        pictures(person, f"qualify-{view}")
    seen: set[str] = set()
    for _ in range(12):
        person.press("1", "Enter")
        person.wait_for("dialog.told")
        kind = "wrong" if person.find("dialog.told.wrong") else "right"
        for view in VIEWS if kind not in seen else ():
            look(person, view)
            check(person, axe)
            pictures(person, f"told-{kind}-{view}")
        seen.add(kind)
        person.press("Enter")
        person.wait_for("#stage[aria-busy=false]")
    assert seen == {"right", "wrong"}, "sides are drawn for each"
    person.wait_for(".stage.ended")
    check(person, axe)
    pictures(person, "qualify-over-phone")
    person.complaints()


@pytest.fixture(scope="module")
def judged(server: Any, items: Any) -> int:
    """A project in which three people have judged forty pairs each, two of them mostly alike."""
    import random

    from sqlalchemy import select

    from tutelage.feedback import judging, queue
    from tutelage.feedback.people import add_person
    from tutelage.feedback.schema import assignment

    project = server.project("preference", items("preference", 40), "Judged by three", overlap=3)
    rng = random.Random(0)
    with server.db.write() as c:
        people = [add_person(c, name, role) for name, role in (("Ann", "researcher"), ("Bo", "admin"), ("Cy", "admin"))]
    for who, care in zip(people, (0.95, 0.85, 0.5), strict=True):
        for _ in range(40):
            with server.db.write() as c:
                handed = queue.next_task(c, project, who)
                order = c.execute(
                    select(assignment.c.permutation).where(assignment.c.id == handed.assignment)
                ).scalar_one()
                place = "first" if (order[0] == 0) == (rng.random() < care) else "second"
                measured = judging.Measured(active_ms=rng.randrange(2000, 20000))
                key = f"judged-{who}-{handed.assignment}"
                judging.submit(c, handed.assignment, who, key, {"choice": place, "strength": 2}, measured=measured)
    return project


def test_quality(person: Any, judged: int, axe: str, pictures: Any) -> None:
    person.enter("Grace Hopper")
    for view in VIEWS:
        look(person, view)
        person.open(f"/admin/p/{judged}/quality")
        assert "Krippendorff" in person.text("main")
        check(person, axe)
        pictures(person, f"quality-{view}")
        person.open(f"/admin/p/{judged}")
        assert "Ann" in person.text("table")
        check(person, axe)
        pictures(person, f"people-{view}")


def test_weight_and_where_it_comes_from(person: Any, site: dict[str, Any], server: Any) -> None:
    """Every byte comes from this server, and there are few of them."""
    person.enter("Grace Hopper")
    look(person, "wide")
    for path in (*site["pages"].values(), f"/p/{site['projects']['ranking']}/judge"):
        person.driver.execute_cdp_cmd("Network.clearBrowserCache", {})
        person.traffic()
        person.open(path)
        requests, received = person.traffic()
        assert requests
        assert [url for url in requests if not url.startswith(server.url + "/")] == []
        assert 1_000 < received < LIGHTEST, f"{path}: {received} bytes"
    person.complaints()  # the missing page
