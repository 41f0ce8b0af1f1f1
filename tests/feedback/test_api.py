"""The programme API over real HTTP: items once by key, judgments by cursor and stream, tokens, scopes, OpenAPI."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import httpx
import pytest

from tutelage.feedback.tokens import bearer, new_token, revoke_token

PAIR = {"prompt": "Say hi", "responses": ["Hi", {"text": "Hello", "origin": {"policy": "step-7"}}]}


def api(serving: Any, scopes: Any = ("items:write", "judgments:read"), project: int | None = None) -> httpx.Client:
    """A program with a token."""
    with serving.place.db.write() as c:
        token = new_token(c, f"t{time.monotonic_ns()}", scopes, project)
    return httpx.Client(base_url=f"{serving.url}/api/v1", headers={"authorization": f"Bearer {token}"}, timeout=30)


def judge_all(serving: Any, project: int, payload: Any, name: str = "Ann") -> Any:
    """Somebody judges everything in the browser's way."""
    client = serving.client(serving.place.person(project, name))
    task = client.next(project)
    while task["assignment"]:
        answer = client.judge(task["assignment"], f"key-{time.monotonic_ns()}", payload, active_ms=1500)
        assert answer.status_code == 200, answer.text
        task = answer.json()["next"]
    return client


def test_items_are_added_once_by_key(serving: Any) -> None:
    project = serving.place.project([], name=f"api {time.monotonic_ns()}")
    program = api(serving)
    body = {"project": str(project), "items": [{"key": "a", **PAIR}, {"key": "b", **PAIR}]}
    first, second = program.post("/items", json=body), program.post("/items", json=body)
    assert first.status_code == 200, first.text
    assert first.json() == second.json()
    assert [one["key"] for one in first.json()["items"]] == ["a", "b"]
    more = program.post(
        "/items", json={"project": str(project), "items": [{"key": "b", **PAIR}, {"key": "c", **PAIR}]}
    ).json()
    assert more["items"][0] == first.json()["items"][1]
    client = judge_all(serving, project, {"choice": "tie"})
    assert client.next(project)["progress"]["done"] == 3


def test_judgments_come_by_cursor_with_what_is_needed_and_no_names(serving: Any) -> None:
    project = serving.place.project(serving.place.pairs(5))
    program = api(serving)
    client = judge_all(serving, project, {"choice": "first"}, "Ann Onymous")
    client.send_json("POST", "/api/task/undo", {"project": project, "key": "undo-api-1"})
    seen, after = [], 0
    while page := program.get("/judgments", params={"after": after, "project": project, "limit": 2}).json():
        after = page["next"]
        seen += page["judgments"]
        if not page["judgments"]:
            break
    assert [e["kind"] for e in seen] == ["judgment"] * 5 + ["undo"]
    assert seen[5]["supersedes"] == seen[4]["seq"]
    assert [e["seq"] for e in seen] == sorted(e["seq"] for e in seen)
    assert {e["key"] for e in seen} == {f"item-{i}" for i in range(5)}
    assert all(sorted(e["permutation"]) == [0, 1] and e["active_ms"] in (0, 1500) for e in seen)
    assert "Onymous" not in json.dumps(seen)
    assert program.get("/judgments", params={"after": after, "project": project}).json() == {
        "judgments": [],
        "next": after,
    }


def test_the_stream_tells_each_judgment_once_and_resumes(serving: Any) -> None:
    project = serving.place.project(serving.place.pairs(3))
    program = api(serving)
    worker = threading.Timer(0.5, judge_all, (serving, project, {"choice": "second"}))
    worker.start()
    lines: list[str] = []
    with program.stream("GET", "/judgments/stream", params={"project": project}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            lines.append(line)
            if sum(x.startswith("data: ") for x in lines) == 3:
                break
    worker.join()
    data = [json.loads(x[6:]) for x in lines if x.startswith("data: ")]
    ids = [int(x[4:]) for x in lines if x.startswith("id: ")]
    assert [e["seq"] for e in data] == ids
    assert all(e["payload"] == {"choice": "second"} for e in data)
    headers = {"last-event-id": str(ids[1])}
    with program.stream("GET", "/judgments/stream", params={"project": project}, headers=headers) as answer:
        resumed = next(line for line in answer.iter_lines() if line.startswith("id: "))
    assert resumed == f"id: {ids[2]}"


def test_items_of_an_older_policy_expire_or_are_withdrawn(serving: Any) -> None:
    project = serving.place.project([])
    program = api(serving)
    items = [{"key": f"s{step}", "policy_step": step, **PAIR} for step in (1, 2, 3)]
    items.append({"key": "brief", "expires_in": 0.001, **PAIR})
    program.post("/items", json={"project": str(project), "items": items})
    assert program.post("/items/withdraw", json={"project": str(project), "before_step": 3}).json() == {"withdrawn": 2}
    assert program.post("/items/withdraw", json={"project": str(project), "before_step": 3}).json() == {"withdrawn": 0}
    judge_all(serving, project, {"choice": "first"})
    found = program.get("/judgments", params={"project": project}).json()["judgments"]
    assert [(e["key"], e["policy_step"]) for e in found] == [("s3", 3)]


def test_tokens_have_scopes_and_projects_and_can_be_revoked(serving: Any) -> None:
    place = serving.place
    mine, other = place.project(place.pairs(1)), place.project(place.pairs(1))
    body = {"project": str(other), "items": [{"key": "x", **PAIR}]}
    writer, reader = api(serving, ("items:write",)), api(serving, ("judgments:read",))
    assert writer.get("/judgments").status_code == reader.post("/items", json=body).status_code == 403
    assert reader.post("/items/withdraw", json={"project": str(other)}).status_code == 403
    bound = api(serving, project=mine)
    assert bound.post("/items", json=body).status_code == 404
    assert bound.get("/judgments", params={"project": other}).status_code == 404
    judge_all(serving, other, {"choice": "first"})
    assert bound.get("/judgments").json()["judgments"] == []
    for headers in ({}, {"authorization": "Bearer nonsense"}, {"authorization": "Basic eDp5"}):
        answer = httpx.get(f"{serving.url}/api/v1/judgments", headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    session = serving.client(place.admin())
    assert session.get("/api/v1/judgments").status_code == 401, "a browser's session is no token"
    with place.db.write() as c:
        token = new_token(c, "lost laptop", ["items:write"])
        assert bearer(c, token) is not None
        assert revoke_token(c, "lost laptop") == 1
        assert bearer(c, token) is None


@pytest.mark.parametrize(
    "change",
    [
        {"responses": ["one"]},
        {"responses": ["same", "same"]},
        {"prompt": []},
        {"prompt": [{"role": "robot", "content": "x"}]},
        {"responses": ["a\u0000", "b"]},
        {"check_answer": {"choice": "third"}},
        {"key": ""},
        {"model": "x"},
        {"expires_in": -1},
    ],
    ids=str,
)
def test_bad_items_are_refused_whole(serving: Any, change: dict[str, Any]) -> None:
    project = serving.place.project([])
    items = [{"key": "good", **PAIR}, {"key": "bad", **PAIR, **change}]
    answer = api(serving).post("/items", json={"project": str(project), "items": items})
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]
    client = serving.client(serving.place.person(project))
    assert client.next(project)["progress"]["total"] == 0


def test_filters_are_values_never_code(serving: Any) -> None:
    program = api(serving)
    for project in ("1 OR 1=1", "' OR ''='", "1; DROP TABLE slot", "%", "_"):
        assert program.get("/judgments", params={"project": project}).status_code == 404
    for after in ("1 OR 1=1", "-1", "1e400"):
        assert program.get("/judgments", params={"after": after}).status_code == 422
    assert serving.client().get("/healthz").status_code == 200


def test_the_openapi_document_says_what_there_is(serving: Any) -> None:
    document = httpx.get(f"{serving.url}/api/v1/openapi.json").json()
    assert {f"{m.upper()} {p}" for p, methods in document["paths"].items() for m in methods} == {
        "POST /projects",
        "POST /items",
        "POST /items/withdraw",
        "GET /judgments",
        "GET /judgments/stream",
    }
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    assert all(
        method["security"] == [{"HTTPBearer": []}]
        for methods in document["paths"].values()
        for method in methods.values()
    )
    item = document["components"]["schemas"]["Item"]
    assert item["required"] == ["key", "prompt"]
    assert item["additionalProperties"] is False


def test_a_program_makes_a_project_once(serving: Any) -> None:
    name = f"made by a program {time.monotonic_ns()}"
    body = {"name": name, "task": "ranking", "overlap": 2, "instructions": "Be fair."}
    program = api(serving)
    first, again = program.post("/projects", json=body), program.post("/projects", json=body)
    assert first.status_code == 200, first.text
    assert first.json() == again.json()
    number = first.json()["id"]
    client = serving.client(serving.place.person(number))
    assert client.next(number)["reason"] == "wait", "more may come: it is never done by itself"
    assert "Be fair." in client.get(f"/api/instructions?project={number}").json()["html"]
    other = program.post("/projects", json=body | {"task": "preference"})
    assert (other.status_code, "there already with task ranking, overlap 2" in other.json()["error"]) == (409, True)


def test_who_may_make_projects(serving: Any) -> None:
    name = f"not for all {time.monotonic_ns()}"
    body = {"name": name, "task": "preference"}
    assert api(serving, scopes=("judgments:read",)).post("/projects", json=body).status_code == 403
    bound = serving.place.project([])
    assert api(serving, project=bound).post("/projects", json=body).status_code == 403
    there = api(serving).post("/projects", json=body)
    assert api(serving, project=bound).post("/projects", json=body).status_code == 403, "of another project"
    assert api(serving, project=there.json()["id"]).post("/projects", json=body).json() == there.json()
