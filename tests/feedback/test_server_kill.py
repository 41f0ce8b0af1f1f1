"""The server killed with SIGKILL before a commit and between commit and reply, and restarted: real HTTP on both databases."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from tutelage.feedback.items import NewItem
from tutelage.feedback.schema import judgment_event, slot
from tutelage.records import user

PEOPLE, ITEMS, OVERLAP = 3, 12, 2


def browse(server: Any, client: Any, project: int, acknowledged: list[str]) -> None:
    """One person's page: what got no reply is sent again under the same key, however long it takes."""
    task = _try(lambda: client.next(project))
    while task["assignment"] is not None or task["reason"] == "wait":
        if task["assignment"] is None:
            time.sleep(0.02)
            task = _try(lambda: client.next(project))
            continue
        key = f"key-{task['assignment']}-{time.monotonic_ns()}"
        answer = _try(lambda task=task, key=key: client.judge(task["assignment"], key, {"text": key}).json())
        assert answer["accepted"]
        acknowledged.append(key)
        task = answer["next"]


def _try(send: Any) -> Any:
    """As long as nobody answers, again."""
    end = time.monotonic() + 120
    while True:
        try:
            return send()
        except httpx.TransportError:
            assert time.monotonic() < end, "the server stays away"
            time.sleep(0.05)


@pytest.mark.slow
def test_a_server_that_dies_around_commits_loses_nothing(own_server: Any, tmp_path: Path) -> None:
    place = own_server.place
    items = [NewItem(user(f"question {i}")) for i in range(ITEMS)]
    project = place.project(items, task="demonstration", overlap=OVERLAP)
    people = [place.person(project, f"person {n}") for n in range(PEOPLE)]
    own_server.start()
    clients = [own_server.client(who) for who in people]
    own_server.kill()
    own_server.start("0.3", "1")
    acknowledged: list[str] = []
    threads = [threading.Thread(target=browse, args=(own_server, client, project, acknowledged)) for client in clients]
    for thread in threads:
        thread.start()
    deaths, end = 0, time.monotonic() + 240
    while any(thread.is_alive() for thread in threads):
        assert time.monotonic() < end, "not done in time"
        if own_server.process.poll() is not None:
            assert own_server.process.returncode == -9
            deaths += 1
            own_server.start(*(("0.3", str(deaths + 1)) if deaths < 3 else ()))
        time.sleep(0.05)
    assert deaths >= 2, "the test must kill"
    rows = place.rows(select(judgment_event))
    stored = Counter(row["key"] for row in rows)
    assert set(acknowledged) == set(stored)
    assert max(stored.values()) == 1
    assert all(row["payload"] == {"text": row["key"]} for row in rows)
    assert set(Counter(row["item_id"] for row in rows if not row["late"]).values()) == {OVERLAP}
    assert len(rows) == ITEMS * OVERLAP
    assert place.rows(select(slot).where(slot.c.done == 0)) == []
