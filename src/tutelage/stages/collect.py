"""`tutelage collect`: people judge answers in the browser; one command, an embedded database, nothing leaves the machine."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from tutelage.config import config, read_yaml
from tutelage.console import say
from tutelage.feedback.backups import Backups
from tutelage.feedback.database import Database, open_database, read_url
from tutelage.feedback.items import NewItem
from tutelage.feedback.payloads import Task
from tutelage.feedback.people import new_entry, owner
from tutelage.feedback.projects import Project, add_items, create_project, find_project, log, set_instructions
from tutelage.feedback.server.serve import bind, only_server, serve
from tutelage.feedback.server.settings import Settings
from tutelage.feedback.tokens import SCOPES, new_token
from tutelage.stages.collect_live import Live, Worker, check_live, live_task
from tutelage.stages.collect_rows import check_items, guess_task, read_groups, refuse_bomb, to_items
from tutelage.stages.folders import fresh_folder

LINK_SECONDS = 24 * 3600.0
"""The admin link works once, and this long."""
Count = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=0.5)]


@config
class Collect:
    """Serve an annotation project. Give `--data` to start one or to add to it; `--db` alone goes on with what is there."""

    data: tuple[str, ...] = ()
    """Prompts, prompts with `responses`, or any shape of docs/data.md."""
    db: str | None = None
    """sqlite:///FILE or postgresql://user@host/name; default: a fresh runs/collect-TIME/feedback.db."""
    project: str | None = None
    """Its name (default: the data's file name). A name that is there gets the data added."""
    task: Literal["preference", "ranking", "rating", "yesno", "critique", "demonstration"] | None = None
    """What people do; default: guessed from the number of answers a prompt has, and said."""
    overlap: Count | None = None
    """Judgments of each item, by different people (default 1)."""
    expert_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the items that a researcher or admin judges besides; agreement with experts comes from it."""
    policy: str | None = None
    """A policy whose fresh answers to the prompts of `--data` are judged; when its files change, the old answers go."""
    live: Live = Field(default_factory=Live)
    """For `--policy`: how it answers, and how many answers wait."""
    check_items: str | None = None
    """Items with a known `answer`, mixed in unseen to measure care."""
    check_share: Share = 0.05
    """Share of what each person is handed that is a check item, while there are some."""
    qualify: Annotated[int, Field(ge=0, le=1000)] = 0
    """Known answers that a labeller gives first, told the right one after each, until passed (0: no such test)."""
    repeat_share: Share = 0.0
    """Share that the same person judged before, in the reverse order: self-consistency."""
    instructions: str | None = None
    """A Markdown file; a changed one becomes a new version."""
    options: str | None = None
    """A YAML file with what the screen offers: scale, anchors, flags, ties, strength ... (docs/collect.md)."""
    media: str | None = None
    """Folder for copies of images and videos; default: `media` beside the embedded database."""
    host: str = "127.0.0.1"
    """Address to listen on; beyond this machine it needs `--public-url`."""
    port: Annotated[int, Field(gt=0, lt=65536)] | None = None
    """Default: 8765, or the next free one."""
    public_url: str | None = None
    """What people type, https://NAME; a proxy ends TLS there (docs/deploy.md)."""
    browser: bool = True
    """Open the admin page."""
    api_token: bool = False
    """Print a fresh token for /api/v1."""
    backup_minutes: Annotated[float, Field(ge=0)] = 15.0
    """Minutes between copies of the embedded database (in `backups` beside it, 7 kept); 0: only at the end."""
    bad_rows: Literal["error", "skip"] = "error"
    """What to do with rows that cannot be read."""


@dataclass(frozen=True)
class Content:
    """What the flags bring into the database, read and checked before anything is written there."""

    project: Project
    items: Sequence[NewItem]
    checks: Sequence[NewItem]
    instructions: str | None
    notes: Sequence[str]


def main(cfg: Collect) -> None:
    """Run the command until it is stopped."""
    Settings(cfg.port or 0, cfg.host, cfg.public_url)  # refuse a bad address before anything else
    if not cfg.data and cfg.db is None:
        raise ValueError("give --data FILE to start a project, or --db URL to go on with one")
    check_live(cfg)
    url = cfg.db or f"sqlite:///{fresh_folder('collect') / 'feedback.db'}"
    media = media_folder(cfg, url)
    file = read_url(url).database if read_url(url).drivername == "sqlite" else None
    db = open_database(url) if file is None or Path(file).exists() else None
    content = read_content(cfg, db, media)
    db = db or open_database(url)
    try:
        with only_server(db), bind(cfg.host, cfg.port) as listener:
            if content is not None:
                bring_in(db, content)
            settings = Settings(listener.getsockname()[1], cfg.host, cfg.public_url, reader(cfg, media))
            with Worker(db, cfg, "" if content is None else content.project.name) as worker:

                def ready() -> None:
                    announce(db, settings, cfg)
                    if cfg.policy is not None:
                        worker.start(settings)

                with_backups(db, cfg, lambda: serve(db, settings, listener, ready))
    finally:
        db.close()


def media_folder(cfg: Collect, url: str) -> Path | None:
    """Where media are kept."""
    parsed = read_url(url)
    if cfg.media is not None:
        return Path(cfg.media).resolve()
    return Path(parsed.database or "").resolve().parent / "media" if parsed.drivername == "sqlite" else None


def read_content(cfg: Collect, db: Database | None, media: Path | None) -> Content | None:
    """The data and files that the flags name. Raises ValueError for bad ones; None where nothing is to be brought in."""
    if not cfg.data:
        if cfg.instructions or cfg.check_items or cfg.options:
            raise ValueError("--instructions, --check-items and --options belong to a project: give --data too")
        return None
    name = cfg.project or Path(cfg.data[0]).name.split(".")[0]
    there = None
    if db is not None:
        with db.read() as c:
            there = find_project(c, name)
    if there is not None and (
        cfg.options or cfg.task not in (None, there["task"]) or cfg.overlap not in (None, there["overlap"])
    ):
        has = f"task {there['task']}, overlap {there['overlap']}"
        raise ValueError(
            f"--project {name!r} is there already ({has}), which stays as it was; give another --project, or leave these flags out"
        )
    groups = read_groups(cfg.data, cfg.bad_rows, media)
    guessed, why = guess_task(groups) if cfg.policy is None else live_task(cfg)
    task: Task = cfg.task or (there["task"] if there is not None else guessed)
    items, notes = to_items(groups, task) if cfg.policy is None else ([], [])
    if cfg.task is None and there is None:
        notes = [f"task: {task} ({why}; another with --task)", *notes]
    checks = []
    if cfg.check_items:
        checks = check_items(read_groups([cfg.check_items], cfg.bad_rows, media), task, cfg.check_items)
    if cfg.qualify > len(checks) and there is None:
        raise ValueError(
            f"--qualify {cfg.qualify}: {len(checks)} check items; give at least as many with --check-items"
        )
    new = Project(
        name,
        task,
        cfg.overlap or (there["overlap"] if there is not None else 1),
        cfg.expert_share,
        cfg.check_share,
        repeat_share=cfg.repeat_share,
        options=options_of(cfg),
        media_root=None if media is None else str(media),
    )
    text = Path(cfg.instructions).read_text(encoding="utf-8") if cfg.instructions else None
    return Content(new, items, checks, text, notes)


def options_of(cfg: Collect) -> dict[str, Any]:
    """What the options file says, and what flags say of it."""
    said = {"live": True} if cfg.policy else {}
    said |= {"qualify": cfg.qualify} if cfg.qualify else {}
    return (read_yaml(cfg.options) if cfg.options else {}) | said


def bring_in(db: Database, content: Content) -> None:
    """Make the project where it is new, and add what it does not have yet."""
    with db.write() as c:
        there = find_project(c, content.project.name)
        made = there["id"] if there is not None else create_project(c, content.project)
        count = len(add_items(c, made, [*content.items, *content.checks]))
        if content.instructions is not None:
            set_instructions(c, made, content.instructions, None)
        log(c, None, "data", {"project": made, "items": count})
    for note in content.notes:
        say(note)
    checks = f" and {len(content.checks)} check items" if content.checks else ""
    say(f"project {content.project.name!r}: {len(content.items)} items{checks}")


def reader(cfg: Collect, media: Path | None):
    """How the server reads a file that was uploaded."""

    def read(path: Path, task: Task) -> list[NewItem]:
        refuse_bomb(path)
        return to_items(read_groups([str(path)], cfg.bad_rows, media), task)[0]

    return read


def with_backups(db: Database, cfg: Collect, work) -> None:
    """Serve, copying the embedded database meanwhile and at the end."""
    if db.file is None:
        work()
        return
    with Backups(db, db.file.parent / "backups", cfg.backup_minutes) as backups:
        work()
    if backups.failure:
        say(f"no backup could be made: {backups.failure}")


def announce(db: Database, settings: Settings, cfg: Collect) -> None:
    """Say where everything is, and open the page. The admin link works once."""
    with db.write() as c:
        link = f"{settings.url}/enter/{new_entry(c, owner(c), True, LINK_SECONDS)}"
        token = new_token(c, "collect", SCOPES) if cfg.api_token else None
    where = f"sqlite:///{db.file}" if db.file is not None else db.url.render_as_string()
    say(f"database: {where}\n  go on later with:  tutelage collect --db {where}")
    say(f"admin (works once, for a day):  {link}")
    if token is not None:
        say(f"API token for {settings.url}/api/v1 (shown only now):  {token}")
    say("Ctrl-C stops; every judgment that was accepted is on the disk")
    if cfg.browser and can_open():
        threading.Thread(target=webbrowser.open, args=(link,), daemon=True).start()


def can_open() -> bool:
    """Whether a browser of this user's desktop can be opened (a text browser in the terminal is none)."""
    return sys.platform != "linux" or any(name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
