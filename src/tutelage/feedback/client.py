"""A program's side of /api/v1: projects, items, withdrawals and judgments of an annotation server; no torch, no extra library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlencode

from tutelage.feedback.http import Http
from tutelage.feedback.payloads import Task

TOKEN_VARIABLE = "TUTELAGE_TOKEN"
PAGE = 500
Event = dict[str, Any]
"""A judgment as `GET /api/v1/judgments` shows it."""


class Queue(Protocol):
    """What a program needs of people's queue."""

    def project(self, name: str, task: Task, overlap: int, instructions: str = "") -> int:
        """The id of the project of that name, made where there is none."""
        ...

    def add(self, project: int, items: Sequence[dict[str, Any]]) -> None:
        """Add items; known keys are not added again."""
        ...

    def events(self, project: int, after: int) -> list[Event]:
        """All events after a number, in order."""
        ...

    def withdraw(self, project: int, keys: Sequence[str] = (), before_step: int | None = None) -> int:
        """Hand these out no more; how many there were."""
        ...


@dataclass(frozen=True)
class Program:
    """A `Queue` over HTTP. Raises ValueError for what the server refuses, UnreachableError where it does not answer."""

    url: str
    token: str = field(repr=False)

    def __post_init__(self) -> None:
        Http(self.url)

    def project(self, name: str, task: Task, overlap: int, instructions: str = "") -> int:
        """See `Queue`. ValueError where it is there with another task or overlap."""
        body = {"name": name, "task": task, "overlap": overlap, "instructions": instructions}
        return self._call("POST", "/projects", body)["id"]

    def add(self, project: int, items: Sequence[dict[str, Any]]) -> None:
        """See `Queue`."""
        for start in range(0, len(items), 100):
            self._call("POST", "/items", {"project": str(project), "items": list(items[start : start + 100])})

    def events(self, project: int, after: int) -> list[Event]:
        """See `Queue`."""
        found: list[Event] = []
        while True:
            query = urlencode({"project": project, "after": after, "limit": PAGE})
            page = self._call("GET", f"/judgments?{query}")
            found += page["judgments"]
            after = page["next"]
            if len(page["judgments"]) < PAGE:
                return found

    def withdraw(self, project: int, keys: Sequence[str] = (), before_step: int | None = None) -> int:
        """See `Queue`."""
        body = {"project": str(project), "keys": list(keys), "before_step": before_step}
        return self._call("POST", "/items/withdraw", body)["withdrawn"]

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        http = Http(self.url, {"authorization": f"Bearer {self.token}"})
        reply = http.send(method, f"/api/v1{path}", body)
        if reply.status == 200:
            return reply.json()
        try:
            said = reply.json()["error"]
        except (ValueError, KeyError, TypeError):  # not our server, or a proxy before it
            said = reply.text[:200]
        raise ValueError(f"{self.url}: {method} {path.partition('?')[0]} was refused ({reply.status}): {said}")


class Votes:
    """Judgments by key, as events arrive: what a later event supersedes no longer counts, nor do skips and held-out people.

    >>> votes = Votes()
    >>> votes.feed(program.events(project, votes.last))
    """

    def __init__(self) -> None:
        self.last = 0
        self._current: dict[int, Event] = {}

    def feed(self, events: Sequence[Event]) -> None:
        """Take the next events, in order."""
        for one in events:
            self.last = max(self.last, one["seq"])
            self._current.pop(one["supersedes"], None)
            if one["kind"] == "judgment" and not one["held_out"] and one["repeat_of"] is None:
                self._current[one["seq"]] = one

    def by_key(self) -> dict[str, list[Event]]:
        """The judgments that count, by the key of their item, oldest first."""
        found: dict[str, list[Event]] = {}
        for one in self._current.values():
            found.setdefault(one["key"], []).append(one)
        return found
