"""Pages for those who run a project: progress, people, links, data, instructions, state, label quality."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Form, HTTPException, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse, Response
from sqlalchemy import select, update

from tutelage.feedback import erasure, overview, people, projects, tokens
from tutelage.feedback.schema import annotator, instructions
from tutelage.feedback.schema import invite as invite_table
from tutelage.feedback.server.render import page
from tutelage.feedback.server.routes_task import context

router = APIRouter()
UPLOADS = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
"""What may be uploaded: nothing compressed, so that a small file stays small."""
Word = Annotated[str, Form(max_length=100)]


@router.get("/admin")
def admin(request: Request) -> Response:
    """admin.html: projects [{id, name, kind, state, done, total, items, annotators}], people, tokens (overview)."""
    db, me = context(request)
    with db.read() as c:
        mine = people.visible(c, me)
        shown = [overview.summary(c, one, me.id) for one in mine]
        found = overview.people(c, [one["id"] for one in mine])
        live = overview.tokens(c) if me.role == "admin" else []
    return page(request, "admin.html", projects=shown, people=found, tokens=live, can_erase=me.role == "admin")


@router.get("/admin/p/{project}")
def admin_project(request: Request, project: int) -> Response:
    """admin_project.html: see `_project_page`."""
    return _project_page(request, project)


@router.get("/admin/p/{project}/quality")
def quality(request: Request, project: int) -> Response:
    """quality.html: project {id, name}, page (quality.quality_page)."""
    db, _ = context(request)
    with db.read() as c:
        one = overview.project_row(c, project)
    found = request.app.state.quality.page(db, project)
    return page(request, "quality.html", project={"id": one["id"], "name": one["name"]}, page=found)


@router.post("/admin/p/{project}/state")
def set_state(request: Request, project: int, state: Word) -> Response:
    """Open, pause or close."""
    db, me = context(request)
    try:
        with db.write() as c:
            projects.set_status(c, project, state, me.id)
    except ValueError as error:
        raise HTTPException(422, str(error)) from None
    return RedirectResponse(f"/admin/p/{project}", 303)


@router.post("/admin/p/{project}/instructions")
def set_instructions(request: Request, project: int, text: Annotated[str, Form()] = "") -> Response:
    """A new version of the instructions."""
    db, me = context(request)
    try:
        with db.write() as c:
            version = projects.set_instructions(c, project, text, me.id)
    except ValueError as error:
        return _project_page(request, project, 422, error=str(error))
    return _project_page(request, project, notice=f"Version {version} of the instructions is in use.")


@router.post("/admin/p/{project}/invite")
def invite_link(
    request: Request,
    project: int,
    role: Word,
    uses: Annotated[int, Form()] = 1,
    days: Annotated[float, Form()] = 7.0,
    *,
    held_out: Annotated[bool, Form()] = False,
) -> Response:
    """Make an invite link; it is shown once."""
    db, me = context(request)
    try:
        with db.write() as c:
            token = people.new_invite(c, me.id, role, project, uses=uses, days=days, held_out=held_out)  # type: ignore[arg-type]
    except ValueError as error:
        return _project_page(request, project, 422, error=str(error))
    return _project_page(request, project, invite_url=f"{request.app.state.settings.url}/join/{token}")


@router.post("/admin/p/{project}/invite/{invite}/revoke")
def revoke(request: Request, project: int, invite: int) -> Response:
    """An invite link stops working."""
    db, me = context(request)
    with db.write() as c:
        c.execute(update(invite_table).where(invite_table.c.id == invite).values(uses_left=0))
        projects.log(c, me.id, "revoke invite", {"project": project, "invite": invite})
    return RedirectResponse(f"/admin/p/{project}", 303)


@router.post("/admin/programs/{program}/revoke")
def revoke_api_token(request: Request, program: int) -> Response:
    """A program's token stops working, at once."""
    db, me = context(request)
    with db.write() as c:
        tokens.revoke_one(c, program, me.id)
    return RedirectResponse("/admin", 303)


@router.post("/admin/people/{person}/link")
def entry_link(request: Request, person: int) -> Response:
    """A one-time link for somebody who lost theirs. message.html."""
    db, me = context(request)
    with db.write() as c:
        one = c.execute(select(annotator).where(annotator.c.id == person)).mappings().one()
        if one["status"] == "erased":
            raise HTTPException(409, "This person was erased.")
        token = people.new_entry(c, person, once=True, seconds=7 * 86400)
        projects.log(c, me.id, "entry link", {"annotator": person})
    text = f"It lets {one['name']} in once, within 7 days, and is shown only now: {request.app.state.settings.url}/enter/{token}"
    link = {"href": "/admin", "text": "Back"}
    return page(request, "message.html", title="A link for one person", text=text, link=link)


@router.post("/admin/people/{person}/erase")
def erase(request: Request, person: int) -> Response:
    """Erase a person: name, links and written texts; logged."""
    db, me = context(request)
    if person == me.id:
        raise HTTPException(409, "You cannot erase yourself while you are signed in.")
    with db.write() as c:
        erasure.erase(c, person, me.id)
    return RedirectResponse("/admin", 303)


@router.post("/admin/p/{project}/items")
async def add_items(request: Request, project: int, file: UploadFile) -> Response:
    """Add a file of data to a running project; what is there already is not added again."""
    suffix = Path(file.filename or "").suffix.lower()
    if suffix not in UPLOADS:
        return _project_page(
            request, project, 422, error=f"File: {suffix or 'no ending'}; allowed: {', '.join(UPLOADS)}"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"upload{suffix}"
        with path.open("wb") as out:
            while block := await file.read(1 << 20):
                out.write(block)
        return await run_in_threadpool(_add_file, request, project, path)


def _add_file(request: Request, project: int, path: Path) -> Response:
    db, me = context(request)
    read_items = request.app.state.settings.read_items
    if read_items is None:
        return _project_page(request, project, 422, error="This server was started without a reader of data files.")
    try:
        with db.read() as c:
            task = overview.project_row(c, project)["task"]
        new = read_items(path, task)
        with db.write() as c:
            before = overview.summary(c, overview.project_row(c, project))["items"]
            projects.add_items(c, project, new)
            added = overview.summary(c, overview.project_row(c, project))["items"] - before
            projects.log(c, me.id, "add data", {"project": project, "rows": len(new), "added": added})
    except (ValueError, RecursionError) as error:  # JSON nested too deeply to read is bad data too
        text = str(error).replace(str(path), "line").replace("line:", "line ")
        return _project_page(request, project, 422, error=text)
    return _project_page(request, project, notice=f"{added} items added; {len(new) - added} were there already.")


def _project_page(request: Request, project: int, status: int = 200, **said: Any) -> Response:
    """admin_project.html: project (overview.summary), people, invites, flags, instructions (text), can_manage, can_erase;
    `said`: invite_url (shown once), notice, error."""
    db, me = context(request)
    with db.read() as c:
        one = overview.project_row(c, project)
        newest = select(instructions.c.text).where(instructions.c.project_id == project)
        found = {
            "project": overview.summary(c, one, me.id),
            "people": overview.people(c, [project]),
            "invites": overview.invites(c, project, time.time()) if me.role == "admin" else [],
            "flags": overview.flags(c, project),
            "instructions": c.execute(newest.order_by(instructions.c.version.desc()).limit(1)).scalar_one_or_none(),
        }
    managing = {"can_manage": me.role == "admin", "can_erase": me.role == "admin"}
    return page(
        request,
        "admin_project.html",
        status,
        **{"invite_url": None, "notice": None, "error": None, **said},
        **found,
        **managing,
    )
