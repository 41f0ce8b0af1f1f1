"""Copies of the embedded database while people go on working: whole, checked, the last few kept."""

from __future__ import annotations

import sqlite3
import threading
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import func, select

from tutelage.feedback.database import Database, vacuum_into
from tutelage.feedback.schema import audit, judgment_event

KEPT = 7


def back_up(db: Database, folder: Path, keep: int = KEPT) -> Path:
    """A checked copy in `folder`, named by the time; older ones beyond `keep` go. Raises OSError for a copy that is not whole."""
    assert db.file is not None, "only the embedded database is copied; PostgreSQL has pg_dump"
    folder.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    unfinished, target = folder / f".{stamp}.unfinished", folder / f"{db.file.stem}-{stamp}.db"
    vacuum_into(db, unfinished)
    if (problem := integrity(unfinished)) != "ok":
        raise OSError(f"{unfinished}: the copy is not whole: {problem}")
    unfinished.rename(target)
    for old in sorted(folder.glob(f"{db.file.stem}-*.db"))[:-keep]:
        old.unlink()
    return target


def integrity(path: Path) -> str:
    """SQLite's own check of a file: `ok`, or what is wrong."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
    except sqlite3.DatabaseError as error:
        return str(error)
    finally:
        connection.close()


class Backups:
    """While open: a copy every `minutes` in which something changed, and one at the end (0 minutes: only that one)."""

    def __init__(self, db: Database, folder: Path, minutes: float) -> None:
        self.db, self.folder, self.seconds = db, folder, minutes * 60
        self.failure = ""
        self._saved = self._state()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="backups")

    def __enter__(self) -> Self:
        if self.seconds > 0:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._copy()

    def _work(self) -> None:
        while not self._stop.wait(self.seconds):
            self._copy()

    def _copy(self) -> None:
        """A disk that is full must not stop the people who are working: the failure is kept, said at the end, tried again."""
        state = self._state()
        if state == self._saved:
            return
        try:
            back_up(self.db, self.folder)
        except (OSError, sqlite3.Error) as error:
            self.failure = str(error)
        else:
            self._saved, self.failure = state, ""

    def _state(self) -> tuple[int, int]:
        with self.db.read() as c:
            return tuple(c.execute(select(func.count()).select_from(t)).scalar_one() for t in (judgment_event, audit))  # type: ignore[return-value]
