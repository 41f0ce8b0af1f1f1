"""The worker of `tutelage collect --policy`, a process of its own: it answers prompts and keeps people's queue filled."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from tutelage.config import config, parse
from tutelage.console import say, warn
from tutelage.feedback.client import TOKEN_VARIABLE, Program
from tutelage.feedback.http import UnreachableError
from tutelage.feedback.live import Buffer, Reply
from tutelage.models.load import resolve_model
from tutelage.models.sampling import Decoding
from tutelage.records import Prompt
from tutelage.stages.common import Common, Count, load_actor
from tutelage.stages.sample import load_prompts

LOOK = 1.0
"""Seconds between two looks at the queue and at the policy's files."""
SETTLED = 2.0
"""Seconds that the policy's files must have been left alone: they are not read while they are written."""
PATIENCE = 60.0
"""Seconds without the server after which the worker ends: whoever started it is gone."""


@config
class Worker(Common):
    """What `tutelage collect --policy` starts."""

    url: str = ""
    """The server."""
    project: int = 0
    """Its id there."""
    overlap: Count = 1
    """Judgments that an item needs."""
    answers: Count = 2
    """To each prompt."""
    buffer: Count = 20
    """Items that wait for people."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Randomness of the answers."""
    max_new_tokens: Count = 256
    """Longest answer, in tokens."""


def main(cfg: Worker) -> None:
    """Keep the queue filled until the server is gone or this process is told to end."""
    queue = Program(cfg.url, os.environ.get(TOKEN_VARIABLE, ""))
    prompts = load_prompts(cfg.data, cfg.bad_rows)
    buffer = Buffer(queue, cfg.project, prompts, lambda *_: [], cfg.model, cfg.buffer, cfg.overlap, cfg.seed)
    version, away = None, time.monotonic()
    while time.monotonic() - away < PATIENCE:
        try:
            now = version_of(cfg.model)
            if now != version and time.time() - now / 1000 > SETTLED:
                buffer.reply, version = load(cfg), now
                gone = buffer.move(max(now, buffer.version + 1))  # copied files may be older than those before
                say(f"policy {cfg.model}, version {now}" + (f": {gone} older items withdrawn" if gone else ""))
            added = buffer.top_up() if version is not None else 0
            away = time.monotonic()
        except UnreachableError:
            added = 0
        if not added:
            time.sleep(LOOK)
    warn(f"{cfg.url} has not answered for {PATIENCE:.0f} s: no more answers")


def version_of(model: str) -> int:
    """When the newest of the policy's weight and settings files was written, in milliseconds since 1970; 0 for a hub's."""
    found = resolve_model(model, ("policy",))
    if not isinstance(found, Path):
        return 0
    files = [path for path in found.iterdir() if path.suffix in (".safetensors", ".bin", ".json")]
    return max(path.stat().st_mtime_ns for path in files) // 1_000_000


def load(cfg: Worker) -> Reply:
    """How the policy answers, with its weights as they are now."""
    actor = load_actor(cfg, None, trained=False)
    decoding = Decoding(cfg.max_new_tokens, cfg.temperature)

    def reply(prompts: Sequence[Prompt], name: str) -> list[list[str]]:
        tokens = [actor.chat.prompt_tokens(prompt) for prompt in prompts]
        return [[a.text for a in group] for group in actor.decoder.sample(tokens, cfg.answers, decoding, name)]

    return reply


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then ends this process
    try:
        main(parse(Worker, sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"tutelage collect --policy: {error}")
