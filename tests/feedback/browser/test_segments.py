"""Images, GIFs and short videos beside the data: control segments are compared through the same queue as texts."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
RECORD = """
const [hue, done] = [arguments[0], arguments[arguments.length - 1]];
const canvas = document.body.appendChild(Object.assign(document.createElement("canvas"), {width: 96, height: 64}));
const pen = canvas.getContext("2d");
let frame = 0;
const draw = setInterval(() => { pen.fillStyle = `hsl(${hue} 80% ${20 + (frame++ * 3) % 60}%)`; pen.fillRect(0, 0, 96, 64); }, 30);
const recorder = new MediaRecorder(canvas.captureStream(25), {mimeType: "video/webm;codecs=vp8"}), parts = [];
recorder.ondataavailable = (event) => parts.push(event.data);
recorder.onstop = () => {
  clearInterval(draw);
  const reader = new FileReader();
  reader.onload = () => done(reader.result);
  reader.readAsDataURL(new Blob(parts));
};
recorder.start();
setTimeout(() => recorder.stop(), 900);
"""
"""Chromium's own recorder makes a real WebM of a changing colour."""


def record(person: Any, file: Path, hue: int) -> None:
    """A video of a second."""
    person.driver.get("about:blank")
    data = person.driver.execute_async_script(RECORD, hue)
    file.write_bytes(base64.b64decode(data.partition(",")[2]))
    assert file.stat().st_size > 500


def picture(file: Path, colors: list[str]) -> None:
    """A still image, or a GIF of several frames."""
    from PIL import Image

    frames = [Image.new("RGB", (80, 60), color) for color in colors]
    frames[0].save(file, save_all=len(frames) > 1, append_images=frames[1:], **({"duration": 80} if frames[1:] else {}))


def project_of(server: Any, folder: Path, rows: list[dict[str, Any]], task: Any = None) -> int:
    """A project of a data file with media beside it, read as `tutelage collect --data` reads it."""
    from tutelage.stages.collect_rows import guess_task, read_groups, to_items

    data = folder / "segments.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    groups = read_groups([str(data)], "error", folder / "kept")
    task = task or guess_task(groups)[0]
    return server.project(task, to_items(groups, task)[0], media_root=str(folder / "kept"))


def loaded(person: Any, kind: str) -> list[dict[str, Any]]:
    """What the page shows of a kind: its address, its width as decoded, and where a video is."""
    script = """return [...document.querySelectorAll("#stage " + arguments[0])].map((e) => ({src: e.getAttribute("src"),
        width: e.naturalWidth ?? e.videoWidth, at: e.currentTime, ready: e.readyState, paused: e.paused,
        answer: e.closest(".answer")?.dataset.index}))"""
    return person.driver.execute_script(script, kind)


def test_two_segments_on_video_are_compared(person: Any, server: Any, until: Any, tmp_path: Path) -> None:
    record(person, tmp_path / "policy-7-falls.webm", 0)
    record(person, tmp_path / "policy-8-stays.webm", 120)
    responses = [
        {"media": ["policy-7-falls.webm"], "policy": "p-seven"},
        {"media": ["policy-8-stays.webm"], "policy": "p-eight"},
    ]
    rows = [{"prompt": "Which one keeps the pole up?", "responses": responses}]
    project = project_of(server, tmp_path, rows)
    person.enter("Segments").open(f"/p/{project}/judge")
    until(lambda: all(video["width"] == 96 and video["ready"] >= 2 for video in loaded(person, "video")), "both decode")
    videos = loaded(person, "video")
    assert [video["answer"] for video in videos] == ["0", "1"]
    page = person.driver.page_source
    assert not any(word in page for word in ("policy-", "p-seven", "p-eight", "falls", "stays", ".webm")), (
        "blind, file names too"
    )
    if not videos[0]["paused"]:  # they play by themselves where motion is welcome
        person.press("p")
    person.press("p")
    until(lambda: all(not v["paused"] and v["at"] > 0.1 for v in loaded(person, "video")), "P plays both together")
    person.press("p")
    until(lambda: all(v["paused"] for v in loaded(person, "video")), "P stops both")
    person.go("2", "Enter")
    until(lambda: server.events(project), "it arrives")
    event = server.events(project)[0]
    from sqlalchemy import select

    from tutelage.feedback.schema import item, response

    with server.db.read() as c:
        ids = c.execute(select(item.c.responses).where(item.c.id == event["item_id"])).scalar_one()
        kept = [c.execute(select(response.c.origin).where(response.c.id == one)).scalar_one()["policy"] for one in ids]
    assert kept == ["p-seven", "p-eight"]
    chosen = kept[event["permutation"][1]]
    shown_second = (tmp_path / ("policy-7-falls.webm" if chosen == "p-seven" else "policy-8-stays.webm")).read_bytes()
    fetched = person.driver.execute_async_script(
        "const done = arguments[1]; fetch(arguments[0]).then((r) => r.arrayBuffer()).then((b) => done(Array.from(new Uint8Array(b))))",
        videos[1]["src"],
    )
    assert bytes(fetched) == shown_second, "the segment that stood second is the one that was chosen"


def test_a_gif_is_rated_and_pictures_are_ranked(person: Any, server: Any, until: Any, tmp_path: Path) -> None:
    picture(tmp_path / "walk.gif", ["#a00", "#0a0", "#00a"])
    for name, color in (("x", "#111"), ("y", "#777"), ("z", "#eee")):
        picture(tmp_path / f"{name}.png", [color])
    rated = [{"prompt": "How well does it walk?", "media": "walk.gif", "responses": ["left, left, right"]}]
    project = project_of(server, tmp_path, rated, "rating")
    person.enter("Gif").open(f"/p/{project}/judge")
    until(lambda: [image["width"] for image in loaded(person, "img")] == [80], "the GIF decodes")
    assert loaded(person, "img")[0]["answer"] is None, "it belongs to the item, not to an answer"
    person.go("5", "Enter")
    until(lambda: [e["payload"]["value"] for e in server.events(project)] == [5], "it arrives")
    ranked = [{"prompt": "Darkest first", "responses": [{"text": n, "media": f"{n}.png"} for n in "xyz"]}]
    project = project_of(server, tmp_path, ranked)
    person.enter("Pictures").open(f"/p/{project}/judge")
    until(lambda: [image["width"] for image in loaded(person, "img")] == [80] * 3, "three pictures decode")
    names = [e.text.strip()[-1] for e in person.driver.find_elements("css selector", ".answer .rendered")]
    assert sorted(names) == ["x", "y", "z"]
    person.go(
        *("abc"[names.index(n)] + "" for n in "x"),
        "1",
        "abc"[names.index("y")],
        "2",
        "abc"[names.index("z")],
        "3",
        "Enter",
    )
    until(lambda: server.events(project), "it arrives")
    event = server.events(project)[0]
    by_name = {
        "xyz"[canonical]: event["payload"]["ranks"][place] for place, canonical in enumerate(event["permutation"])
    }
    assert by_name == {"x": 1, "y": 2, "z": 3}
