"""The web application: routes, their rules, the pages and the programme API, inside the security rules."""

from __future__ import annotations

from typing import Any

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError, StarletteHTTPException
from fastapi.staticfiles import StaticFiles

from tutelage.feedback.database import Database
from tutelage.feedback.server import routes_admin, routes_pages, routes_task
from tutelage.feedback.server.api import programme_api
from tutelage.feedback.server.policy import check_complete, guard
from tutelage.feedback.server.quality_pages import QualityPages
from tutelage.feedback.server.render import PAGES, http_error, invalid
from tutelage.feedback.server.security import Guarded
from tutelage.feedback.server.settings import Settings
from tutelage.feedback.tasks import Counted


def create_app(db: Database, settings: Settings) -> Guarded:
    """An ASGI application on an open database. Nothing of it is a module's global: two may run in one process."""
    app = FastAPI(title="tutelage", openapi_url=None, docs_url=None, redoc_url=None, dependencies=[Depends(guard)])
    app.state.db, app.state.settings = db, settings
    app.state.quality, app.state.counted = QualityPages(), Counted()
    routers = [module.router for module in (routes_pages, routes_task, routes_admin)]
    check_complete(routers)
    for router in routers:
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=PAGES / "static"))
    app.mount("/api/v1", programme_api(db, settings))
    handlers: dict[Any, Any] = {StarletteHTTPException: http_error, RequestValidationError: invalid}
    for error, handler in handlers.items():
        app.add_exception_handler(error, handler)
    return Guarded(app, settings)
