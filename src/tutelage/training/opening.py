"""Whether a run may be opened in a folder: new, empty, or with a run that goes on with the same settings."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tutelage.config import to_dict
from tutelage.training.environment import differences
from tutelage.training.files import is_leftover
from tutelage.training.sinks import check_sinks

MAY_CHANGE = ("steps", "out", "resume", "human")
"""Settings that a resumed run may give anew: how long, where, that it is resumed, and how people are reached and awaited."""


def check_opening(
    folder: Path, config: Any, command: str, resume: bool, *, sinks: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What `Run.open` would refuse is refused here and nothing is written: ask before something slow, such as a model.

    Returns the settings as config.yaml will hold them, and those of the run that is there (None where there is none).
    """
    check_sinks(sinks)
    recipe = _recipe(config, command)
    before = _before(folder, command, resume)
    _refuse_changes(folder, before, recipe)
    return recipe, before


def _recipe(config: Any, command: str) -> dict[str, Any]:
    """The settings as they are read back from config.yaml; `resume` is how a run was opened, not what it is."""
    settings = to_dict(config)
    if "resume" in settings:
        settings["resume"] = False
    return yaml.safe_load(yaml.safe_dump({"command": command, **settings}, sort_keys=False))


def resume_command(command: str, folder: Path) -> str:
    """What to type to go on with the run in `folder`: its own config.yaml is the recipe."""
    return f"tutelage {command} {shlex.quote(str(folder / 'config.yaml'))} --out {shlex.quote(str(folder))} --resume"


def _before(folder: Path, command: str, resume: bool) -> dict[str, Any] | None:
    """The settings of the run that is in the folder, None for a folder that is new, empty, or was killed at birth."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose another folder with --out")
    names = {p.name for p in folder.iterdir() if not is_leftover(p)} if folder.is_dir() else set()
    if not names:
        return None
    if "config.yaml" not in names:
        raise ValueError(f"{folder} is not empty and not a run folder (no config.yaml); choose another with --out")
    if not resume:
        raise ValueError(
            f"{folder} holds a run already; go on with it by `{resume_command(command, folder)}`, "
            "or choose another folder with --out"
        )
    try:
        found = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{folder / 'config.yaml'}: not valid YAML: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{folder / 'config.yaml'}: expected a mapping, got {type(found).__name__}")
    return found


def _refuse_changes(folder: Path, before: Mapping[str, Any] | None, recipe: Mapping[str, Any]) -> None:
    changes = {} if before is None else differences(before, recipe)
    wrong = [
        f"  {key}: was {was!r}, is {now!r}"
        for key, (was, now) in changes.items()
        if key.partition(".")[0] not in MAY_CHANGE
    ]
    if wrong:
        raise ValueError(
            f"{folder} was started with other settings; give the old ones, or start a new folder with --out:\n"
            + "\n".join(wrong)
        )
