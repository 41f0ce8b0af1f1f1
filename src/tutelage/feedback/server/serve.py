"""One process that serves the annotation app until it is told to stop."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from filelock import FileLock, Timeout

from tutelage.feedback.database import Database
from tutelage.feedback.server.app import create_app
from tutelage.feedback.server.settings import Settings

DEFAULT_PORT = 8765
TRIES = 20
"""Ports after the default one that are tried where it is taken."""


@contextmanager
def only_server(db: Database) -> Iterator[None]:
    """One server for one embedded database. Raises ValueError where another one runs."""
    if db.file is None:
        yield
        return
    lock = FileLock(f"{db.file}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"--db {db.file}: another `tutelage collect` serves this database; stop it, or use its page"
        ) from None
    try:
        yield
    finally:
        lock.release()


def bind(host: str, port: int | None) -> socket.socket:
    """A socket that listens on `port`, or on the first free one from the default on. Raises ValueError where it is taken."""
    ports = [port] if port is not None else range(DEFAULT_PORT, DEFAULT_PORT + TRIES)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reason = ""
    for number in ports:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, number))
        except OSError as error:
            listener.close()
            reason = error.strerror or str(error)
            continue
        return listener
    raise ValueError(
        f"--port {port or f'{DEFAULT_PORT} to {DEFAULT_PORT + TRIES - 1}'}: {reason} on {host}; give another"
    )


class _Server(uvicorn.Server):
    """Says when it answers."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        self._ready()


def serve(db: Database, settings: Settings, listener: socket.socket, ready: Callable[[], None] = lambda: None) -> None:
    """Answer until SIGINT or SIGTERM; requests in hand are finished. Addresses hold tokens, so no access log is written."""
    config = uvicorn.Config(
        create_app(db, settings),
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        proxy_headers=settings.public_url is not None,
        forwarded_allow_ips="127.0.0.1,::1",
        timeout_graceful_shutdown=3,
    )
    before = signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # uvicorn raises the signal again when it has finished
    try:
        with suppress(KeyboardInterrupt):
            _Server(config, ready).run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, before)
