"""One annotation database, SQLite or PostgreSQL: opened, brought to the newest version, read and written in transactions."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError

MIGRATIONS = Path(__file__).with_name("migrations")
NETWORK = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "afs",
    "ceph",
    "glusterfs",
    "lustre",
    "fuse.sshfs",
    "fuse.s3fs",
    "davfs",
)
"""File systems whose locks SQLite cannot rely on."""
EVENT_LOCK = 5_077_001
"""PostgreSQL's advisory lock for the event table: numbers then become visible in their order, which cursors need."""
ALLOWED = "allowed: sqlite:///FILE (relative) or sqlite:////FILE (absolute) or postgresql://user@host/name"


@dataclass(frozen=True)
class Database:
    """An open database. `write` transactions of one process take turns; SQLite has one writer anyway."""

    engine: Engine
    url: URL
    _turn: Any = field(default_factory=threading.RLock, repr=False)

    @property
    def is_sqlite(self) -> bool:
        """Whether it is the embedded one."""
        return self.engine.dialect.name == "sqlite"

    @property
    def file(self) -> Path | None:
        """Where the embedded one lies."""
        return Path(self.url.database or "") if self.is_sqlite else None

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads: one consistent state."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that writes: all of it or nothing, on the disk when this returns."""
        with self._turn if self.is_sqlite else nullcontext(), self.engine.connect() as opened:
            connection = opened.execution_options(writes=True)
            with connection.begin():
                yield connection

    def close(self) -> None:
        """Let go of every connection."""
        self.engine.dispose()


def open_database(url: str, migrate: bool = True) -> Database:
    """The database of a URL, made where it is absent and brought to the newest version (`migrate=False`: as it is).

    Raises ValueError for another kind of URL, a network file system under SQLite, a database of a newer program, and one
    that cannot be reached.
    """
    parsed = read_url(url)
    database = _sqlite(parsed) if parsed.drivername == "sqlite" else _postgres(parsed)
    try:
        if migrate:
            upgrade(database)
    except DatabaseError as error:
        database.close()
        raise ValueError(f"--db {parsed.render_as_string()}: cannot be opened: {error.orig}") from None
    return database


def read_url(url: str) -> URL:
    """A checked URL; `postgresql://` uses psycopg 3."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ValueError(f"--db: got {url!r}; {ALLOWED}") from None
    if parsed.drivername == "sqlite" and parsed.database and parsed.database != ":memory:":
        return parsed
    if parsed.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    raise ValueError(f"--db: got {parsed.render_as_string()!r}; {ALLOWED}")


def _sqlite(url: URL) -> Database:
    path = Path(url.database or "")
    refuse_network(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # people's words and session hashes: for this user alone
    engine = create_engine(url, pool_size=20, max_overflow=30)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself: `begin` below does
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=20000", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return Database(engine, url)


def _postgres(url: URL) -> Database:
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise ValueError("--db postgresql://... needs: pip install 'tutelage[postgres]'") from None
    return Database(create_engine(url, pool_size=10, max_overflow=30, pool_pre_ping=True), url)


def refuse_network(path: Path, mounts: Path = Path("/proc/self/mounts")) -> None:
    """Raises ValueError where `path` lies on a network file system (known on Linux)."""
    if not mounts.exists():
        return
    place, found = str(path.resolve()), ("", "")
    for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
        _, mount, kind, *_ = line.split(" ")
        mount = mount.replace("\\040", " ")
        if (place + "/").startswith(mount.rstrip("/") + "/") and len(mount) >= len(found[0]):
            found = (mount, kind)
    if found[1] in NETWORK:
        raise ValueError(
            f"{path}: {found[0]} is a network file system ({found[1]}), where SQLite may lose data; "
            "use a local disk or --db postgresql://..."
        )


def lock_events(connection: Connection) -> None:
    """Before an event is written: events become visible in the order of their numbers."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": EVENT_LOCK})


def revisions(connection: Connection | None = None) -> Any:
    """Alembic's settings, on an open connection where one is given."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def upgrade(database: Database, to: str = "head") -> None:
    """Bring the tables to a version; a copy of an older SQLite file with data is made first."""
    from alembic import command
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    script = ScriptDirectory.from_config(revisions())
    with database.read() as connection:
        now = MigrationContext.configure(connection).get_current_revision()
        strange = now is None and "judgment_event" in inspect(connection).get_table_names()
    if now == script.get_current_head():
        return
    known = {one.revision for one in script.walk_revisions()}
    if strange or (now is not None and now not in known):
        raise ValueError(f"--db: this database has version {now}, which this program does not know; update tutelage")
    if now is not None and database.file is not None:
        vacuum_into(database, database.file.with_name(f"{database.file.name}.before-{now}-{int(time.time())}"))
    with database.write() as connection:
        if connection.dialect.name == "postgresql":  # two servers may start at once
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": EVENT_LOCK + 1})
        command.upgrade(revisions(connection), to)


def downgrade(database: Database, to: str) -> None:
    """Bring the tables back to an earlier version."""
    from alembic import command

    with database.write() as connection:
        command.downgrade(revisions(connection), to)


def vacuum_into(database: Database, target: Path) -> None:
    """A whole, compact copy of a SQLite database while others go on writing; the copy is for this user alone."""
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    raw = database.engine.raw_connection()
    try:
        raw.cursor().execute("VACUUM INTO ?", (str(target),))
    finally:
        raw.close()
