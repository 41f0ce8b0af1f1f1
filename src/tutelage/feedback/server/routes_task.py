"""The judging screen's routes: the next item, leases, judgments, drafts, undo, media, instructions (JSON, cookie session)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select

from tutelage.feedback import judging, queue
from tutelage.feedback.database import Database
from tutelage.feedback.markdown import render
from tutelage.feedback.people import Me
from tutelage.feedback.qualification import feedback
from tutelage.feedback.schema import instructions
from tutelage.feedback.tasks import media_file, show

router = APIRouter()
Ahead = Annotated[int, Field(ge=0, le=queue.FURTHEST)]
Count = Annotated[int, Field(ge=0, le=2**40)]
Key = Annotated[str, Field(min_length=8, max_length=100, pattern=r"^[A-Za-z0-9:._-]+$")]


class Submitted(BaseModel):
    """A judgment as the page sends it."""

    model_config = ConfigDict(extra="forbid")
    key: Key
    payload: dict[str, Any]
    active_ms: Count = 0
    visible_ms: Count = 0
    view: Literal["rendered", "raw"] = "rendered"
    keys: Count = 0
    clicks: Count = 0
    instructions_version: Count = 0
    ahead: Ahead = 0

    def measured(self) -> judging.Measured:
        """What the page measured."""
        return judging.Measured(**{name: getattr(self, name) for name in judging.Measured.__dataclass_fields__})


class Undone(BaseModel):
    """Take back the last judgment in a project."""

    model_config = ConfigDict(extra="forbid")
    project: int
    key: Key


class Draft(BaseModel):
    """What was written so far; not checked, for it is not finished."""

    model_config = ConfigDict(extra="forbid")
    payload: dict[str, Any]


def context(request: Request) -> tuple[Database, Me]:
    """The database, and who is asking (the guard has made sure)."""
    return request.app.state.db, request.state.me


@router.get("/api/task/next")
def next_task(request: Request, project: int, ahead: Annotated[int, Query(ge=0, le=queue.FURTHEST)] = 0) -> Response:
    """The item in hand, or the next one; `ahead=1`: the one after it, to be there at once."""
    db, me = context(request)
    with db.write() as c:
        handed = queue.next_task(c, project, me.id, ahead)
    with db.read() as c:
        return JSONResponse(show(c, project, me.id, handed, request.app.state.counted))


@router.post("/api/task/{assignment}/heartbeat", status_code=204)
def heartbeat(request: Request, assignment: int) -> Response:
    """The page is still open."""
    db, me = context(request)
    with db.write() as c:
        queue.heartbeat(c, assignment, me.id)
    return Response(status_code=204)


@router.post("/api/task/{assignment}/submit")
def submit(request: Request, assignment: int, body: Submitted) -> Response:
    """Store a judgment and hand out the next item, in one transaction; the same key again changes nothing. In a
    qualification test the answer comes with what is right, and why."""
    db, me = context(request)
    try:
        with db.write() as c:
            done = judging.submit(c, assignment, me.id, body.key, body.payload, measured=body.measured())
            handed = queue.next_task(c, done.project, me.id, body.ahead)
    except judging.KeyConflictError as error:
        raise HTTPException(409, str(error)) from None
    except ValueError as error:
        raise HTTPException(422, str(error)) from None
    with db.read() as c:
        told = {"feedback": feedback(c, assignment)} if done.tested else {}
        return JSONResponse(
            {
                "accepted": True,
                "late": done.late,
                "next": show(c, done.project, me.id, handed, request.app.state.counted),
            }
            | told
        )


@router.post("/api/task/undo")
def undo(request: Request, body: Undone) -> dict[str, Any]:
    """Reopen the last judgment, with what was said as its draft."""
    db, me = context(request)
    try:
        with db.write() as c:
            handed = judging.undo(c, body.project, me.id, body.key)
    except judging.KeyConflictError as error:
        raise HTTPException(409, str(error)) from None
    if handed is None:
        raise HTTPException(409, "There is nothing to take back, or the project is closed.")
    with db.read() as c:
        return show(c, body.project, me.id, handed, request.app.state.counted)


@router.put("/api/task/{assignment}/draft", status_code=204)
def save_draft(request: Request, assignment: int, body: Draft) -> Response:
    """Keep what was written so far."""
    db, _ = context(request)
    with db.write() as c:
        judging.save_draft(c, assignment, body.payload)
    return Response(status_code=204)


@router.get("/api/task/{assignment}/media/{place}/{number}")
def media(request: Request, assignment: int, place: str, number: int) -> FileResponse:
    """An image, GIF or short video of an item, under an address that says nothing of its file."""
    db, _ = context(request)
    with db.read() as c:
        found = media_file(c, assignment, place, number)
    if found is None:
        raise HTTPException(404, "There is no such file.")
    return FileResponse(found[0], media_type=found[1])


@router.get("/api/instructions")
def read_instructions(request: Request, project: int, version: int | None = None) -> dict[str, Any]:
    """The instructions, newest or of a version, as safe HTML, and the list of versions."""
    db, _ = context(request)
    with db.read() as c:
        return instructions_of(c, project, version)


def instructions_of(c: Any, project: int, version: int | None) -> dict[str, Any]:
    """{"version", "html", "versions": [{"version", "at"}]}; version 0 where nothing was written."""
    query = select(instructions).where(instructions.c.project_id == project).order_by(instructions.c.version)
    rows = c.execute(query).mappings().all()
    chosen = next((row for row in reversed(rows) if version in (None, row["version"])), None)
    if chosen is None and version is not None:
        raise HTTPException(404, "There is no such version.")
    versions = [{"version": row["version"], "at": row["at"]} for row in rows]
    if chosen is None:
        return {"version": 0, "html": "", "versions": versions}
    return {"version": chosen["version"], "html": render(chosen["text"]), "versions": versions}
