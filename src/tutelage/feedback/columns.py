"""Column types that are the same on SQLite and PostgreSQL, and short ways to declare them."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import REAL, BigInteger, Column, Double, Float, ForeignKey, Integer, MetaData, Table, Text, text
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Number = BigInteger().with_variant(Integer, "sqlite")
"""Whole numbers; STRICT tables of SQLite know INTEGER, PostgreSQL's has 32 bits only."""
Real: TypeEngine[float] = Float().with_variant(REAL, "sqlite").with_variant(Double, "postgresql")
"""A 64-bit number; times are seconds since 1970, UTC."""


class Json(TypeDecorator[Any]):
    """JSON as text, the same on both engines; what is not ASCII is escaped, so that any string survives."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """Python -> column; None is NULL."""
        return None if value is None else json.dumps(value, separators=(",", ":"), allow_nan=False)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """Column -> Python."""
        return None if value is None else json.loads(value)


def table(name: str, *parts: Any) -> Table:
    """A table with a number as its key, counted up and never used twice (`sqlite_autoincrement`)."""
    key = Column("id", Number, primary_key=True)
    return Table(name, metadata, key, *parts, sqlite_strict=True, sqlite_autoincrement=True)


def one(of: str, name: str = "", null: bool = False, **options: Any) -> Column[int]:
    """A reference to a row of the table `of`."""
    return Column(name or f"{of}_id", Number, ForeignKey(f"{of}.id"), nullable=null, **options)


def words(name: str, default: str | None = "", null: bool = False) -> Column[str]:
    """Text; without a default it must be given."""
    return Column(name, Text, nullable=null, server_default=default)


def number(name: str, default: int | None = 0, null: bool = False) -> Column[int]:
    """A whole number, or 0 / 1 for no / yes."""
    return Column(name, Number, nullable=null, server_default=None if default is None else text(str(default)))


def time(name: str, null: bool = False) -> Column[float]:
    """Seconds since 1970, UTC."""
    return Column(name, Real, nullable=null)


def json_column(name: str, null: bool = False) -> Column[Any]:
    """A JSON value."""
    return Column(name, Json, nullable=null)
