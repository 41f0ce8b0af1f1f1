"""Pages for annotators: the way in, their projects, the judging screen, the instructions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, HTTPException, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy import select

from tutelage.feedback import people
from tutelage.feedback.database import Database
from tutelage.feedback.overview import project_row, summary, when
from tutelage.feedback.schema import annotator
from tutelage.feedback.server.render import message, page
from tutelage.feedback.server.routes_task import context, instructions_of
from tutelage.feedback.server.settings import Settings

router = APIRouter()
RETURN_DAYS = 60
"""How long a person's own link lets them in again."""


@router.get("/healthz")
def healthz(request: Request) -> dict[str, str]:
    """The server and its database answer."""
    with request.app.state.db.read() as c:
        c.execute(select(1))
    return {"status": "ok"}


@router.get("/")
def home(request: Request) -> Response:
    """home.html: projects [{id, name, kind, state, done, total, mine, ...}]."""
    db, me = context(request)
    with db.read() as c:
        projects = [summary(c, one, me.id) for one in people.visible(c, me)]
    return page(request, "home.html", projects=projects)


@router.get("/p/{project}/judge")
def judge(request: Request, project: int) -> Response:
    """judge.html: project {id, name, kind}."""
    db, _ = context(request)
    with db.read() as c:
        one = project_row(c, project)
    return page(request, "judge.html", project={"id": one["id"], "name": one["name"], "kind": one["task"]})


@router.get("/p/{project}/instructions")
def instructions(request: Request, project: int, version: int | None = None) -> Response:
    """instructions.html: project {id, name}, version, html, versions [{version, at}]."""
    db, _ = context(request)
    with db.read() as c:
        one, found = project_row(c, project), instructions_of(c, project, version)
    found["versions"] = [{"version": v["version"], "at": when(v["at"])} for v in found["versions"]]
    return page(request, "instructions.html", project={"id": one["id"], "name": one["name"]}, **found)


@router.get("/enter/{token}")
def enter(request: Request, token: str) -> Response:
    """A link that lets a known person in: the admin's one-time link, or a person's own."""
    db = request.app.state.db
    with db.write() as c:
        who = people.enter(c, token)
        if who is not None:
            role = c.execute(select(annotator.c.role).where(annotator.c.id == who)).scalar_one()
            return _signed_in(request, people.new_session(c, who), "/admin" if role == "admin" else "/")
    _wrong_link(request)
    if request.state.me is not None:
        return RedirectResponse("/", 303)
    text = "It lets somebody in once, or has expired. Whoever runs the server can print a new one."
    return message(request, 404, "This link was used already", text)


@router.get("/join/{token}")
def invitation(request: Request, token: str) -> Response:
    """join.html: project {name} or None, role, token, error, name. Looking at an invitation uses nothing up."""
    return _invitation(request, token)


@router.post("/join/{token}")
def join(request: Request, token: str, name: Annotated[str, Form(max_length=500)] = "") -> Response:
    """Take one use of an invite link; the session is a fresh one. joined.html: return_url, days, project."""
    db: Database = request.app.state.db
    try:
        with db.write() as c:
            who = people.join(c, token, name)
            if who is not None:
                link = people.new_entry(c, who, once=False, seconds=RETURN_DAYS * 86400)
                cookie = people.new_session(c, who)
                request.state.me = people.who_is(c, cookie)[0]  # type: ignore[index]
    except ValueError as error:
        return _invitation(request, token, str(error), name)
    if who is None:
        return _invitation(request, token)
    url = f"{request.app.state.settings.url}/enter/{link}"
    return _with_cookie(request, page(request, "joined.html", return_url=url, days=RETURN_DAYS), cookie)


@router.post("/leave")
def leave(request: Request) -> Response:
    """Log out."""
    settings: Settings = request.app.state.settings
    with request.app.state.db.write() as c:
        people.end_session(c, request.cookies.get(settings.cookie, ""))
    request.state.me = None
    answer = message(request, 200, "You are signed out", "Your judgments are saved. Your own link lets you in again.")
    answer.delete_cookie(settings.cookie, path="/", secure=settings.secure, httponly=True, samesite="lax")
    return answer


def _invitation(request: Request, token: str, error: str | None = None, name: str = "") -> Response:
    with request.app.state.db.read() as c:
        found = people.find_invite(c, token)
    if found is None:
        _wrong_link(request)
        text = "It was used up, revoked, or has expired. Ask whoever sent it for a new one."
        return message(request, 404, "This invitation does not work any more", text)
    project = {"name": found["project"]} if found["project"] else None
    said = {"role": found["role"], "token": token, "error": error, "name": name}
    return page(request, "join.html", 422 if error else 200, project=project, **said)


def _wrong_link(request: Request) -> None:
    """Count it; who tries many has to wait. Links that are right work all the same: nobody can lock others out."""
    address = request.client.host if request.client else ""
    with request.app.state.db.write() as c:
        tired = people.throttled(c, address)
        people.failed(c, address)
    if tired:
        raise HTTPException(429, "Too many links that do not work. Try again in ten minutes.")


def _signed_in(request: Request, token: str, to: str) -> Response:
    return _with_cookie(request, RedirectResponse(to, 303), token)


def _with_cookie(request: Request, answer: Response, token: str) -> Response:
    """A fresh session at every way in: a cookie that somebody planted before is worth nothing."""
    settings: Settings = request.app.state.settings
    options = {"path": "/", "secure": settings.secure, "httponly": True, "max_age": int(people.LONGEST)}
    answer.set_cookie(settings.cookie, token, samesite="lax", **options)
    return answer
