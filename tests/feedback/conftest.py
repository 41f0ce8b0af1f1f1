"""Databases of both kinds, PostgreSQL included (started here), people and items in them, and the server as a process."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tutelage.feedback.database import Database, open_database
from tutelage.feedback.items import NewItem, NewResponse
from tutelage.feedback.people import add_person, join, new_entry, new_invite, owner
from tutelage.feedback.projects import Project, add_items, create_project
from tutelage.records import user

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1] / "src"


def pairs(count: int, start: int = 0) -> list[NewItem]:
    """Items of two responses; `good` is the canonical first."""
    made = []
    for i in range(start, start + count):
        answers = (
            NewResponse(f"good {i}", {"policy": "secret-model-7"}),
            NewResponse(f"bad {i}", {"policy": "secret-model-8"}),
        )
        made.append(NewItem(user(f"question {i}", id=f"q{i}"), answers, key=f"item-{i}"))
    return made


@dataclass
class Place:
    """A database with ways to fill it."""

    db: Database
    url: str
    pairs = staticmethod(pairs)

    def project(self, items: Sequence[NewItem], task: Any = "preference", **settings: Any) -> int:
        """A new project with these items."""
        with self.db.write() as c:
            made = create_project(
                c, Project(**{"name": f"p{time.monotonic_ns()}", "task": task, "check_share": 0.0} | settings)
            )
            add_items(c, made, items)
        return made

    def person(self, project: int, name: str = "Ann", role: Any = "labeller", held_out: bool = False) -> int:
        """Somebody who joined a project by an invite link."""
        with self.db.write() as c:
            made = join(c, new_invite(c, owner(c), role, project, held_out=held_out), name)
        assert made is not None
        return made

    def admin(self, name: str = "Ada") -> int:
        """Another admin."""
        with self.db.write() as c:
            return add_person(c, name, "admin")

    def rows(self, query: Any) -> list[dict[str, Any]]:
        """What a query finds."""
        with self.db.read() as c:
            return [dict(row) for row in c.execute(query).mappings()]


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL server of this session: its URL without a database name."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = shutil.which("initdb") or (str(programs[-1]) if programs else None)
    if initdb is None:
        pytest.skip("PostgreSQL absent: as root, apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    who: dict[str, Any] = {"user": "postgres"} if os.getuid() == 0 else {}  # it refuses to run as root
    if who:
        shutil.chown(folder, "postgres")
    quiet: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **who}
    subprocess.run([initdb, "-D", f"{folder}/data", "-U", "tester", "-A", "trust", "--no-sync"], check=True, **quiet)
    port = free_port()
    settings = ["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"]
    command = [str(Path(initdb).with_name("postgres")), "-D", f"{folder}/data", "-p", str(port), *settings]
    process = subprocess.Popen(command, **quiet)
    try:
        _until(lambda: _answers(port), process)
        yield f"postgresql://tester@127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGQUIT)  # at once: nothing of it is needed again
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answers(port: int) -> bool:
    import psycopg

    try:
        psycopg.connect(f"host=127.0.0.1 port={port} user=tester dbname=postgres", connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def _until(ready: Callable[[], bool], process: subprocess.Popen[Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, f"it stopped with {process.returncode}"
        assert time.monotonic() < end, f"it does not answer within {seconds} s"
        time.sleep(0.05)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'feedback.db'}"
        return
    import psycopg

    server, name = request.getfixturevalue("postgres"), f"t{time.monotonic_ns()}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
        yield f"{server}/{name}"
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[call-overload]


@pytest.fixture
def place(url: str) -> Iterator[Place]:
    """An open database of each kind."""
    db = open_database(url)
    yield Place(db, url)
    db.close()


@pytest.fixture
def lite(tmp_path: Path) -> Iterator[Place]:
    """An open SQLite database, where the kind does not matter."""
    url = f"sqlite:///{tmp_path / 'feedback.db'}"
    db = open_database(url)
    yield Place(db, url)
    db.close()


class Server:
    """The annotation server as a process of its own, on a free port of loopback; it can be killed and started again."""

    def __init__(self, place: Place) -> None:
        self.place, self.port = place, free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, *dies: str) -> None:
        """Start it and wait until it answers, or (one that `dies`, see killable.py) is dead already: people may be waiting for it."""
        command = [sys.executable, str(HERE / "killable.py"), self.place.url, str(self.port), *dies]
        self.process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(SOURCE)})
        _until(lambda: self.answers() or bool(dies and self.ended()), self.process)

    def ended(self) -> bool:
        """Whether the process is no more."""
        return self.process is None or self.process.poll() is not None

    def answers(self) -> bool:
        """Whether it serves."""
        try:
            return httpx.get(f"{self.url}/healthz", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        """SIGKILL, without farewell."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def client(self, who: int | None = None) -> Client:
        """A browser's worth of HTTP, signed in as somebody."""
        made = Client(self.url)
        if who is not None:
            with self.place.db.write() as c:
                token = new_entry(c, who, once=True, seconds=600)
            assert made.get(f"/enter/{token}").status_code == 303
            made.csrf = made.get("/").text.split('name="csrf" content="')[1].split('"')[0]
        return made


class Client(httpx.Client):
    """HTTP with a cookie jar and the session's secret."""

    csrf = ""

    def __init__(self, url: str) -> None:
        super().__init__(base_url=url, timeout=30)

    def send_json(self, method: str, path: str, body: Any) -> httpx.Response:
        """What a page's script sends."""
        return self.request(method, path, json=body, headers={"x-csrf-token": self.csrf})

    def send_form(self, path: str, **fields: Any) -> httpx.Response:
        """What a page's form sends."""
        return self.post(path, data={"csrf": self.csrf, **fields})

    def next(self, project: int) -> dict[str, Any]:
        """The next task."""
        answer = self.get(f"/api/task/next?project={project}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def judge(self, assignment: int, key: str, payload: Any, **more: Any) -> httpx.Response:
        """Submit a judgment."""
        return self.send_json("POST", f"/api/task/{assignment}/submit", {"key": key, "payload": payload, **more})


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server on a SQLite database for many tests, each with projects of its own."""
    url = f"sqlite:///{tmp_path_factory.mktemp('serving') / 'feedback.db'}"
    made = Server(Place(open_database(url), url))
    made.start()
    yield made
    made.kill()
    made.place.db.close()


@pytest.fixture
def own_server(place: Place) -> Iterator[Server]:
    """A server that the test starts and kills, on an empty database of each kind."""
    made = Server(place)
    yield made
    made.kill()
