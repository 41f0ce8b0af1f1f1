"""Pages from templates, and errors as a page or as JSON, whichever was asked for."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.templating import Jinja2Templates

PAGES = Path(__file__).resolve().parents[1] / "pages"
TITLES = {
    401: "Please open your link",
    403: "Not allowed",
    404: "Nothing here",
    409: "Not possible now",
    413: "Too large",
}


@cache
def templates() -> Jinja2Templates:
    """The page templates; everything put into them is escaped."""
    return Jinja2Templates(PAGES / "templates")


def page(request: Request, template: str, status: int = 200, /, **context: Any) -> Response:
    """A page. Every template has `me` (id, name, role; or None) and `csrf` beside its own context."""
    me = getattr(request.state, "me", None)
    context = {"me": me, "csrf": me.csrf if me else "", **context}
    return templates().TemplateResponse(request, template, context, status_code=status)


def message(request: Request, status: int, title: str, text: str, link: dict[str, str] | None = None) -> Response:
    """A page with one message."""
    return page(request, "message.html", status, title=title, text=text, link=link)


def http_error(request: Request, error: Any) -> Response:
    """An HTTPException: {"error"} for scripts, a page for people."""
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": str(error.detail)}, error.status_code, headers=error.headers)
    title = TITLES.get(error.status_code, "That did not work")
    return message(request, error.status_code, title, str(error.detail), {"href": "/", "text": "To the first page"})


def invalid(request: Request, error: Any) -> Response:
    """A request that does not fit its route: where, and what is wrong; what was sent is not repeated."""
    assert isinstance(error, RequestValidationError)
    found = "; ".join(f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()[:5])
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": found}, 422)
    return message(request, 422, "That did not work", found)
