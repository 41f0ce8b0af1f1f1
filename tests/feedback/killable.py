"""The real server as a process that kills itself: killable.py DATABASE PORT [SHARE SEED]: at so many of its commits of a
judgment, half the times before the commit, half between commit and reply."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from typing import Any

import uvicorn
from sqlalchemy import Connection, event

from tutelage.feedback.database import Database, open_database
from tutelage.feedback.server.app import create_app
from tutelage.feedback.server.settings import Settings


def die() -> None:
    """No farewell."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(db: Database, share: float, seed: int) -> None:
    """Kill this process around some commits of transactions that stored an event."""
    rng, wrote = random.Random(seed), threading.local()

    @event.listens_for(db.engine, "after_cursor_execute")
    def noted(connection: Connection, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith("INSERT INTO judgment_event"):
            wrote.now = True

    @event.listens_for(db.engine, "commit")
    def committing(connection: Connection) -> None:
        if not getattr(wrote, "now", False):
            return
        wrote.now = False
        draw = rng.random()
        if draw < share / 2:
            die()  # the work is undone: nobody was told that it was kept
        if draw < share:
            connection.connection.dbapi_connection.commit()  # type: ignore[union-attr]
            die()  # it is kept: nobody was told


def main() -> None:
    """Serve until killed."""
    url, port, *dies = sys.argv[1:]
    db = open_database(url)
    if dies:
        arm(db, float(dies[0]), int(dies[1]))
    app = create_app(db, Settings(port=int(port)))
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="error", lifespan="off", server_header=False)


if __name__ == "__main__":
    main()
