"""`tutelage run`: a recipe of one command, or of several stages whose later entries use what earlier ones made."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from tutelage.config import config, dump, parse, read_yaml
from tutelage.console import say, stage
from tutelage.memory import release
from tutelage.stages.recipe import COMMANDS, Stage, in_use, plan, settings_of
from tutelage.training.files import clear_disk_errors, write_whole
from tutelage.training.interrupt import Interrupted

LEDGER = "stages.json"
"""The finished stages of a run, and the settings they ran with."""


@config
class Recipe:
    """Run a recipe: one command, or stages in order. `tutelage run RECIPE --out DIR --resume` goes on where it stopped."""

    out: str | None = None
    """The folder; each stage has its own inside. Default: a fresh runs/RECIPE-TIME."""
    resume: bool = False
    """Go on in `--out`: finished stages are kept, an interrupted one continues."""
    only: str | None = None
    """Run this stage alone; what it refers to must be finished."""
    model: str | None = None
    """Instead of the recipe's shared `model`; what a stage itself says stays."""
    seed: int | None = None
    """Instead of the recipe's shared `seed`."""
    device: Literal["auto", "cpu", "cuda", "mps"] | None = None
    """Instead of the recipe's shared `device`."""


def main(args: list[str]) -> int:
    """`tutelage run RECIPE [--out DIR] [--resume] [--only STAGE] ...`; returns the exit code."""
    if not args or args[0].startswith("-"):
        if args:
            parse(Recipe, args, prog="tutelage run RECIPE")  # --help prints and exits
        raise ValueError("which recipe? The file comes first: tutelage run RECIPE [--flags]")
    path, flags = args[0], args[1:]
    recipe = _read(path)
    if "stages" not in recipe:
        return _run_command(recipe, flags, path)
    cfg = parse(Recipe, flags, prog="tutelage run RECIPE")
    recipe |= {k: v for k in ("model", "seed", "device") if (v := getattr(cfg, k)) is not None}
    stages = plan(recipe, path)
    folder = _folder(cfg, Path(path).stem)
    chosen = _choose(stages, cfg.only, path)
    _refuse_stale(stages, chosen, _finished(stages, folder), folder)
    fresh = not in_use(folder)
    with clear_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _keep(recipe, folder)
    place = shlex.quote(str(folder))
    again = f"tutelage run {shlex.quote(str(folder / 'config.yaml'))} --out {place} --resume"
    again += f" --only {cfg.only}" if cfg.only else ""
    try:
        for number, one in enumerate(chosen, start=1):
            stage(f"Stage {one.name} ({number} of {len(chosen)}): tutelage {one.command}", _purpose(one.kind))
            run_stages(recipe, folder, True, path, only=one.name, resume_command=again)
    except ValueError:
        if fresh:
            _leave_nothing(folder)
        raise
    say("\n" + "\n".join(f"{one.name}: {folder / one.name}" for one in chosen))
    return 0


def run_stages(
    recipe: Mapping[str, Any],
    folder: Path,
    resume: bool,
    where: str,
    *,
    only: str | None = None,
    resume_command: str = "",
) -> dict[str, Path]:
    """Run a recipe's stages in order, each in `folder`/NAME; returns these folders by name. Finished ones are kept.

    Everything is checked first. Raises ValueError naming `where` and the key for what is wrong in the recipe, for stages
    that are there without `resume` or ran with other settings, and for a stage that stops with one; Interrupted (with
    `resume_command`, where given) after Ctrl-C.
    """
    stages = plan(recipe, where)
    chosen = _choose(stages, only, where)
    if not resume and (there := [one.name for one in chosen if in_use(folder / one.name)]):
        raise ValueError(f"{folder} already holds {', '.join(there)}; go on with --resume, or choose another --out")
    done = _finished(stages, folder)
    _refuse_stale(stages, chosen, done, folder)
    for one in chosen:
        if one.name in done:
            say(f"{one.name}: finished before, kept")
            continue
        _run(one, folder, resume_command)
        done[one.name] = one.record
        write_whole(folder / LEDGER, json.dumps(done, indent=1) + "\n")
    return {one.name: folder / one.name for one in chosen}


def _choose(stages: list[Stage], only: str | None, where: str) -> list[Stage]:
    chosen = [one for one in stages if only in (None, one.name)]
    if not chosen:
        raise ValueError(f"{where}: no stage {only!r}; stages: {', '.join(one.name for one in stages)}")
    return chosen


def _run(one: Stage, folder: Path, resume_command: str) -> None:
    """Run a stage; a stop says which stage it was and how to go on."""

    def hint() -> str:
        made = in_use(folder / one.name) or (folder / LEDGER).is_file()
        return f"\nwhat is done is kept; go on with: {resume_command}" if made and resume_command else ""

    try:
        execute(one.command, one.configuration(folder))
    except (Interrupted, KeyboardInterrupt):
        if not resume_command:
            raise
        raise Interrupted(resume_command) from None
    except ValueError as error:
        raise ValueError(f"stage {one.name} ({one.command}) stopped: {error}{hint()}") from error
    except Exception as error:
        error.add_note(f"in stage {one.name} ({one.command}){hint()}")
        raise


def _finished(stages: list[Stage], folder: Path) -> dict[str, Any]:
    """The ledger's stages that are still there. Raises ValueError where the recipe now says something else of one."""
    path = folder / LEDGER
    ledger = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kept = {one.name: ledger[one.name] for one in stages if one.name in ledger and in_use(folder / one.name)}
    for one in stages:
        if one.name in kept and kept[one.name] != one.record:
            raise ValueError(
                f"{one.where}: {folder / one.name} was made with other settings "
                f"({_difference(kept[one.name], one.record)}); give those, choose another --out, or remove that folder"
            )
    return kept


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    was, here = ({"command": r["command"], **r["settings"]} for r in (before, now))
    keys = [key for key in {**was, **here} if was.get(key) != here.get(key)]
    return "; ".join(f"{key}: was {was.get(key)!r}, is {here.get(key)!r}" for key in keys)


def _refuse_stale(stages: list[Stage], chosen: list[Stage], done: Mapping[str, Any], folder: Path) -> None:
    """What is on the disk must not have been made from a stage that runs now; what runs must find what it uses."""
    for one in stages:
        for source in [name for name in one.uses if name not in done]:
            if in_use(folder / one.name):
                raise ValueError(
                    f"stage {one.name} was made from {source}, which is to run anew; remove {folder / one.name} too"
                )
            if one in chosen and source not in [other.name for other in chosen]:
                raise ValueError(f"stage {one.name} uses @{source}, which is not finished in {folder}; run that first")


def _read(path: str) -> dict[str, Any]:
    try:
        return read_yaml(path)
    except ValueError as error:
        hint = '\nYAML wants quotes around a reference: model: "@sft"' if "character '@'" in str(error) else ""
        raise ValueError(f"{error}{hint}") from None


def _run_command(recipe: dict[str, Any], flags: list[str], where: str) -> int:
    """A recipe of one command: the command itself, with all its flags."""
    command = recipe.pop("command", None)
    if command not in COMMANDS:
        raise ValueError(f"{where}: command: unknown command {command!r}; known: {', '.join(COMMANDS)}, or `stages:`")
    cfg = parse(settings_of(command), flags, recipe, where, prog=f"tutelage run ({command})")
    result = execute(command, cfg)
    return result if isinstance(result, int) else 0


def execute(command: str, cfg: Any) -> Any:
    """One of `COMMANDS` with its settings; what multiplies and what decodes is chosen here, and written into the settings."""
    main = import_module(COMMANDS[command][0]).main
    if not hasattr(cfg, "gemm"):
        return main(cfg)
    from tutelage.models.fused import choose_kernels, running
    from tutelage.models.gemm import choose_gemm, multiplying
    from tutelage.models.load import choose_device
    from tutelage.stages.choices import recorded, with_pass_tokens  # brings torch along

    device, begun = choose_device(cfg.device), recorded(cfg)
    gemm = choose_gemm(begun.get("gemm", "default") if begun and cfg.gemm == "auto" else cfg.gemm, device)
    wanted = begun.get("kernels", "torch") if begun and cfg.kernels == "auto" else cfg.kernels
    try:
        with multiplying(gemm), running(choose_kernels(wanted, device)) as kernels:
            return main(with_pass_tokens(replace(cfg, gemm=gemm, kernels=kernels), begun, device))
    finally:
        release()


def _folder(cfg: Recipe, name: str) -> Path:
    """`--out`, refused where it is in use and not resumed, or a fresh runs/RECIPE-TIME."""
    from tutelage.stages.common import out_folder  # brings torch along

    if cfg.resume and cfg.out is None:
        raise ValueError("--resume needs the folder to go on with: tutelage run RECIPE --out runs/... --resume")
    folder = out_folder(cfg, name)  # type: ignore[arg-type]
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose another folder with --out")
    if in_use(folder) and not cfg.resume:
        raise ValueError(f"{folder} is not empty; go on with it by --resume, or choose another --out")
    return folder


def _keep(recipe: Mapping[str, Any], folder: Path) -> None:
    """The recipe as it runs, flags included, in OUT/config.yaml: resuming needs no other file."""
    part = folder / ".config.yaml.writing"
    dump(recipe, part)
    part.replace(folder / "config.yaml")


def _leave_nothing(folder: Path) -> None:
    """Bad input to the first stage leaves no folder."""
    if [path.name for path in folder.iterdir()] == ["config.yaml"]:
        (folder / "config.yaml").unlink()
        folder.rmdir()


def _purpose(kind: type) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]
