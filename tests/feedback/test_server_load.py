"""Fifty people at once with a second to think, over TCP against a process of its own: how long hand-out and submission take."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

PEOPLE, SECONDS, THINK = 50, 12.0, 1.0
SLOWEST = 0.2
"""Seconds within which 95 % of the submissions are answered with the next item."""


async def person(cookies: httpx.Cookies, url: str, csrf: str, project: int, times: list[float]) -> int:
    """Somebody judges until the time is over; returns how many."""
    done, end = 0, time.monotonic() + SECONDS
    async with httpx.AsyncClient(base_url=url, cookies=cookies, headers={"x-csrf-token": csrf}, timeout=30) as client:
        task = (await client.get(f"/api/task/next?project={project}")).json()
        await asyncio.sleep(hash(csrf) % 1000 / 1000 * THINK)
        while time.monotonic() < end:
            begun = time.monotonic()
            body = {"key": f"key-{csrf[:20]}-{done}", "payload": {"choice": "first"}}
            task = (await client.post(f"/api/task/{task['assignment']}/submit", json=body)).json()["next"]
            times.append(time.monotonic() - begun)
            done += 1
            await asyncio.sleep(max(0.0, THINK - times[-1]))
    return done


def cpu_seconds(pid: int) -> float:
    """What a process has computed so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
def test_fifty_people_at_once(serving: Any, record_property: Any) -> None:
    place = serving.place
    project = place.project(place.pairs(1500), overlap=3)
    clients = [serving.client(place.person(project, f"person {n}")) for n in range(PEOPLE)]
    times: list[float] = []

    async def everybody() -> list[int]:
        return await asyncio.gather(*(person(c.cookies, serving.url, c.csrf, project, times) for c in clients))

    before = cpu_seconds(serving.process.pid)
    counts = asyncio.run(everybody())
    computed = (cpu_seconds(serving.process.pid) - before) / len(times)
    p95 = sorted(times)[int(0.95 * len(times))]
    print(f"{len(times)} submissions, p95 {p95 * 1000:.0f} ms, {computed * 1000:.1f} ms of computing each")
    assert sum(counts) == len(times) >= PEOPLE
    assert clients[0].next(project)["progress"]["done"] == sum(counts)
    assert computed < 1 / PEOPLE, "one core keeps up with fifty people who take a second each"
    idle = os.getloadavg()[0] < os.cpu_count()  # type: ignore[operator]
    assert p95 < SLOWEST or not idle, f"p95 {p95:.3f} s"
