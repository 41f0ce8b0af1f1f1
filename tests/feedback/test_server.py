"""The app over real HTTP: judging blind, undo, drafts, media, instructions; running a project from its pages."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from sqlalchemy import select

from tutelage.feedback.items import NewItem, NewResponse
from tutelage.feedback.people import new_invite, owner
from tutelage.feedback.schema import annotator, audit, flag, judgment_event, member
from tutelage.records import Message, Prompt, user

FIRST = {"choice": "first"}


def key() -> str:
    """A fresh idempotency key."""
    return f"key-{time.monotonic_ns()}"


@pytest.fixture
def work(serving: Any) -> tuple[Any, int, Any]:
    """(database, project of six pairs, a labeller's client)."""
    place = serving.place
    project = place.project(place.pairs(6), overlap=1)
    return place, project, serving.client(place.person(project, "Ann"))


def test_a_person_judges_to_the_end(work: tuple[Any, int, Any]) -> None:
    _place, project, client = work
    task = client.next(project)
    for n in range(6):
        assert task["progress"]["done"] == task["progress"]["mine"] == n
        assert task["progress"]["total"] == 6
        assert len(task["item"]["responses"]) == 2
        answer = client.judge(task["assignment"], key(), FIRST, active_ms=1000 * (n + 1), instructions_version=0).json()
        assert (answer["accepted"], answer["late"]) == (True, False)
        task = answer["next"]
    assert (task["assignment"], task["reason"]) == (None, "done")
    assert task["progress"] == {"done": 6, "total": 6, "mine": 6, "median_ms": 4000}


def test_the_page_never_learns_which_response_is_which(serving: Any) -> None:
    place = serving.place
    project = place.project(place.pairs(12))
    client = serving.client(place.person(project))
    said = client.get(f"/p/{project}/judge").text
    firsts = set()
    for _ in range(12):
        answer = client.get(f"/api/task/next?project={project}&ahead=0")
        said += answer.text
        task = answer.json()
        assert set(task["item"]["responses"][0]) == {"text", "html", "media"}
        firsts.add(task["item"]["responses"][0]["text"].split()[0])
        said += client.judge(task["assignment"], key(), FIRST).text
    assert firsts == {"good", "bad"}, "both sides come first at times"
    assert not re.search(r"secret-model|permutation|policy|origin|score|response_id|q\d+\"", said)


def test_shown_order_and_choice_are_stored_so_that_the_chosen_one_is_known(serving: Any) -> None:
    place = serving.place
    project = place.project(place.pairs(8))
    client = serving.client(place.person(project))
    task = client.next(project)
    while task["assignment"]:  # always the good one, wherever it stands
        good = [r["text"].startswith("good") for r in task["item"]["responses"]].index(True)
        task = client.judge(task["assignment"], key(), {"choice": ("first", "second")[good]}).json()["next"]
    for event in place.rows(select(judgment_event).where(judgment_event.c.project_id == project)):
        shown = ("first", "second").index(event["payload"]["choice"])
        assert event["permutation"][shown] == 0, "the canonical first is the good one"


def test_the_next_item_can_be_fetched_ahead(work: tuple[Any, int, Any]) -> None:
    _, project, client = work
    now, ahead = client.next(project), client.get(f"/api/task/next?project={project}&ahead=1").json()
    assert now["assignment"] != ahead["assignment"]
    answer = client.judge(now["assignment"], key(), FIRST, ahead=1).json()
    assert answer["next"]["assignment"] not in (now["assignment"], ahead["assignment"])
    assert client.next(project)["assignment"] == ahead["assignment"]
    assert client.get(f"/api/task/next?project={project}&ahead=9").status_code == 422


def test_submitting_again_undo_and_conflicts(work: tuple[Any, int, Any]) -> None:
    place, project, client = work
    task = client.next(project)
    again = key()
    bodies = [client.judge(task["assignment"], again, FIRST).json() for _ in range(3)]
    assert {json.dumps([b["accepted"], b["late"], b["next"]["assignment"]]) for b in bodies} == {
        json.dumps([True, False, bodies[0]["next"]["assignment"]])
    }
    assert client.judge(bodies[0]["next"]["assignment"], again, FIRST).status_code == 409
    reopened = client.send_json("POST", "/api/task/undo", {"project": project, "key": key()}).json()
    assert (reopened["assignment"], reopened["draft"]) == (task["assignment"], FIRST)
    assert reopened["item"]["responses"] == task["item"]["responses"], "the same order as before"
    assert client.send_json("POST", "/api/task/undo", {"project": project, "key": key()}).status_code == 409
    kinds = [r["kind"] for r in place.rows(select(judgment_event).where(judgment_event.c.project_id == project))]
    assert kinds == ["judgment", "undo"]


def test_a_bad_payload_says_what_is_allowed_and_stores_nothing(work: tuple[Any, int, Any]) -> None:
    place, project, client = work
    task = client.next(project)["assignment"]
    answer = client.judge(task, key(), {"choice": "left"})
    assert answer.status_code == 422
    assert "payload.choice" in answer.json()["error"]
    for body in ({"key": "short", "payload": FIRST}, {"key": key(), "payload": FIRST, "active_ms": -1}, {"key": key()}):
        assert client.send_json("POST", f"/api/task/{task}/submit", body).status_code == 422
    assert place.rows(select(judgment_event).where(judgment_event.c.project_id == project)) == []


def test_drafts_heartbeats_skips_and_flags(work: tuple[Any, int, Any]) -> None:
    place, project, client = work
    task = client.next(project)["assignment"]
    assert client.send_json("PUT", f"/api/task/{task}/draft", {"payload": {"choice": None}}).status_code == 204
    assert client.next(project)["draft"] == {"choice": None}
    assert client.send_json("POST", f"/api/task/{task}/heartbeat", {}).status_code == 204
    flagged = {"skip": "offensive", "flag": {"tags": ["unsafe"], "note": "look at this"}}
    following = client.judge(task, key(), flagged).json()["next"]
    assert following["assignment"] not in (None, task)
    assert following["draft"] is None
    assert [r["note"] for r in place.rows(select(flag).where(flag.c.project_id == project))] == ["look at this"]


def test_a_dialogue_is_shown_turn_by_turn_and_options_reach_the_page(serving: Any) -> None:
    place = serving.place
    turns = (
        Message("system", "Be *brief*."),
        Message("user", "Hi"),
        Message("assistant", "Hello"),
        Message("user", "<b>2+2?</b>"),
    )
    item = NewItem(Prompt(turns), (NewResponse("4"),), options={"question": "Is it right?"})
    project = place.project([item], task="yesno", options={"flags": ["wrong"]})
    task = serving.client(place.person(project)).next(project)["item"]
    assert [turn["role"] for turn in task["prompt"]] == ["system", "user", "assistant", "user"]
    assert "<em>brief</em>" in task["prompt"][0]["html"]
    assert "<b>" not in task["prompt"][3]["html"]
    assert task["prompt"][3]["content"] == "<b>2+2?</b>"
    assert (task["options"]["question"], task["options"]["flags"]) == ("Is it right?", ["wrong"])


def test_media_come_under_addresses_that_say_nothing(serving: Any, tmp_path: Any) -> None:
    place = serving.place
    for name in ("policy-a.gif", "policy-b.gif"):
        (tmp_path / name).write_bytes(b"GIF89a" + name.encode())
    (tmp_path / "secret.txt").write_text("no")
    answers = [NewResponse("", media=({"path": f"policy-{x}.gif", "type": "image/gif"},)) for x in "ab"]
    outside = NewItem(
        user("y"), (NewResponse("1", media=({"path": "../x.gif", "type": "image/gif"},)), NewResponse("2")), key="out"
    )
    project = place.project([NewItem(user("x"), tuple(answers)), outside], media_root=str(tmp_path))
    client = serving.client(place.person(project))
    task = client.next(project)
    assert "policy-" not in json.dumps(task)
    found = {client.get(r["media"][0]["url"]).content for r in task["item"]["responses"]}
    assert found == {b"GIF89apolicy-a.gif", b"GIF89apolicy-b.gif"}
    url = task["item"]["responses"][0]["media"][0]["url"]
    assert client.get(url).headers["content-type"] == "image/gif"
    stranger = serving.client(place.person(project, "Ben"))
    assert stranger.get(url).status_code == 404
    for wrong in (
        url[:-1] + "9",
        url[:-1] + "-1",
        url.replace("/0/", "/7/").replace("/1/", "/7/"),
        url[:-1] + "..%2f..%2fsecret.txt",
    ):
        assert client.get(wrong).status_code in (404, 422), wrong
    task = client.judge(task["assignment"], key(), FIRST).json()["next"]
    escaping = [m["url"] for r in task["item"]["responses"] for m in r["media"]]
    assert [client.get(one).status_code for one in escaping] == [404]


def test_instructions_have_versions_and_judgments_say_which(serving: Any) -> None:
    place = serving.place
    project = place.project(place.pairs(3))
    admin, client = serving.client(place.admin()), serving.client(place.person(project))
    assert client.get(f"/api/instructions?project={project}").json() == {"version": 0, "html": "", "versions": []}
    for text in ("# Be kind", "# Be kind", "# Be *honest*"):
        assert admin.send_form(f"/admin/p/{project}/instructions", text=text).status_code == 200
    found = client.get(f"/api/instructions?project={project}").json()
    assert (found["version"], [v["version"] for v in found["versions"]]) == (2, [1, 2])
    assert "<em>honest</em>" in found["html"]
    assert "kind" in client.get(f"/api/instructions?project={project}&version=1").json()["html"]
    assert client.get(f"/api/instructions?project={project}&version=7").status_code == 404
    task = client.next(project)
    assert task["instructions_version"] == 2
    client.judge(task["assignment"], key(), FIRST, instructions_version=2)
    rows = place.rows(select(judgment_event).where(judgment_event.c.project_id == project))
    assert rows[0]["instructions_version"] == 2


def test_people_come_by_invitation_with_a_role_and_a_link_of_their_own(serving: Any) -> None:
    place = serving.place
    project = place.project(place.pairs(2))
    admin = serving.client(place.admin())
    page = admin.send_form(f"/admin/p/{project}/invite", role="labeller", uses="2", days="3", held_out="1").text
    link = re.search(r"http://127\.0\.0\.1:\d+(/join/[\w-]+)", page)[1]  # type: ignore[index]
    guest = serving.client()
    for _ in range(3):
        assert guest.get(link).status_code == 200, "looking uses nothing up: chats fetch links to preview them"
    assert guest.post(link, data={"name": "\u202e  "}).status_code == 422
    joined = guest.post(link, data={"name": "  Ann   Example "})
    own = re.search(r"http://127\.0\.0\.1:\d+(/enter/[\w-]+)", joined.text)[1]  # type: ignore[index]
    assert guest.get("/").status_code == 200
    again = serving.client()
    for _ in range(2):
        assert again.get(own).status_code == 303
        assert "Ann Example" in again.get("/").text
    assert serving.client().post(link, data={"name": "Ben"}).status_code == 200
    assert serving.client().post(link, data={"name": "Cem"}).status_code == 404, "two uses"
    people = (
        select(annotator).join(member, member.c.annotator_id == annotator.c.id).where(member.c.project_id == project)
    )
    assert [(p["name"], p["role"], p["held_out"]) for p in place.rows(people)] == [
        ("Ann Example", "labeller", 1),
        ("Ben", "labeller", 1),
    ]


def test_a_revoked_invitation_does_not_work(serving: Any) -> None:
    place = serving.place
    project = place.project(place.pairs(1))
    admin = serving.client(place.admin())
    with place.db.write() as c:
        token = new_invite(c, owner(c), "labeller", project)
    form = re.search(rf"/admin/p/{project}/invite/\d+/revoke", admin.get(f"/admin/p/{project}").text)[0]  # type: ignore[index]
    assert admin.send_form(form).status_code == 303
    assert serving.client().post(f"/join/{token}", data={"name": "Ann"}).status_code == 404
    for wrong in ({"role": "owner"}, {"role": "labeller", "uses": "0"}, {"role": "labeller", "days": "91"}):
        assert admin.send_form(f"/admin/p/{project}/invite", **wrong).status_code == 422, wrong


def test_pause_close_and_time_per_person(work: tuple[Any, int, Any], serving: Any) -> None:
    place, project, client = work
    admin = serving.client(place.admin())
    task = client.next(project)
    assert admin.send_form(f"/admin/p/{project}/state", state="paused").status_code == 303
    assert client.next(project)["reason"] == "paused"
    assert client.judge(task["assignment"], key(), FIRST, active_ms=90_000).json()["next"]["reason"] == "paused"
    assert admin.send_form(f"/admin/p/{project}/state", state="gone").status_code == 422
    admin.send_form(f"/admin/p/{project}/state", state="closed")
    assert client.next(project)["reason"] == "done"
    assert client.send_json("POST", "/api/task/undo", {"project": project, "key": key()}).status_code == 409
    page = re.sub(r"\s+", " ", admin.get(f"/admin/p/{project}").text)
    assert re.search(r"Ann</bdi>.*?<td[^>]*>1</td> <td[^>]*>2 min</td> <td[^>]*>2 min</td>", page)
    logged = [row["detail"]["state"] for row in place.rows(select(audit).where(audit.c.action == "project state"))]
    assert logged[-2:] == ["paused", "closed"]


def test_health(serving: Any) -> None:
    assert serving.client().get("/healthz").json() == {"status": "ok"}
