"""API tokens: made once, stored as a hash, limited to scopes and, where wanted, to one project."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import Connection, insert, or_, select, update

from tutelage.feedback.people import digest, secret
from tutelage.feedback.projects import log
from tutelage.feedback.schema import api_token, project

Scope = Literal["items:write", "judgments:read"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
PREFIX = "tut_"
"""So that a token found in a file or a log is known for what it is."""


@dataclass(frozen=True)
class Bearer:
    """What a token may do; `project` None: in every project."""

    id: int
    scopes: frozenset[str]
    project: int | None


def new_token(
    c: Connection, name: str, scopes: Sequence[Scope], project_id: int | None = None, by: int | None = None
) -> str:
    """A fresh token; it cannot be shown again. Raises ValueError for an unknown scope."""
    for scope in scopes:
        if scope not in SCOPES:
            raise ValueError(f"scope: {scope!r}; allowed: {', '.join(SCOPES)}")
    token = PREFIX + secret()
    row = {
        "hash": digest(token),
        "name": name,
        "scopes": list(scopes),
        "project_id": project_id,
        "created_at": time.time(),
    }
    c.execute(insert(api_token).values(row))
    log(c, by, "api token", {"name": name, "scopes": list(scopes), "project": project_id})
    return token


def bearer(c: Connection, token: str) -> Bearer | None:
    """What a token may do; None for one that is wrong or revoked."""
    good = (api_token.c.hash == digest(token), api_token.c.revoked_at.is_(None))
    row = c.execute(select(api_token).where(*good)).mappings().one_or_none()
    return None if row is None else Bearer(row["id"], frozenset(row["scopes"]), row["project_id"])


def revoke_token(c: Connection, name: str, by: int | None = None) -> int:
    """Revoke every token of a name; returns how many."""
    live = (api_token.c.name == name, api_token.c.revoked_at.is_(None))
    count = c.execute(update(api_token).where(*live).values(revoked_at=time.time())).rowcount
    log(c, by, "revoke api token", {"name": name, "count": count})
    return count


def revoke_one(c: Connection, token_id: int, by: int | None = None) -> None:
    """Revoke a token; what is revoked already stays so."""
    live = (api_token.c.id == token_id, api_token.c.revoked_at.is_(None))
    if c.execute(update(api_token).where(*live).values(revoked_at=time.time())).rowcount:
        log(c, by, "revoke api token", {"token": token_id})


def find_visible(c: Connection, who: Bearer, name_or_id: str) -> int | None:
    """The project of that id or name, where the token may see it."""
    by_id = project.c.id == int(name_or_id) if name_or_id.isdecimal() and len(name_or_id) < 16 else None
    match = project.c.name == name_or_id if by_id is None else or_(by_id, project.c.name == name_or_id)
    found = c.execute(select(project.c.id).where(match).order_by(project.c.id)).scalars().first()
    return found if found is not None and who.project in (None, found) else None
