"""People: links that let them in, sessions, roles, what they may see, the time they spent, and their erasure."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import Connection, RowMapping, and_, bindparam, delete, func, insert, or_, select, update

from tutelage.feedback.projects import log
from tutelage.feedback.schema import (
    annotator,
    assignment,
    attempt,
    entry,
    invite,
    member,
    project,
    session,
)

Role = Literal["admin", "researcher", "labeller"]
ROLES: tuple[Role, ...] = get_args(Role)
IDLE, LONGEST = 12 * 3600.0, 14 * 86400.0
"""A session ends after this much time without a request, and at the latest after this much."""
FAILURES, WINDOW = 20, 600.0
"""So many wrong links from one address in so many seconds, then it has to wait."""


@dataclass(frozen=True)
class Me:
    """Who is asking, and the session's secret for forms."""

    id: int
    name: str
    role: Role
    csrf: str
    held_out: bool = False


def secret() -> str:
    """A fresh random token of 256 bits."""
    return secrets.token_urlsafe(32)


def digest(token: str) -> str:
    """What is stored of a token: its SHA-256. It is random, so no salt is needed, and looking it up leaks no timing."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def clean_name(name: str) -> str:
    """A name of 1 to 80 visible characters. Raises ValueError."""
    name = " ".join(name.split())
    if not 1 <= len(name) <= 80 or not name.isprintable():
        raise ValueError("name: allowed: 1 to 80 visible characters")
    return name


def add_person(c: Connection, name: str, role: Role, held_out: bool = False, now: float | None = None) -> int:
    """The id of a new person."""
    if role not in ROLES:
        raise ValueError(f"role: {role!r}; allowed: {', '.join(ROLES)}")
    row = {"name": clean_name(name), "role": role, "held_out": int(held_out)}
    row["created_at"] = time.time() if now is None else now
    return c.execute(insert(annotator).values(row).returning(annotator.c.id)).scalar_one()


def owner(c: Connection, now: float | None = None) -> int:
    """The admin who runs the program: the first one, made where there is none."""
    first = select(annotator.c.id).where(annotator.c.role == "admin", annotator.c.status == "active")
    found = c.execute(first.order_by(annotator.c.id).limit(1)).scalar_one_or_none()
    return add_person(c, "Admin", "admin", now=now) if found is None else found


def new_entry(c: Connection, who: int, once: bool, seconds: float, now: float | None = None) -> str:
    """The token of a link that logs a person in: once, or as often as wanted, until it expires."""
    now = time.time() if now is None else now
    token = secret()
    c.execute(insert(entry).values(hash=digest(token), annotator_id=who, once=int(once), expires_at=now + seconds))
    return token


def enter(c: Connection, token: str, now: float | None = None) -> int | None:
    """The person whom a link lets in; None for one that is wrong, expired or used up."""
    now = time.time() if now is None else now
    good = (entry.c.hash == digest(token), entry.c.expires_at > now, or_(entry.c.once == 0, entry.c.used_at.is_(None)))
    used = c.execute(update(entry).where(*good).values(used_at=now).returning(entry.c.annotator_id))
    return used.scalar_one_or_none()


def new_invite(
    c: Connection,
    by: int,
    role: Role,
    project_id: int | None,
    *,
    uses: int = 1,
    days: float = 7,
    held_out: bool = False,
) -> str:
    """The token of an invite link. Raises ValueError for values outside their range."""
    if role not in ROLES:
        raise ValueError(f"role: {role!r}; allowed: {', '.join(ROLES)}")
    if not 1 <= uses <= 1000:
        raise ValueError(f"uses: {uses}; allowed: 1 to 1000")
    if not 0 < days <= 90:
        raise ValueError(f"days: {days}; allowed: more than 0, at most 90")
    token, now = secret(), time.time()
    row = {
        "hash": digest(token),
        "project_id": project_id,
        "role": role,
        "held_out": int(held_out),
        "uses": uses,
        "uses_left": uses,
    }
    row |= {"expires_at": now + days * 86400, "created_by": by, "created_at": now}
    c.execute(insert(invite).values(row))
    log(c, by, "invite", {"project": project_id, "role": role, "uses": uses})
    return token


def find_invite(c: Connection, token: str, now: float | None = None) -> RowMapping | None:
    """An invite that still works, with its project's name."""
    now = time.time() if now is None else now
    good = (invite.c.hash == digest(token), invite.c.expires_at > now, invite.c.uses_left > 0)
    found = select(invite, project.c.name.label("project")).outerjoin(project, project.c.id == invite.c.project_id)
    return c.execute(found.where(*good)).mappings().one_or_none()


def join(c: Connection, token: str, name: str, now: float | None = None) -> int | None:
    """Take one use of an invite: the new person's id. None for an invite that does not work; ValueError for a bad name."""
    name = clean_name(name)
    found = find_invite(c, token, now)
    if found is None:
        return None
    one_less = (
        update(invite)
        .where(invite.c.id == found["id"], invite.c.uses_left > 0)
        .values(uses_left=invite.c.uses_left - 1)
    )
    if c.execute(one_less).rowcount == 0:  # two people, one use
        return None
    who = add_person(c, name, found["role"], bool(found["held_out"]), now)
    if found["project_id"] is not None:
        c.execute(insert(member).values(project_id=found["project_id"], annotator_id=who))
    return who


def new_session(c: Connection, who: int, now: float | None = None) -> str:
    """The token of a fresh session (the cookie's value)."""
    now = time.time() if now is None else now
    token = secret()
    c.execute(insert(session).values(hash=digest(token), annotator_id=who, csrf=secret(), created_at=now, seen_at=now))
    c.execute(delete(session).where(or_(session.c.seen_at < now - IDLE, session.c.created_at < now - LONGEST)))
    return token


_SESSION = (
    select(session.c.csrf, session.c.seen_at, annotator)
    .join(annotator, annotator.c.id == session.c.annotator_id)
    .where(session.c.hash == bindparam("token"), annotator.c.status == "active")
    .where(session.c.seen_at > bindparam("idle"), session.c.created_at > bindparam("longest"))
)


def who_is(c: Connection, token: str, now: float | None = None) -> tuple[Me, bool] | None:
    """The person of a session, and whether the session is due to be marked as seen."""
    now = time.time() if now is None else now
    given = {"token": digest(token), "idle": now - IDLE, "longest": now - LONGEST}
    row = c.execute(_SESSION, given).mappings().one_or_none()
    if row is None:
        return None
    return Me(row["id"], row["name"], row["role"], row["csrf"], bool(row["held_out"])), now - row["seen_at"] > 60


def seen(c: Connection, token: str, now: float | None = None) -> None:
    """The session was used just now."""
    c.execute(
        update(session).where(session.c.hash == digest(token)).values(seen_at=time.time() if now is None else now)
    )


def end_session(c: Connection, token: str) -> None:
    """Log out."""
    c.execute(delete(session).where(session.c.hash == digest(token)))


def may_see(c: Connection, me: Me, project_id: int) -> bool:
    """Whether a project is there for this person: admins see all, others those that they were invited to."""
    given = {"project": project_id, "annotator": me.id}
    return c.execute(_EXISTS if me.role == "admin" else _MEMBER, given).first() is not None


def may_judge(c: Connection, me: Me, assignment_id: int) -> bool:
    """Whether an assignment is this person's own, in a project that they may (still) see."""
    given = {"assignment": assignment_id, "annotator": me.id}
    return c.execute(_OWN if me.role == "admin" else _OWN_AS_MEMBER, given).first() is not None


# Asked with every request, built once (see queue.py).
_EXISTS = select(project.c.id).where(project.c.id == bindparam("project"))
_MEMBER = select(member.c.id).where(
    member.c.project_id == bindparam("project"), member.c.annotator_id == bindparam("annotator")
)
_OWN = select(assignment.c.id).where(
    assignment.c.id == bindparam("assignment"), assignment.c.annotator_id == bindparam("annotator")
)
_OWN_AS_MEMBER = _OWN.join(
    member,
    and_(member.c.project_id == assignment.c.project_id, member.c.annotator_id == assignment.c.annotator_id),
)


def visible(c: Connection, me: Me) -> list[RowMapping]:
    """The projects that a person may see, in the order they were made."""
    query = select(project).order_by(project.c.id)
    if me.role != "admin":
        query = query.join(member, member.c.project_id == project.c.id).where(member.c.annotator_id == me.id)
    return list(c.execute(query).mappings())


def throttled(c: Connection, address: str, now: float | None = None) -> bool:
    """Whether an address has tried too many wrong links."""
    now = time.time() if now is None else now
    recent = and_(attempt.c.address == address, attempt.c.at > now - WINDOW)
    return c.execute(select(func.count()).select_from(attempt).where(recent)).scalar_one() >= FAILURES


def failed(c: Connection, address: str, now: float | None = None) -> None:
    """Count a wrong link; old ones are forgotten."""
    now = time.time() if now is None else now
    c.execute(delete(attempt).where(attempt.c.at < now - WINDOW))
    c.execute(insert(attempt).values(address=address, at=now))
