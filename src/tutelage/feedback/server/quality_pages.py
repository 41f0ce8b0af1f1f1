"""Label quality for the pages: made anew only when something that it is made of has changed."""

from __future__ import annotations

import threading
from typing import Any

from sqlalchemy import bindparam, func, select

from tutelage.feedback.database import Database
from tutelage.feedback.schema import annotator, audit, flag, judgment_event


class QualityPages:
    """Pages of `quality_page`, kept while nothing that they are made of has changed; one is made at a time."""

    def __init__(self) -> None:
        self._pages: dict[int, tuple[Any, dict[str, Any]]] = {}
        self._turn = threading.Lock()

    def page(self, db: Database, project: int) -> dict[str, Any]:
        """The page of a project as the database is now."""
        with self._turn:
            with db.read() as connection:
                stamp = connection.execute(_STAMP, {"project": project}).one()
            known = self._pages.get(project)
            if known is None or known[0] != stamp:
                from tutelage.feedback.quality import quality_page  # scipy: not at the start

                known = self._pages[project] = (stamp, quality_page(db, project))
            return known[1]


_STAMP = select(  # events, flags, what admins did (erasures, instructions, data) and the people there are
    select(func.max(judgment_event.c.seq)).where(judgment_event.c.project_id == bindparam("project")).scalar_subquery(),
    select(func.max(flag.c.id)).where(flag.c.project_id == bindparam("project")).scalar_subquery(),
    select(func.max(audit.c.id)).scalar_subquery(),
    select(func.max(annotator.c.id)).scalar_subquery(),
)
