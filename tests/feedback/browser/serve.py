"""The real server on a database file, as a process of its own that tests can kill: serve.py DATABASE PORT [DIE_AT]."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn

from tutelage.feedback.database import open_database
from tutelage.feedback.server.app import create_app
from tutelage.feedback.server.settings import Settings


def dies(app: Any, when: str) -> Any:
    """The application that is killed at its first judgment: `before-commit` or `before-reply`."""

    async def killed(scope: MutableMapping[str, Any], receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        submitting = scope["type"] == "http" and scope["path"].endswith("/submit")

        async def replying(message: MutableMapping[str, Any]) -> None:
            if submitting:  # the transaction has been committed, nothing has been said of it
                os.kill(os.getpid(), signal.SIGKILL)
            await send(message)

        if submitting and when == "before-commit":
            os.kill(os.getpid(), signal.SIGKILL)
        await app(scope, receive, replying if when == "before-reply" else send)

    return killed


def main() -> None:
    """Serve until killed."""
    url, port, *when = sys.argv[1:]
    app = create_app(open_database(url), Settings(port=int(port)))
    uvicorn.run(dies(app, when[0]) if when else app, host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    main()
