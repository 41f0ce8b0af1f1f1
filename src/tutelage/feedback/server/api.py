"""The API for programs, /api/v1: items in, judgments out, by cursor or as a stream; bearer tokens with scopes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError, StarletteHTTPException
from fastapi.responses import Response, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import ColumnElement, Connection, and_, or_, select, update

from tutelage.feedback import projects
from tutelage.feedback.database import Database
from tutelage.feedback.schema import annotator, item, judgment_event
from tutelage.feedback.server.api_models import (
    Items,
    Judgments,
    NewProject,
    Stored,
    StoredItems,
    StoredProject,
    Withdrawal,
    Withdrawn,
)
from tutelage.feedback.server.render import http_error, invalid
from tutelage.feedback.server.settings import Settings
from tutelage.feedback.tokens import Bearer, Scope, bearer, find_visible

POLL, HEARTBEAT = 0.5, 15.0
"""Seconds between looks for new events, and between signs of life on a quiet stream."""
STREAMS = 20
"""Streams at a time; a further one is told to come back."""
SCHEME = HTTPBearer(auto_error=False, description="A token that `tutelage collect --api-token` printed.")


def programme_api(db: Database, settings: Settings) -> FastAPI:
    """The application under /api/v1."""
    app = FastAPI(
        title="tutelage feedback",
        version="1",
        docs_url=None,
        redoc_url=None,
        servers=[{"url": f"{settings.url}/api/v1"}],
    )
    app.state.db, app.state.streams = db, 0
    app.add_exception_handler(StarletteHTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.post("/projects", response_model=StoredProject, summary="A project by name (idempotent)")(add_project)
    app.post("/items", response_model=StoredItems, summary="Add items (idempotent)")(add_items)
    app.post("/items/withdraw", response_model=Withdrawn, summary="Hand items out no more")(withdraw)
    app.get("/judgments", response_model=Judgments, summary="Events after a cursor")(judgments)
    app.get("/judgments/stream", summary="Events as they come (server-sent events)")(stream)
    return app


def needs(scope: Scope) -> Callable[..., Bearer]:
    """The dependency of a route: a token with this scope."""

    def check(request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(SCHEME)]) -> Bearer:
        with request.app.state.db.read() as c:
            who = bearer(c, given.credentials) if given is not None else None
        if who is None:
            raise HTTPException(
                401, "A valid token is needed: Authorization: Bearer ...", {"WWW-Authenticate": "Bearer"}
            )
        if scope not in who.scopes:
            raise HTTPException(403, f"The token lacks the scope {scope}.")
        return who

    return check


Writer = Annotated[Bearer, Depends(needs("items:write"))]
Reader = Annotated[Bearer, Depends(needs("judgments:read"))]
After = Annotated[int, Query(ge=0, le=2**53, description="The last `seq` seen; 0 for all.")]
Named = Annotated[str | None, Query(max_length=200, description="Name or id; default: all the token may see.")]


def add_project(request: Request, who: Writer, body: NewProject) -> StoredProject:
    """The project of this name, made where there is none; it stays open for more items until somebody closes it."""
    with request.app.state.db.write() as c:
        there = projects.find_project(c, body.name)
        if who.project is not None and (there is None or there["id"] != who.project):
            raise HTTPException(403, "The token is for another project.")
        if there is not None:
            if (there["task"], there["overlap"]) != (body.task, body.overlap):
                has = f"task {there['task']}, overlap {there['overlap']}"
                raise HTTPException(409, f"project: {body.name!r} is there already with {has}; give another name.")
            return StoredProject(id=there["id"])
        new = projects.Project(body.name, body.task, body.overlap, check_share=0.0, options={"live": True})
        try:
            made = projects.create_project(c, new)
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        if body.instructions:
            projects.set_instructions(c, made, body.instructions, None)
        projects.log(c, None, "project", {"project": made, "api_token": who.id})
    return StoredProject(id=made)


def add_items(request: Request, who: Writer, body: Items) -> StoredItems:
    """Add items to a project. An item whose key is known is not added again, so a request may be repeated."""
    with request.app.state.db.write() as c:
        project = _project(c, who, body.project)
        try:
            ids = projects.add_items(c, project, [one.new() for one in body.items])
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
    return StoredItems(items=[Stored(key=one.key, id=ids[one.key]) for one in body.items])


def withdraw(request: Request, who: Writer, body: Withdrawal) -> Withdrawn:
    """Stop handing items out, for example those of an older policy. Work in hand and judgments are kept."""
    chosen: list[ColumnElement[bool]] = [item.c.client_key.in_(body.keys)]
    if body.before_step is not None:
        chosen.append(item.c.policy_step < body.before_step)
    with request.app.state.db.write() as c:
        project = _project(c, who, body.project)
        mine = and_(item.c.project_id == project, item.c.withdrawn == 0, or_(*chosen))
        count = c.execute(update(item).where(mine).values(withdrawn=1)).rowcount
    return Withdrawn(withdrawn=count)


def judgments(
    request: Request,
    who: Reader,
    after: After = 0,
    project: Named = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 500,
) -> Judgments:
    """Events in the order of their numbers. An undo is an event: what counts is what no later event supersedes."""
    with request.app.state.db.read() as c:
        chosen = _project(c, who, project) if project is not None else who.project
        return events(c, after, chosen, limit)


async def stream(request: Request, who: Reader, after: After = 0, project: Named = None) -> Response:
    """Events as they come; `id` is the cursor, and a browser's Last-Event-ID resumes."""
    state = request.app.state
    last = request.headers.get("last-event-id", "")
    after = int(last) if last.isdecimal() and len(last) < 16 else after

    def resolve() -> int | None:
        with state.db.read() as c:
            return _project(c, who, project) if project is not None else who.project

    chosen = await run_in_threadpool(resolve)
    if state.streams >= STREAMS:
        raise HTTPException(503, "Too many streams are open; use the cursor.", {"Retry-After": "30"})
    return StreamingResponse(_lines(request, after, chosen), media_type="text/event-stream")


async def _lines(request: Request, after: int, project: int | None) -> AsyncIterator[str]:
    state = request.app.state

    def more(cursor: int) -> Judgments:
        with state.db.read() as c:
            return events(c, cursor, project, 100)

    state.streams += 1
    quiet = 0.0
    try:
        yield ": connected\n\n"
        while not await request.is_disconnected():
            found = await run_in_threadpool(more, after)
            for one in found.judgments:
                yield f"id: {one.seq}\nevent: judgment\ndata: {json.dumps(one.model_dump())}\n\n"
            after, quiet = found.next, 0.0 if found.judgments else quiet + POLL
            if quiet >= HEARTBEAT:
                yield ": still here\n\n"
                quiet = 0.0
            if not found.judgments:
                await asyncio.sleep(POLL)
    finally:
        state.streams -= 1


def events(c: Connection, after: int, project: int | None, limit: int) -> Judgments:
    """Up to `limit` events after a number, of one project or of all."""
    e = judgment_event.c
    query = (
        select(judgment_event, item.c.kind.label("task"), item.c.client_key, item.c.repeat_of, item.c.policy_step)
        .add_columns(item.c.check_answer.is_not(None).label("check_item"), annotator.c.role, annotator.c.held_out)
        .join(item, item.c.id == e.item_id)
        .join(annotator, annotator.c.id == e.annotator_id)
        .where(e.seq > after, *([] if project is None else [e.project_id == project]))
        .order_by(e.seq)
        .limit(limit)
    )
    rows = [dict(row) for row in c.execute(query).mappings()]
    names = {"project": "project_id", "item": "item_id", "annotator": "annotator_id"}
    found = [row | {new: row[old] for new, old in names.items()} | {"key": row["client_key"]} for row in rows]
    return Judgments.model_validate({"judgments": found, "next": rows[-1]["seq"] if rows else after})


def _project(c: Connection, who: Bearer, named: str) -> int:
    found = find_visible(c, who, named)
    if found is None:
        raise HTTPException(404, f"project: {named!r} is not there, or the token may not see it.")
    return found
