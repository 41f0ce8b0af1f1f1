"""What protects the server: rules for every route by role and object, CSRF, hosts, sessions, headers, limits; real HTTP."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from sqlalchemy import delete, select, update

from tutelage.feedback.people import FAILURES, new_invite, new_session, owner
from tutelage.feedback.schema import annotator, api_token, attempt, entry, invite, session
from tutelage.feedback.server.policy import RULES
from tutelage.feedback.server.security import POLICY
from tutelage.feedback.server.settings import Settings, is_loopback
from tutelage.feedback.tokens import new_token

FIRST = {"choice": "first"}


@dataclass
class World:
    """Two projects with a labeller each, a researcher and an admin; objects of both projects by name."""

    server: Any
    clients: dict[str, Any]
    mine: dict[str, int]
    foreign: dict[str, int]


def one_side(place: Any, server: Any, name: str) -> tuple[Any, dict[str, int]]:
    """A project with a labeller at work, and an invite."""
    project = place.project(place.pairs(3), overlap=2)
    who = place.person(project, name)
    client = server.client(who)
    work = client.next(project)["assignment"]
    with place.db.write() as c:
        new_invite(c, owner(c), "labeller", project)
        new_token(c, f"of {name}", ["items:write"], project)
    made = place.rows(select(invite.c.id).where(invite.c.project_id == project, invite.c.uses_left > 0))[0]["id"]
    token = place.rows(select(api_token.c.id).where(api_token.c.project_id == project))[0]["id"]
    return client, {
        "project": project,
        "assignment": work,
        "invite": made,
        "person": who,
        "number": 0,
        "program": token,
    }


@pytest.fixture
def world(serving: Any) -> World:
    """Both sides; the researcher belongs to the first project only."""
    place = serving.place
    labeller, mine = one_side(place, serving, "Ann")
    _, foreign = one_side(place, serving, "Ben")
    researcher = serving.client(place.person(mine["project"], "Eve", role="researcher"))
    clients = {
        "nobody": serving.client(),
        "labeller": labeller,
        "researcher": researcher,
        "admin": serving.client(place.admin()),
    }
    return World(serving, clients, mine, foreign)


def ask(client: Any, route: str, named: dict[str, int]) -> int:
    """The status of a request with good content."""
    method, pattern = route.split(" ")
    path = re.sub(r"\{(\w+)\}", lambda m: "item" if m[1] == "place" else str(named.get(m[1], "wrong-token")), pattern)
    if method == "GET":
        return client.get(path, params={"project": named["project"]}).status_code
    if path.startswith("/api"):
        body: dict[str, Any] = {"project": named["project"], "key": f"undo-{id(client)}"}
        if path.endswith("submit"):
            body = {"key": f"key-{id(client)}", "payload": FIRST}
        elif path.endswith("draft"):
            body = {"payload": FIRST}
        return client.send_json(method, path, body).status_code
    fields = {"state": "open", "role": "labeller", "text": "Be kind.", "name": "New"}
    if path.endswith("/items"):
        file = {"file": ("new.jsonl", b'{"prompt": "x", "responses": ["a", "b"]}\n')}
        return client.post(path, data={"csrf": client.csrf}, files=file).status_code
    return client.send_form(path, **fields).status_code


OPEN = [route for route, rule in RULES.items() if not rule.roles]
CLOSED = [
    route
    for route, rule in RULES.items()
    if rule.roles and route not in ("POST /leave", "POST /admin/people/{person}/erase")
]
GOOD = (200, 204, 303)
EMPTY = {
    "GET /api/task/{assignment}/media/{place}/{number}": (404,),  # the items have no files
    "POST /admin/p/{project}/items": (422,),  # this server was started without a reader of files
    "POST /api/task/undo": (200, 409),  # who has not judged has nothing to take back
}


def test_every_route_by_role_and_by_object(world: World) -> None:
    """Nobody: 401. The wrong role: 403. The right role and its own object: good. Somebody else's object: 404."""
    wrong = []
    for route in CLOSED:
        rule = RULES[route]
        for who, client in world.clients.items():
            own = (
                rule.object != "assignment" or who == "labeller"
            )  # an assignment is one person's, not even the admin's
            allowed = who in rule.roles and own
            expected: tuple[int, ...] = (401,) if who == "nobody" else (403,) if who not in rule.roles else (404,)
            if allowed:
                expected = EMPTY.get(route, GOOD)
            status = ask(client, route, world.mine)
            wrong += [(route, who, status)] if status not in expected else []
            if allowed and rule.object and who != "admin":
                status = ask(client, route, world.foreign)
                wrong += [(route, who, "foreign", status)] if status != 404 else []
    assert wrong == []


def test_an_object_that_is_not_there_looks_like_one_that_is_not_yours(world: World) -> None:
    client = world.clients["labeller"]
    foreign = client.get(f"/api/task/next?project={world.foreign['project']}")
    absent = client.get("/api/task/next?project=987654321")
    assert (foreign.status_code, foreign.text) == (absent.status_code, absent.text)
    for strange in ("-1", "1;DROP TABLE slot", "1 OR 1=1", "9" * 40, "١", ""):
        assert client.get("/api/task/next", params={"project": strange}).status_code in (404, 422), strange


def test_a_form_or_script_of_another_site_writes_nothing(world: World) -> None:
    client, work = world.clients["labeller"], world.mine["assignment"]
    body = {"key": "key-000001", "payload": FIRST}
    good = {"x-csrf-token": client.csrf}
    for headers in (
        {},
        {"x-csrf-token": "wrong"},
        {"x-csrf-token": world.clients["researcher"].csrf},
        good | {"origin": "https://evil.example"},
        good | {"origin": "null"},
        good | {"sec-fetch-site": "cross-site"},
        good | {"sec-fetch-site": "same-site"},
    ):
        assert client.post(f"/api/task/{work}/submit", json=body, headers=headers).status_code == 403, headers
    same = good | {"origin": world.server.url, "sec-fetch-site": "same-origin"}
    assert client.post(f"/api/task/{work}/submit", json=body, headers=same).status_code == 200
    with world.server.place.db.write() as c:
        token = new_invite(c, owner(c), "labeller", world.mine["project"])
    stranger = world.clients["nobody"]
    foreign = {"origin": "https://evil.example"}
    assert stranger.post(f"/join/{token}", data={"name": "X"}, headers=foreign).status_code == 403
    assert stranger.post(f"/join/{token}", data={"name": "X"}).status_code == 200


def test_only_our_own_names_are_answered(world: World) -> None:
    port = world.server.port
    for host, status in {
        f"127.0.0.1:{port}": 200,
        f"localhost:{port}": 200,
        f"LOCALHOST:{port}": 200,
        f"evil.example:{port}": 421,
        f"127.0.0.1.nip.io:{port}": 421,
        "127.0.0.1": 421,
        "": 421,
    }.items():
        assert httpx.get(f"{world.server.url}/healthz", headers={"host": host}).status_code == status, host


def test_sessions_are_fresh_hashed_and_end(world: World) -> None:
    place, who = world.server.place, world.mine["person"]
    client = world.server.client()
    name = Settings(port=world.server.port).cookie
    client.cookies.set(name, "planted-by-an-attacker", domain="127.0.0.1")
    entered = world.server.client(who)
    token = entered.cookies[name]
    assert len(token) >= 43
    assert token not in str(place.rows(select(session)))
    set_cookie = entered_header(world, who)
    assert re.search(r"; HttpOnly", set_cookie)
    assert re.search(r"; SameSite=lax", set_cookie)
    assert "; Path=/" in set_cookie
    assert client.get("/").status_code == 401, "a planted cookie opens nothing"
    assert entered.send_form("/leave").status_code == 200
    entered.cookies.set(name, token, domain="127.0.0.1")
    assert entered.get("/").status_code == 401, "signed out on the server, not only in the browser"
    old = world.server.client()
    with place.db.write() as c:
        for seconds in (12 * 3600 + 1, 14 * 86400 + 1):
            old.cookies.set(name, new_session(c, who, now=__import__("time").time() - seconds), domain="127.0.0.1")
    assert old.get("/").status_code == 401


def entered_header(world: World, who: int) -> str:
    """The Set-Cookie of a way in, with a cookie of somebody else already there: it must be replaced."""
    from tutelage.feedback.people import new_entry

    with world.server.place.db.write() as c:
        token = new_entry(c, who, once=True, seconds=60)
    client = world.server.client()
    first = client.get(f"/enter/{token}").headers["set-cookie"]
    assert client.get(f"/enter/{token}").status_code == 303, "already in: to the first page"
    assert world.server.client().get(f"/enter/{token}").status_code == 404, "it works once"
    assert token not in str(world.server.place.rows(select(entry)))
    return first


def test_wrong_links_are_throttled_and_right_ones_work(serving: Any) -> None:
    client, place = serving.client(), serving.place
    with place.db.write() as c:
        c.execute(delete(attempt))
    statuses = [
        client.get(f"/{path}/guess-{n}").status_code for n, path in enumerate(["join", "enter"] * (FAILURES // 2))
    ]
    assert set(statuses) == {404}
    assert {client.get(f"/{path}/guess").status_code for path in ("join", "enter")} == {429}
    assert serving.client(place.admin()).get("/").status_code == 200
    with place.db.write() as c:
        c.execute(update(attempt).values(at=attempt.c.at - 601))
    assert client.get("/join/guess").status_code == 404, "after a while"


def test_headers_confine_the_browser_on_every_answer(world: World) -> None:
    client = world.clients["admin"]
    for path in (
        "/",
        "/admin",
        "/static/icon.svg",
        "/nothing-here",
        "/api/task/next?project=987",
        "/api/v1/judgments",
        "/healthz",
    ):
        headers = client.get(path).headers
        assert headers["content-security-policy"] == POLICY
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "same-origin")
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers
        assert path.startswith("/static") or headers["cache-control"] == "no-store"
    assert "unsafe" not in POLICY
    assert "*" not in POLICY
    assert "http" not in POLICY
    page = client.get(f"/admin/p/{world.mine['project']}").text
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bon\w+=|\bstyle=|javascript:", page)
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", page)


def test_large_bodies_are_refused_whether_their_length_is_said_or_not(world: World) -> None:
    client, work = world.clients["labeller"], world.mine["assignment"]
    headers = {"x-csrf-token": client.csrf, "content-type": "application/json"}
    path = f"/api/task/{work}/draft"
    assert client.put(path, content=b"x" * (1 << 20) + b"x", headers=headers).status_code == 413
    assert client.put(path, content=iter([b"x" * 65536] * 17), headers=headers).status_code == 413
    assert client.put(path, json={"payload": {"text": "x" * 900_000}}, headers=headers).status_code == 204
    with socket.create_connection(("127.0.0.1", world.server.port)) as raw:
        raw.sendall(
            f"PUT {path} HTTP/1.1\r\nHost: 127.0.0.1:{world.server.port}\r\nContent-Length: -5\r\n\r\n".encode()
        )
        assert raw.recv(100).split()[1] in (b"400", b"413")


def test_deeply_nested_or_broken_bodies_are_errors_of_the_sender(world: World) -> None:
    client = world.clients["labeller"]
    headers = {"x-csrf-token": client.csrf, "content-type": "application/json"}
    for body in (
        b"[" * 100_000,
        b'{"payload": ' * 20_000,
        b"\xff\xfe",
        b'{"key": 1',
        b'{"project": 1, "key": "\\ud800xxxxxxx"}',
    ):
        for method, path in (("POST", "/api/task/undo"), ("PUT", f"/api/task/{world.mine['assignment']}/draft")):
            status = client.request(method, path, content=body, headers=headers).status_code
            assert 400 <= status < 500, (status, body[:20])
    for kind in ("text/json", "text/plain"):
        status = client.post("/api/task/undo", content=b"{", headers=headers | {"content-type": kind}).status_code
        assert 400 <= status < 500, kind


def test_names_and_data_are_escaped(serving: Any) -> None:
    place, nasty = serving.place, "<img src=x onerror=alert(1)>\"'{{'x'*9}}"
    project = place.project(place.pairs(1), name=nasty)
    admin = serving.client(place.admin(nasty))
    for path in ("/", "/admin", f"/admin/p/{project}", f"/p/{project}/judge", f"/p/{project}/instructions"):
        page = admin.get(path).text
        assert "<img src=x" not in page
        assert "xxxxxxxxx" not in page
        assert "&lt;img src=x" in page


def test_an_erased_person_is_out_at_once(world: World) -> None:
    admin, person = world.clients["admin"], world.mine["person"]
    assert admin.send_form(f"/admin/people/{person}/erase").status_code == 303
    assert world.clients["labeller"].get("/").status_code == 401
    assert world.server.place.rows(select(annotator.c.status).where(annotator.c.id == person)) == [{"status": "erased"}]
    assert admin.send_form(f"/admin/people/{person}/link").status_code == 409


def test_another_host_needs_a_public_https_url() -> None:
    with pytest.raises(ValueError, match="--public-url"):
        Settings(port=1, host="0.0.0.0")
    for wrong in (
        "http://label.example.org",
        "label.example.org",
        "https://label.example.org/path",
        "ftp://x",
        "https://",
    ):
        with pytest.raises(ValueError, match="allowed: https"):
            Settings(port=1, host="0.0.0.0", public_url=wrong)
    public = Settings(port=8765, host="0.0.0.0", public_url="https://Label.example.org")
    assert (public.cookie, public.secure) == ("__Host-tutelage", True)
    assert public.origins == {"https://label.example.org"}
    assert "label.example.org" in public.hosts
    assert not is_loopback("10.0.0.1")
    assert not is_loopback("localhost.evil.example")
    assert is_loopback("::1")


def test_over_https_the_cookie_is_bound_to_the_host(lite: Any) -> None:
    import anyio

    from tutelage.feedback.people import new_entry
    from tutelage.feedback.server.app import create_app

    with lite.db.write() as c:
        token = new_entry(c, owner(c), once=True, seconds=60)
    app = create_app(lite.db, Settings(port=1, public_url="https://label.example.org"))

    async def enter() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="https://label.example.org"
        ) as client:
            return await client.get(f"/enter/{token}")

    answer = anyio.run(enter)
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-tutelage=")
    assert "; Secure" in cookie
    assert "; Path=/" in cookie
    assert "Domain" not in cookie
    assert answer.headers["strict-transport-security"] == "max-age=31536000"
