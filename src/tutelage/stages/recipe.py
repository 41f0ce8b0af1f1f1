"""A recipe of several stages -> stages with every setting and reference checked; nothing runs and nothing is written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from tutelage.config import build, to_dict

COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": ("tutelage.stages.quickstart", "Quickstart"),
    "sft": ("tutelage.stages.sft", "Sft"),
    "reward": ("tutelage.stages.reward", "Reward"),
    "prefer": ("tutelage.stages.prefer", "Prefer"),
    "rl": ("tutelage.stages.rl", "RL"),
    "sample": ("tutelage.stages.sample", "Sample"),
    "refine": ("tutelage.stages.refine", "Refine"),
    "simulate": ("tutelage.stages.simulate", "Simulate"),
    "evaluate": ("tutelage.stages.evaluate", "Evaluate"),
    "chat": ("tutelage.stages.chat", "Talk"),
    "collect": ("tutelage.stages.collect", "Collect"),
    "bench": ("tutelage.stages.bench", "Bench"),
}
"""Command -> module and settings, imported when used; each module has a `main` that takes the settings."""
NOT_STAGES = ("quickstart", "chat", "collect", "bench")
"""Commands that leave no folder for a later stage, or are recipes themselves."""

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_REFERENCE = re.compile(r"(?<![\w./-])@(@|[A-Za-z0-9_-]+)")


@dataclass(frozen=True)
class Stage:
    """One entry of `stages:`; `settings` still has its references, `uses` names the stages that they point to."""

    name: str
    command: str
    kind: type
    settings: Mapping[str, Any]
    uses: tuple[str, ...]
    where: str

    def configuration(self, folder: Path) -> Any:
        """The command's settings with references filled in; it resumes what its folder already holds."""
        place = folder / self.name
        given = _map_texts(self.settings, lambda text, _: _REFERENCE.sub(lambda m: _target(m[1], folder), text))
        known = [f.name for f in fields(self.kind)]
        extra = {"out": str(place)} | ({"resume": True} if "resume" in known and in_use(place) else {})
        return build(self.kind, {**given, **extra}, self.where)

    @property
    def record(self) -> dict[str, Any]:
        """What the ledger says of it: the settings in full, wherever the folder lies."""
        given = build(self.kind, {**self.settings, "out": self.name}, self.where)
        return {"command": self.command, "settings": json.loads(json.dumps(to_dict(given)))}


def plan(recipe: Mapping[str, Any], where: str) -> list[Stage]:
    """All stages with their settings checked; nothing runs and nothing is written. Raises ValueError as `run_stages` says."""
    entries = recipe.get("stages")
    if "command" in recipe:
        raise ValueError(f"{where}: has both `command` and `stages`; a recipe is one command or several stages")
    if not isinstance(entries, Mapping) or not entries:
        raise ValueError(f"{where}: stages: expected NAME: {{command: ..., ...}} entries, got {entries!r}")
    shared = {key: value for key, value in recipe.items() if key != "stages"}
    _refuse_places(shared, where)
    stages: list[Stage] = []
    for name, entry in entries.items():
        stages.append(_stage(name, entry, shared, [str(n) for n in entries], where))
    known = sorted({f.name for one in stages for f in fields(one.kind)} - {"out", "resume"})
    if unknown := [key for key in shared if key not in known]:
        raise ValueError(f"{where}: unknown key `{unknown[0]}`: no stage has it; known keys: {', '.join(known)}")
    return stages


def _stage(name: Any, entry: Any, shared: Mapping[str, Any], names: list[str], where: str) -> Stage:
    """One entry checked, its references against the stages before it among `names`."""
    place = f"{where}: stages.{name}"
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{place}: a stage's name is its folder: letters, digits, `_` and `-`")
    if not isinstance(entry, Mapping):
        raise ValueError(f"{place}: expected a mapping with `command`, got {entry!r}")
    allowed = [command for command in COMMANDS if command not in NOT_STAGES]
    command = entry.get("command")
    if command not in allowed:
        raise ValueError(f"{place}: command: unknown command {command!r}; known: {', '.join(allowed)}")
    own = {key: value for key, value in entry.items() if key != "command"}
    _refuse_places(own, place)
    kind = settings_of(command)
    has = {f.name for f in fields(kind)}
    settings = {**{key: value for key, value in shared.items() if key in has}, **own}
    uses: list[str] = []
    before = names[: names.index(name)]

    def check(text: str, key: str) -> str:
        for target in _REFERENCE.findall(text):
            if target != "@":
                _check_reference(target, before, names, f"{place}.{key}")
                uses.append(target)
        return text

    _map_texts(settings, check)
    build(kind, {**settings, "out": name}, place)  # an unknown key or a bad value is found now
    return Stage(name, command, kind, settings, tuple(dict.fromkeys(uses)), place)


def settings_of(command: str) -> type:
    """The settings class of one of `COMMANDS`."""
    module, name = COMMANDS[command]
    return getattr(import_module(module), name)


def _check_reference(target: str, before: list[str], names: list[str], place: str) -> None:
    if target in before:
        return
    known = f"stages before this one: {', '.join(before) or 'none'}"
    if target in names:
        raise ValueError(f"{place}: @{target} does not come before this stage; {known}")
    raise ValueError(f"{place}: @{target} is no stage of this recipe; {known}; a plain @ is written @@")


def _refuse_places(settings: Mapping[str, Any], place: str) -> None:
    if found := [key for key in ("out", "resume") if key in settings]:
        raise ValueError(
            f"{place}: {found[0]}: a stage runs in OUT/NAME; say `--out DIR` or `--resume` to `tutelage run`"
        )


def in_use(folder: Path) -> bool:
    """Whether there is anything in a folder."""
    return folder.is_dir() and any(folder.iterdir())


def _target(name: str, folder: Path) -> str:
    return "@" if name == "@" else str(folder / name)


def _map_texts(value: Any, change: Callable[[str, str], str], key: str = "") -> Any:
    """`change(text, key)` on every string inside, however deep; keys are joined by dots."""
    inside = f"{key}." if key else ""
    if isinstance(value, Mapping):
        return {k: _map_texts(v, change, f"{inside}{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_map_texts(v, change, f"{inside}{i}") for i, v in enumerate(value)]
    return change(value, key) if isinstance(value, str) else value
