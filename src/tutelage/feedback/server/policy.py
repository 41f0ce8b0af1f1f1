"""Who may do what: one row for each route, checked before any route runs; a route without a row does not start."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from sqlalchemy import Connection, select

from tutelage.feedback.database import Database
from tutelage.feedback.people import ROLES, Me, Role, may_judge, may_see, seen, who_is
from tutelage.feedback.schema import annotator, api_token, invite
from tutelage.feedback.server.settings import Settings

Object = Literal["", "project", "assignment", "invite", "person", "program"]
SAFE = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True)
class Rule:
    """The roles that may use a route (none: everybody, without a session), and the object that must be theirs to see."""

    roles: tuple[Role, ...]
    object: Object = ""


OPEN = Rule(())
ALL = ROLES
EXPERTS: tuple[Role, ...] = ("admin", "researcher")
ADMIN: tuple[Role, ...] = ("admin",)
RULES: dict[str, Rule] = {
    "GET /healthz": OPEN,
    "GET /join/{token}": OPEN,
    "POST /join/{token}": OPEN,
    "GET /enter/{token}": OPEN,
    "GET /": Rule(ALL),
    "POST /leave": Rule(ALL),
    "GET /p/{project}/judge": Rule(ALL, "project"),
    "GET /p/{project}/instructions": Rule(ALL, "project"),
    "GET /api/instructions": Rule(ALL, "project"),
    "GET /api/task/next": Rule(ALL, "project"),
    "POST /api/task/undo": Rule(ALL, "project"),
    "POST /api/task/{assignment}/heartbeat": Rule(ALL, "assignment"),
    "POST /api/task/{assignment}/submit": Rule(ALL, "assignment"),
    "PUT /api/task/{assignment}/draft": Rule(ALL, "assignment"),
    "GET /api/task/{assignment}/media/{place}/{number}": Rule(ALL, "assignment"),
    "GET /admin": Rule(EXPERTS),
    "GET /admin/p/{project}": Rule(EXPERTS, "project"),
    "GET /admin/p/{project}/quality": Rule(EXPERTS, "project"),
    "POST /admin/p/{project}/state": Rule(ADMIN, "project"),
    "POST /admin/p/{project}/items": Rule(ADMIN, "project"),
    "POST /admin/p/{project}/instructions": Rule(ADMIN, "project"),
    "POST /admin/p/{project}/invite": Rule(ADMIN, "project"),
    "POST /admin/p/{project}/invite/{invite}/revoke": Rule(ADMIN, "invite"),
    "POST /admin/programs/{program}/revoke": Rule(ADMIN, "program"),
    "POST /admin/people/{person}/link": Rule(ADMIN, "person"),
    "POST /admin/people/{person}/erase": Rule(ADMIN, "person"),
}


def check_complete(routers: Iterable[APIRouter]) -> None:
    """Every route has a rule, every rule a route."""
    routes = {
        f"{m} {r.path}" for router in routers for r in router.routes if isinstance(r, APIRoute) for m in r.methods or ()
    }
    assert routes == set(RULES), f"routes and rules differ: {routes ^ set(RULES)}"


async def guard(request: Request) -> None:
    """The rule of the route, applied: 401 without a session, 403 for the wrong role or a foreign page, 404 for others' objects."""
    db: Database = request.app.state.db
    settings: Settings = request.app.state.settings
    rule = RULES[f"{'GET' if request.method == 'HEAD' else request.method} {request.scope['route'].path}"]
    token = request.cookies.get(settings.cookie, "")
    named = await _named(request) if token and rule.object else {}
    me, theirs = await run_in_threadpool(_look_up, db, token, rule.object, named) if token else (None, False)
    request.state.me = me
    if request.method not in SAFE:
        _same_origin(request, settings)
    if not rule.roles:
        return
    if me is None:
        raise HTTPException(401, "You are not signed in, or your session has ended. Open your link again.")
    if request.method not in SAFE:
        await _same_session(request, me)
    if me.role not in rule.roles:
        raise HTTPException(403, "This is not for your role.")
    if rule.object and not theirs:
        raise HTTPException(404, "There is nothing here, or it is not yours to see.")


def _look_up(db: Database, token: str, kind: Object, named: dict[str, Any]) -> tuple[Me | None, bool]:
    """Whose session it is, and whether the object is there for them: one step aside, one transaction."""
    with db.read() as c:
        found = who_is(c, token)
        if found is None:
            return None, False
        theirs = _theirs(c, found[0], kind, named)
    if found[1]:
        with db.write() as c:
            seen(c, token)
    return found[0], theirs


def _same_origin(request: Request, settings: Settings) -> None:
    """A browser says where a request comes from: only our own pages may write. Programs say nothing; they need the token."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    foreign = origin is not None and origin.lower() not in settings.origins
    if foreign or site not in (None, "same-origin", "none"):
        raise HTTPException(403, "This request comes from another site.")


async def _same_session(request: Request, me: Me) -> None:
    """The secret of the session, as a header (scripts) or a field (forms)."""
    given = request.headers.get("x-csrf-token", "")
    if not given and "form" in request.headers.get("content-type", ""):
        given = str((await request.form()).get("csrf", ""))
    if not hmac.compare_digest(given.encode(), me.csrf.encode()):
        raise HTTPException(403, "The page is out of date. Load it again.")


async def _named(request: Request) -> dict[str, Any]:
    """The ids in the path, and `project` in the query or the JSON body."""
    named = dict(request.path_params)
    if "project" not in named and "project" in request.query_params:
        named["project"] = request.query_params["project"]
    if "project" not in named and "assignment" not in named and "json" in request.headers.get("content-type", ""):
        try:
            body = await request.json()
        except (ValueError, RecursionError):  # not JSON: it names nothing
            body = None
        named["project"] = body.get("project") if isinstance(body, dict) else None
    return named


def _theirs(c: Connection, me: Me, kind: Object, named: dict[str, Any]) -> bool:
    ids = {key: int(value) for key, value in named.items() if str(value).isdecimal() and len(str(value)) < 16}
    if kind not in ids:
        return False
    if kind == "project":
        return may_see(c, me, ids["project"])
    if kind == "assignment":
        return may_judge(c, me, ids["assignment"])
    if kind == "invite":
        of_project = (invite.c.id == ids[kind], invite.c.project_id == ids.get("project"))
        return (
            may_see(c, me, ids.get("project", 0))
            and c.execute(select(invite.c.id).where(*of_project)).first() is not None
        )
    of = api_token.c.id if kind == "program" else annotator.c.id
    return c.execute(select(of).where(of == ids[kind])).first() is not None
