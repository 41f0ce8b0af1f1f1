"""Over HTTP: style sheets that are asked about and not sent again, quality that is computed once, tokens that are revoked."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from tutelage.feedback.judging import Measured, submit
from tutelage.feedback.quality import quality_page
from tutelage.feedback.queue import Handed, next_task
from tutelage.feedback.schema import api_token
from tutelage.feedback.server.quality_pages import QualityPages
from tutelage.feedback.tasks import Counted
from tutelage.feedback.tokens import new_token


def judge(place: Any, project: int, who: int, choice: str = "first") -> None:
    """One more judgment."""
    with place.db.write() as c:
        found = next_task(c, project, who)
        assert isinstance(found, Handed)
        submit(c, found.assignment, who, f"key-{found.assignment}-{who}", {"choice": choice}, measured=Measured())


def test_a_style_sheet_is_sent_once_and_then_only_asked_about(serving: Any) -> None:
    client = serving.client()
    first = client.get("/static/app.css")
    assert first.headers["cache-control"] == "no-cache"  # after an update of the program the old one is not used
    again = client.get("/static/app.css", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/static/app.css", headers={"if-none-match": '"older"'}).content == first.content
    assert client.get("/healthz").headers["cache-control"] == "no-store"


def test_quality_is_computed_again_only_when_something_changed(lite: Any) -> None:
    project, other = lite.project(lite.pairs(4), overlap=2), lite.project(lite.pairs(2, start=9))
    ann, bo = lite.person(project), lite.person(project, "Quentin")
    judge(lite, project, ann)
    judge(lite, project, bo)
    pages = QualityPages()
    first = pages.page(lite.db, project)
    assert pages.page(lite.db, project) is first
    judge(lite, other, lite.admin())
    pages.page(lite.db, other)
    assert pages.page(lite.db, other) is not first
    judge(lite, project, bo, "second")
    then = pages.page(lite.db, project)
    assert then is not first
    assert then == quality_page(lite.db, project)
    from tutelage.feedback.erasure import erase

    with lite.db.write() as c:
        erase(c, bo, None)
    assert "Quentin" in str(then)
    assert "Quentin" not in str(pages.page(lite.db, project)), "what was erased is not shown from memory"


def test_an_admin_revokes_a_programs_token_on_the_page(serving: Any) -> None:
    place = serving.place
    project = place.project(place.pairs(1))
    with place.db.write() as c:
        token = new_token(c, "lost <laptop>", ["judgments:read"], project)
    mine = place.rows(select(api_token.c.id).where(api_token.c.name == "lost <laptop>"))[0]["id"]
    client, admin = serving.client(), serving.client(place.admin())
    said = {"authorization": f"Bearer {token}"}
    assert client.get("/api/v1/judgments", headers=said).status_code == 200
    page = admin.get("/admin").text
    assert "lost &lt;laptop&gt;" in page
    assert token not in page
    assert admin.send_form(f"/admin/programs/{mine}/revoke").status_code == 303
    assert client.get("/api/v1/judgments", headers=said).status_code == 401
    assert f"/admin/programs/{mine}/" not in admin.get("/admin").text


def test_a_large_project_is_counted_once_a_second_and_a_small_one_each_time(lite: Any) -> None:
    project = lite.project(lite.pairs(3))
    who = lite.person(project)
    counted = Counted()
    with lite.db.read() as c:
        assert counted.of(c, project, now=10.0) == {0: 3}
    judge(lite, project, who)
    with lite.db.read() as c:
        assert counted.of(c, project, now=10.1) == {0: 2, 1: 1}
    counted.large = 3
    judge(lite, project, who)
    with lite.db.read() as c:
        assert counted.of(c, project, now=10.9) == {0: 2, 1: 1}, "less than a second old"
        assert counted.of(c, project, now=11.2) == {0: 1, 1: 2}
