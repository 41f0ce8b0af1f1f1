"""Versions of the database, up and down with data; backups while people work, restored; what may not be opened."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, select, text

from tutelage.feedback import schema
from tutelage.feedback.backups import Backups, back_up, integrity
from tutelage.feedback.database import downgrade, open_database, refuse_network, upgrade
from tutelage.feedback.judging import Measured, submit
from tutelage.feedback.queue import Handed, next_task


def judge(place: Any, project: int, who: int, count: int, start: int = 0) -> None:
    """Some judgments."""
    for n in range(start, start + count):
        with place.db.write() as c:
            found = next_task(c, project, who)
            assert isinstance(found, Handed)
            submit(c, found.assignment, who, f"key-{project}-{n}", {"choice": "first"}, measured=Measured())


def keys(db: Any) -> list[str]:
    """The keys of all events."""
    with db.read() as c:
        return list(c.execute(select(schema.judgment_event.c.key).order_by(schema.judgment_event.c.seq)).scalars())


def test_the_migrations_make_the_tables_of_the_schema(place: Any) -> None:
    with place.db.read() as c:
        defaults = not place.db.is_sqlite  # which gives no '' back as it was written
        context = MigrationContext.configure(c, opts={"compare_type": True, "compare_server_default": defaults})
        assert compare_metadata(context, schema.metadata) == []
        assert inspect(c).get_view_names() == ["judgment_current"]
    columns = {column.name for column in schema.judgment_current.columns}
    assert {column["name"] for column in _view_columns(place.db)} == columns


def _view_columns(db: Any) -> Any:
    with db.read() as c:
        return inspect(c).get_columns("judgment_current")


def test_down_and_up_with_data(place: Any) -> None:
    project = place.project(place.pairs(6))
    who = place.person(project)
    judge(place, project, who, 3)
    before = place.rows(text("SELECT * FROM judgment_event ORDER BY seq"))
    downgrade(place.db, "0001")
    with place.db.read() as c:
        assert "withdrawn" not in {column["name"] for column in inspect(c).get_columns("item")}
    assert place.rows(text("SELECT * FROM judgment_event ORDER BY seq")) == before
    upgrade(place.db)
    assert place.rows(text("SELECT * FROM judgment_event ORDER BY seq")) == before
    assert {row["withdrawn"] for row in place.rows(text("SELECT withdrawn FROM item"))} == {0}
    judge(place, project, who, 3, start=3)
    assert len(keys(place.db)) == 6
    if place.db.is_sqlite:
        copies = list(place.db.file.parent.glob("feedback.db.before-0001-*"))
        assert len(copies) == 1, "an older database is copied before it is changed"
        assert len(_raw_keys(copies[0])) == 3


def _raw_keys(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    found = [row[0] for row in connection.execute("SELECT key FROM judgment_event ORDER BY seq")]
    connection.close()
    return found


def test_all_the_way_down_leaves_nothing(place: Any) -> None:
    downgrade(place.db, "base")
    with place.db.read() as c:
        assert inspect(c).get_table_names() == ["alembic_version"]
        assert inspect(c).get_view_names() == []
    upgrade(place.db)
    judge(place, project := place.project(place.pairs(1)), place.person(project), 1)


def test_a_database_of_a_newer_program_is_not_touched(place: Any) -> None:
    with place.db.write() as c:
        c.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ValueError, match="version 9999, which this program does not know"):
        open_database(place.url)


def test_a_backup_made_while_people_work_is_whole_and_can_be_gone_on_with(lite: Any, tmp_path: Path) -> None:
    project = lite.project(lite.pairs(60))
    who = lite.person(project)
    working = threading.Thread(target=judge, args=(lite, project, who, 40))
    working.start()
    copies = [back_up(lite.db, tmp_path / "backups", keep=3) for _ in range(5)]
    working.join()
    final = back_up(lite.db, tmp_path / "backups", keep=3)
    kept = sorted((tmp_path / "backups").iterdir())
    assert kept == [*copies[-2:], final]
    assert {integrity(path) for path in kept} == {"ok"}
    assert {path.stat().st_mode & 0o077 for path in kept} == {0}, "for this user alone"
    everything = keys(lite.db)
    assert [_raw_keys(path) == everything[: len(_raw_keys(path))] for path in kept] == [True] * 3
    lite.db.close()
    for leftover in tmp_path.glob("feedback.db*"):  # the disaster
        leftover.unlink()
    shutil.copy(final, tmp_path / "feedback.db")
    restored = open_database(lite.url)
    assert keys(restored) == everything
    lite.db = restored
    judge(lite, project, who, 20, start=40)
    assert len(keys(restored)) == 60


def test_a_copy_that_is_not_whole_is_noticed(lite: Any, tmp_path: Path) -> None:
    project = lite.project(lite.pairs(200))
    copy = back_up(lite.db, tmp_path / "backups")
    assert project
    data = bytearray(copy.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4096] = b"\xff" * 4096
    copy.write_bytes(data)
    assert integrity(copy) != "ok"


def test_backups_are_made_at_the_end_and_only_when_something_changed(lite: Any, tmp_path: Path) -> None:
    project = lite.project(lite.pairs(4))
    who = lite.person(project)
    with Backups(lite.db, tmp_path / "b", minutes=0):
        pass
    assert not (tmp_path / "b").exists()
    with Backups(lite.db, tmp_path / "b", minutes=0.001):
        judge(lite, project, who, 2)
    newest = max((tmp_path / "b").iterdir())
    assert len(_raw_keys(newest)) == 2
    (tmp_path / "full").write_text("a file where the folder should be")
    with Backups(lite.db, tmp_path / "full", minutes=0) as failing:
        judge(lite, project, who, 1, start=2)
    assert "exists" in failing.failure.lower()


@pytest.mark.slow
def test_a_postgres_dump_restores_everything(postgres: str, tmp_path: Path, request: Any) -> None:
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_dump"))
    dump = shutil.which("pg_dump") or str(programs[-1])
    psql = Path(dump).with_name("psql")
    import psycopg

    for name in ("source", "target"):
        with psycopg.connect(f"{postgres}/postgres", autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name}")
            connection.execute(f"CREATE DATABASE {name}")
    place = type(request.getfixturevalue("lite"))(open_database(f"{postgres}/source"), f"{postgres}/source")
    project = place.project(place.pairs(5))
    who = place.person(project)
    judge(place, project, who, 3)
    subprocess.run([dump, "--no-owner", "-f", tmp_path / "dump.sql", f"{postgres}/source"], check=True)
    loaded = [str(psql), "-q", "-v", "ON_ERROR_STOP=1", "-f", str(tmp_path / "dump.sql"), f"{postgres}/target"]
    subprocess.run(loaded, check=True, stdout=subprocess.DEVNULL)
    before = keys(place.db)
    place.db.close()
    place.db = open_database(f"{postgres}/target")
    assert keys(place.db) == before
    judge(place, project, who, 2, start=3)
    with pytest.raises(Exception, match="append-only"), place.db.write() as c:
        c.execute(text("DELETE FROM judgment_event"))
    place.db.close()


def test_the_file_is_for_this_user_alone(lite: Any) -> None:
    assert lite.db.file.stat().st_mode & 0o777 == 0o600
    with lite.db.read() as c:
        pragmas = {
            name: c.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


@pytest.mark.parametrize(
    "url", ["feedback.db", "mysql://x/y", "sqlite://", "sqlite:///:memory:", "postgresql+asyncpg://x/y", "x:/y"]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="allowed: sqlite:///FILE"):
        open_database(url)


@pytest.mark.slow
def test_what_cannot_be_reached_or_is_no_database_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be opened") as refused:
        open_database("postgresql://nobody:secret@127.0.0.1:1/none")
    assert "secret" not in str(refused.value)
    (tmp_path / "words.db").write_text("this is no database, whatever it is called" * 100)
    with pytest.raises(ValueError, match=r"cannot be opened.*not a database"):
        open_database(f"sqlite:///{tmp_path / 'words.db'}")


def test_network_file_systems_are_refused(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda1 / ext4 rw 0 0\nserver:/home /net/my\\040home nfs4 rw 0 0\nnone /net/my\\040home/local tmpfs rw 0 0\n"
    )
    refuse_network(Path("/net/elsewhere/feedback.db"), mounts)
    refuse_network(Path("/net/my home/local/feedback.db"), mounts)
    with pytest.raises(ValueError, match=r"network file system.*nfs4"):
        refuse_network(Path("/net/my home/me/feedback.db"), mounts)
