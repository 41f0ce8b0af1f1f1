"""Real Chromium against the real server: processes, people who are signed in, what a page may not do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[2] / "src"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--force-prefers-reduced-motion",
    "--lang=en-US",
]
ORIGIN = "policy-nobody-may-see"
PATIENCE = 20.0
"""Seconds until something that must happen counts as missing."""


def until(ready: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """What `ready` gives as soon as it gives something; AssertionError with `what` when it does not."""
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException

    end = time.monotonic() + seconds
    while True:
        try:
            if found := ready():
                return found
        except (NoSuchElementException, StaleElementReferenceException):
            pass
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)


@dataclass
class Server:
    """The server's process, its database and the people in it."""

    database: str
    port: int
    process: subprocess.Popen[bytes] | None = None
    people: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from tutelage.feedback.database import open_database

        self.db = open_database(self.database)

    @property
    def url(self) -> str:
        """The address of the front page without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, die: str | None = None) -> None:
        """Start, and wait until it answers. `die`: see serve.py."""
        command = [sys.executable, str(HERE / "serve.py"), self.database, str(self.port)]
        environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
        self.process = subprocess.Popen([*command, *([die] if die else [])], env=environment)
        until(self.answers, "the server answers", 3 * PATIENCE)

    def answers(self) -> bool:
        """Whether it serves."""
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=2) as reply:
                return reply.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """SIGKILL, and no farewell."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def project(self, task: Any, items: Sequence[Any], name: str = "", **settings: Any) -> int:
        """A new project with these items."""
        from tutelage.feedback.projects import Project, add_items, create_project

        with self.db.write() as c:
            project = create_project(c, Project(name or f"{task} {time.monotonic_ns()}", task, **settings))
            add_items(c, project, items)
        return project

    def entry(self, name: str, role: Any = "admin", project: int | None = None) -> str:
        """A link that lets `name` in once; a labeller needs a project to belong to."""
        from sqlalchemy import insert

        from tutelage.feedback.people import add_person, new_entry
        from tutelage.feedback.schema import member

        with self.db.write() as c:
            if name not in self.people:
                self.people[name] = add_person(c, name, role)
                if project is not None:
                    c.execute(insert(member).values(project_id=project, annotator_id=self.people[name]))
            return f"{self.url}/enter/{new_entry(c, self.people[name], once=True, seconds=600)}"

    def responses(self, item_id: int) -> list[str]:
        """The texts of an item's responses in the order that permutations refer to."""
        from sqlalchemy import select

        from tutelage.feedback.schema import item, response

        with self.db.read() as c:
            ids = c.execute(select(item.c.responses).where(item.c.id == item_id)).scalar_one()
            return [c.execute(select(response.c.text).where(response.c.id == each)).scalar_one() for each in ids]

    def events(self, project: int) -> list[dict[str, Any]]:
        """The judgment events of a project, oldest first."""
        from sqlalchemy import select

        from tutelage.feedback.schema import judgment_event

        with self.db.read() as c:
            query = select(judgment_event).where(judgment_event.c.project_id == project)
            return [dict(row) for row in c.execute(query.order_by(judgment_event.c.seq)).mappings()]


@pytest.fixture(name="until", scope="session")
def _until() -> Callable[..., Any]:
    return until


@pytest.fixture(scope="session")
def items() -> Callable[..., list[Any]]:
    """`items(task, n)`: n different items from samples.json; their origin must never reach a browser."""
    from tutelage.feedback.projects import NewItem, NewResponse
    from tutelage.records import Message, Prompt

    samples = json.loads((HERE / "samples.json").read_text(encoding="utf-8"))

    def make(task: str, count: int | None = None) -> list[Any]:
        rows = samples[task]
        made = []
        for i in range(count or len(rows)):
            row, again = rows[i % len(rows)], f" ({i // len(rows) + 1})" if i >= len(rows) else ""
            messages = tuple(Message(m["role"], m["content"] + again) for m in row["messages"])
            answers = (NewResponse(text, {"author": ORIGIN, "score": 0.25}) for text in row["responses"])
            made.append(NewItem(Prompt(messages), tuple(answers)))
        return made

    return make


@contextmanager
def serving(database: str) -> Iterator[Server]:
    """A server on a database, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = Server(database, port)
    try:
        made.start()
        yield made
    finally:
        made.kill()
        made.db.engine.dispose()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests; a test that kills it starts it again."""
    with serving(f"sqlite:///{tmp_path_factory.mktemp('server') / 'feedback.db'}") as made:
        yield made


@pytest.fixture(scope="session")
def team_server(postgres: str) -> Iterator[Server]:
    """The same on PostgreSQL."""
    import psycopg

    with psycopg.connect(f"{postgres}/postgres", autocommit=True) as connection:
        connection.execute("CREATE DATABASE browser")
    with serving(f"{postgres}/browser") as made:
        yield made


@pytest.fixture(params=["sqlite", "postgres"])
def either(request: pytest.FixtureRequest) -> Server:
    """A server on each kind of database."""
    return request.getfixturevalue("server" if request.param == "sqlite" else "team_server")


class Person:
    """Somebody at a browser of their own: keys through the driver, and what the page shows."""

    def __init__(self, driver: Any, server: Server) -> None:
        self.driver, self.server = driver, server

    def enter(self, name: str, role: str = "admin", project: int | None = None) -> Person:
        """Come in by a link, as a fresh person at a clean browser."""
        self.driver.get("about:blank")  # the page that was open sends nothing more
        stored = {"origin": self.server.url, "storageTypes": "cookies,local_storage"}
        self.driver.execute_cdp_cmd("Storage.clearDataForOrigin", stored)
        self.driver.get(self.server.entry(name, role, project))
        return self

    def open(self, path: str) -> Person:
        """Go to a page; a judging screen is waited for."""
        self.driver.get(self.server.url + path)
        if path.endswith("/judge"):
            until(lambda: self.find("#stage[aria-busy=false]"), "the judging screen shows something")
        return self

    def go(self, *keys: str) -> None:
        """Press keys that end the item, and wait for the next one, or for the end."""
        asked = self.judges()
        self.press(*keys)
        until(lambda: self.find("#stage[aria-busy=false]") and self.judges() != asked, f"the next item after {keys}")

    def find(self, selector: str) -> Any:
        """The first element of a CSS selector that is shown, or None."""
        return next((e for e in self.driver.find_elements("css selector", selector) if e.is_displayed()), None)

    def text(self, selector: str) -> str:
        """The shown text of an element, empty where there is none."""
        found = self.find(selector)
        return found.text if found else ""

    def press(self, *keys: str) -> None:
        """Press keys one after another, wherever the focus is: "1", "Enter", "Shift+1", "Ctrl+Enter"."""
        from selenium.webdriver import ActionChains, Keys

        names = {"Enter": Keys.ENTER, "Left": Keys.ARROW_LEFT, "Right": Keys.ARROW_RIGHT, "Up": Keys.ARROW_UP}
        names |= {
            "Down": Keys.ARROW_DOWN,
            "Esc": Keys.ESCAPE,
            "Tab": Keys.TAB,
            "Shift": Keys.SHIFT,
            "Ctrl": Keys.CONTROL,
        }
        names |= {"Space": Keys.SPACE, "Home": Keys.HOME, "End": Keys.END}
        actions = ActionChains(self.driver, duration=0)
        for key in keys:
            *held, last = key.split("+") if len(key) > 1 else [key]
            for each in held:
                actions.key_down(names[each])
            actions.send_keys(names.get(last, last))
            for each in held:
                actions.key_up(names[each])
        actions.perform()

    def write(self, text: str) -> None:
        """Type a text into what has the focus."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver, duration=0).send_keys(text).perform()

    def judges(self) -> str:
        """What the screen asks now: the shown prompt."""
        return self.text(".prompt .turn:last-child .text")

    def wait_for(self, selector: str, what: str = "") -> Any:
        """An element, as soon as it is shown."""
        return until(lambda: self.find(selector), what or f"{selector} is shown")

    def offline(self, on: bool) -> None:
        """Cut this browser off, or reconnect it."""
        self.driver.execute_cdp_cmd("Network.enable", {})
        conditions = {"offline": on, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.driver.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)

    def complaints(self) -> list[str]:
        """What the browser wrote to its console: broken scripts and violations of the content security policy."""
        offline = "net::ERR_INTERNET_DISCONNECTED", "net::ERR_CONNECTION_REFUSED", "net::ERR_EMPTY_RESPONSE"
        logs = [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
        return [message for message in logs if not any(each in message for each in offline)]

    def traffic(self) -> tuple[list[str], int]:
        """The addresses asked for, and the bytes received, since it was asked last."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        finished = [e["params"]["encodedDataLength"] for e in events if e["method"] == "Network.loadingFinished"]
        return sent, int(sum(finished))


@pytest.fixture(scope="session")
def new_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Any]]:
    """A maker of browsers with fresh profiles; all are closed at the end."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("tool absent: chromium and chromedriver (Debian: chromium chromium-driver)")
    from selenium import webdriver

    made: list[Any] = []

    def make() -> Any:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}", "--window-size=1280,900"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        made.append(webdriver.Chrome(options, webdriver.ChromeService(driver)))
        return made[-1]

    yield make
    for browser in made:
        browser.quit()


@pytest.fixture(scope="session")
def _first_browser(new_browser: Callable[[], Any]) -> Any:
    return new_browser()


@pytest.fixture
def person(_first_browser: Any, server: Server) -> Iterator[Person]:
    """Somebody at the shared browser. Afterwards: not one broken script and not one violation of the policy."""
    someone = Person(_first_browser, server)
    someone.complaints()
    yield someone
    someone.offline(False)
    assert someone.complaints() == []
