"""`tutelage collect --policy`: the worker process beside the server, which alone loads the model (this process never does)."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import Field

from tutelage.config import config
from tutelage.console import warn
from tutelage.feedback.client import TOKEN_VARIABLE
from tutelage.feedback.database import Database
from tutelage.feedback.payloads import Task
from tutelage.feedback.projects import find_project
from tutelage.feedback.server.settings import Settings, is_loopback
from tutelage.feedback.tokens import SCOPES, new_token, revoke_token

TOKEN_NAME = "live worker"
Count = Annotated[int, Field(gt=0)]


@config
class Live:
    """How a policy answers while people judge."""

    answers: Annotated[int, Field(ge=2, le=26)] = 2
    """To each prompt: 2 are compared, more are ranked."""
    buffer: Annotated[int, Field(gt=0, le=1000)] = 20
    """Items that wait, so that people need not."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Randomness of the answers."""
    max_new_tokens: Count = 256
    """Longest answer, in tokens."""
    seed: int = 0
    """Decides the prompts' order and the answers."""


def live_task(cfg: Any) -> tuple[Task, str]:
    """What people do with a policy's answers, and why. Raises ValueError for a task that fits them not."""
    task: Task = "preference" if cfg.live.answers == 2 else "ranking"
    if cfg.task not in (None, task):
        raise ValueError(
            f"--task {cfg.task} with --policy: {cfg.live.answers} answers a prompt are for {task}; set --live.answers"
        )
    return task, f"{cfg.live.answers} fresh answers a prompt"


def check_live(cfg: Any) -> None:
    """Raises ValueError where a policy has nothing to answer, or its settings nobody who uses them."""
    if cfg.policy is not None and not cfg.data:
        raise ValueError("--policy answers prompts: give --data FILE with them")
    if cfg.policy is None and cfg.live != Live():
        raise ValueError("--live.* says how a policy answers: give --policy DIR too")


class Worker:
    """The process that answers; it ends with the block. Its death is said and stops nothing: people judge what is there."""

    def __init__(self, db: Database, cfg: Any, project: str) -> None:
        self.db, self.cfg, self.project = db, cfg, project
        self.process: subprocess.Popen[bytes] | None = None
        self._ending = False

    def __enter__(self) -> Self:
        return self

    def start(self, settings: Settings) -> None:
        """Start it, with a token of its own for this project, once the server answers."""
        with self.db.write() as c:
            there = find_project(c, self.project)
            assert there is not None
            token = new_token(c, TOKEN_NAME, SCOPES, there["id"])
        near = is_loopback(settings.host) or settings.host in ("0.0.0.0", "::")
        url = f"http://127.0.0.1:{settings.port}" if near else settings.url
        command = [sys.executable, "-m", "tutelage.stages.live", *self.flags(url, there["id"], there["overlap"])]
        self.process = subprocess.Popen(command, env={**os.environ, TOKEN_VARIABLE: token})
        threading.Thread(target=self._watch, args=(self.process,), daemon=True).start()

    def flags(self, url: str, project: int, overlap: int) -> Sequence[str]:
        """The settings of the worker; the token is not among them, for others may list a machine's processes."""
        live = self.cfg.live
        named = {"model": self.cfg.policy, "url": url, "project": project, "overlap": overlap, "seed": live.seed}
        named |= {name: getattr(live, name) for name in ("answers", "buffer", "temperature", "max_new_tokens")}
        flags = [word for name, value in named.items() for word in ("--" + name.replace("_", "-"), str(value))]
        return [*flags, "--bad-rows", self.cfg.bad_rows, "--data", *self.cfg.data]

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        if not self._ending:
            warn(
                f"the worker that answers with {self.cfg.policy} has ended ({code}); people judge what is there already"
            )

    def __exit__(self, *_: Any) -> None:
        self._ending = True
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        with self.db.write() as c:
            revoke_token(c, TOKEN_NAME)
