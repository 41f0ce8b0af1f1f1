"""Real processes on one database, killed with SIGKILL before commits and between commit and reply: nothing is lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from tutelage.feedback.database import open_database
from tutelage.feedback.items import NewItem
from tutelage.feedback.judging import Measured, submit
from tutelage.feedback.queue import Handed, next_task
from tutelage.feedback.schema import assignment, judgment_event, slot
from tutelage.records import user

PEOPLE, ITEMS, OVERLAP = 5, 30, 3
KILLED, SLOW, TWICE = 0.12, 0.15, 0.2


def work(url: str, project: int, who: int, folder: Path, seed: int) -> None:
    """One annotator's browser: an outbox on the disk, resent after every death; the lease of slow work runs out."""
    from killable import arm  # type: ignore[import-not-found]  # beside this file

    rng = random.Random(seed)
    db = open_database(url, migrate=False)
    arm(db, KILLED, seed)
    outbox = folder / f"{who}.outbox"
    while True:
        if not outbox.exists():
            slow = rng.random() < SLOW
            with db.write() as c:
                found = next_task(c, project, who, now=time.time() - 7200 if slow else None)
            if not isinstance(found, Handed):
                if found.reason == "done":
                    os._exit(0)
                time.sleep(0.01)
                continue
            if slow:
                time.sleep(0.03)
            outbox.write_text(json.dumps([found.assignment, f"{who}-{time.monotonic_ns()}"]))
        waiting, key = json.loads(outbox.read_text())
        for _ in range(2 if rng.random() < TWICE else 1):
            with db.write() as c:
                submit(c, waiting, who, key, {"text": key}, measured=Measured())
        with (folder / "acknowledged").open("a") as file:
            file.write(key + "\n")
        outbox.unlink()


def worker(arguments: tuple[Any, ...]) -> multiprocessing.process.BaseProcess:
    """A process of `work`, started by fork: nothing is imported anew."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


def run_all(url: str, project: int, people: list[int], folder: Path) -> int:
    """Everybody works until all is done; who dies comes back. Returns the number of deaths."""
    seeds = iter(range(10_000))
    running = {who: worker((url, project, who, folder, next(seeds))) for who in people}
    deaths, end = 0, time.monotonic() + 240
    while running:
        assert time.monotonic() < end, "not done in time"
        for who, process in list(running.items()):
            process.join(0.005)
            if process.exitcode is None:
                continue
            del running[who]
            if process.exitcode != 0:
                assert process.exitcode == -9, f"exit code {process.exitcode}"
                deaths += 1
                running[who] = worker((url, project, who, folder, next(seeds)))
    return deaths


def check(place: Any, folder: Path, project: int) -> None:
    """0 lost, 0 beside their sender, 0 over-assigned, 0 twice by one person, 0 left open."""
    rows = place.rows(select(judgment_event).where(judgment_event.c.project_id == project))
    owners = {row["id"]: row["annotator_id"] for row in place.rows(select(assignment))}
    acknowledged = (folder / "acknowledged").read_text().split()
    stored = Counter(row["key"] for row in rows)
    assert set(acknowledged) <= set(stored)
    assert max(stored.values()) == 1
    assert all(row["payload"] == {"text": row["key"]} for row in rows)
    assert all(
        row["key"].startswith(f"{row['annotator_id']}-") and owners[row["assignment_id"]] == row["annotator_id"]
        for row in rows
    )
    in_time = Counter(row["item_id"] for row in rows if not row["late"])
    assert set(in_time.values()) == {OVERLAP}
    assert len(in_time) == ITEMS
    assert max(Counter((row["item_id"], row["annotator_id"]) for row in rows).values()) == 1
    assert place.rows(select(slot).where(slot.c.done == 0)) == []


@pytest.mark.slow
def test_killed_processes_lose_nothing_and_assign_nothing_twice(place: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    project = place.project(
        [NewItem(user(f"question {i}")) for i in range(ITEMS)], task="demonstration", overlap=OVERLAP
    )
    people = [place.person(project, f"person {n}") for n in range(PEOPLE)]
    place.db.close()  # forked processes must not share its connections
    deaths = run_all(place.url, project, people, tmp_path)
    assert deaths >= 5, "the test must kill"
    check(place, tmp_path, project)
