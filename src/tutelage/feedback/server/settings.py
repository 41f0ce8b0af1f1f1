"""Where a server is reached, and what follows from it: allowed hosts and origins, the cookie."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tutelage.feedback.items import NewItem
from tutelage.feedback.payloads import Task

ReadItems = Callable[[Path, Task], Sequence[NewItem]]
"""An uploaded file -> items of a task; the readers of data files live in another room, so they are passed in."""


@dataclass(frozen=True)
class Settings:
    """How the server is reached. Raises ValueError for a host beyond this machine without a public https URL."""

    port: int
    host: str = "127.0.0.1"
    public_url: str | None = None
    """What people type, such as https://label.example.org: a proxy in front of this server ends TLS there."""
    read_items: ReadItems | None = None

    def __post_init__(self) -> None:
        if self.public_url is None and not is_loopback(self.host):
            raise ValueError(
                f"--host {self.host} is reachable from other machines; give also --public-url https://NAME (docs/deploy.md)"
            )
        if self.public_url is not None:
            parts = urlsplit(self.public_url)
            good = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
            if not good or not parts.hostname or parts.path.strip("/") or parts.query:
                raise ValueError(f"--public-url: got {self.public_url!r}; allowed: https://NAME or https://NAME:PORT")

    @property
    def url(self) -> str:
        """The address of the front page, without a slash at the end."""
        return self.public_url.rstrip("/") if self.public_url else f"http://127.0.0.1:{self.port}"

    @property
    def secure(self) -> bool:
        """Whether browsers reach it over https."""
        return self.url.startswith("https:")

    @property
    def cookie(self) -> str:
        """The session's cookie; cookies know no ports, so a server on loopback has its port in the name."""
        return "__Host-tutelage" if self.secure else f"tutelage_{self.port}"

    @property
    def hosts(self) -> frozenset[str]:
        """The Host headers that are answered: a page elsewhere whose name points to this machine gets nothing."""
        local = {f"{name}:{self.port}" for name in ("127.0.0.1", "localhost", "[::1]")}
        return frozenset(local | {urlsplit(self.url).netloc.lower()})

    @property
    def origins(self) -> frozenset[str]:
        """The origins from which a form or a script may write."""
        local = {f"http://{name}:{self.port}" for name in ("127.0.0.1", "localhost", "[::1]")}
        return frozenset({self.url.lower()} if self.secure else local | {self.url.lower()})


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
