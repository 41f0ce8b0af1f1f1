"""The real server on a database file, as a process of its own that tests can kill: serve.py DATABASE PORT [WHEN].

WHEN it dies by itself: `before-commit` or `before-reply` of the first judgment.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import MutableMapping
from typing import Any

import uvicorn
from sqlalchemy import Connection, event, func, select

from tutelage.feedback.database import Database, open_database
from tutelage.feedback.schema import judgment_event
from tutelage.feedback.server.app import create_app
from tutelage.feedback.server.settings import Settings
from tutelage.stages.collect import Collect, reader


def dies_before_commit(db: Database) -> None:
    """Killed in the transaction of the first judgment: everything is written, nothing is committed."""
    with db.read() as c:
        before = c.execute(select(func.count()).select_from(judgment_event)).scalar_one()

    def die(connection: Connection) -> None:
        if connection.execute(select(func.count()).select_from(judgment_event)).scalar_one() > before:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(db.engine, "commit", die)


def dies_before_reply(app: Any) -> Any:
    """The application, killed when it is about to answer the first judgment: committed, and nothing said of it."""

    async def killed(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        async def reply(message: MutableMapping[str, Any]) -> None:
            if scope["type"] == "http" and scope["path"].endswith("/submit"):
                os.kill(os.getpid(), signal.SIGKILL)
            await send(message)

        await app(scope, receive, reply)

    return killed


def main() -> None:
    """Serve until killed."""
    url, port, *when = sys.argv[1:]
    db = open_database(url)
    if when == ["before-commit"]:
        dies_before_commit(db)
    app = create_app(db, Settings(port=int(port), read_items=reader(Collect(), None)))
    uvicorn.run(dies_before_reply(app) if when == ["before-reply"] else app, port=int(port), log_level="warning")


if __name__ == "__main__":
    main()
