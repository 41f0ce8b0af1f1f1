"""lineage.json: what a run was trained on - files by checksum, the people's labels behind them, and the runs it came from."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutelage.console import say
from tutelage.data.files import find
from tutelage.data.readers import split_weight
from tutelage.data.tasks import PREFIX
from tutelage.feedback.export_files import MANIFEST
from tutelage.rewards.terms import parse_term
from tutelage.training.files import write_whole
from tutelage.training.run import Run

NAME = "lineage.json"
OF_AN_EXPORT = ("project", "task", "made_at", "last_judgment", "instructions", "settings")
"""What is repeated from the manifest of `tutelage labels export`, beside its own checksum."""


def lineage_of(cfg: Any) -> dict[str, Any]:
    """{"data", "heldout": [{"source", "files": {name: SHA-256}, "labels"?}], "model", "rewards": [{"name", "lineage"?}]}.

    `labels` says which people's labels a file holds: the export's manifest by its checksum, its project, and the number of
    the last judgment that it read. Models and rewards that are runs of ours bring their own lineage, so that a policy
    names the labels of the reward model that it was trained against.
    """
    found: dict[str, Any] = {"model": _ancestor(cfg.model)}
    for key in ("data", "heldout"):
        if sources := getattr(cfg, key, ()):
            found[key] = [_source(split_weight(source)[0]) for source in sources]
    if rewards := getattr(cfg, "reward", ()):
        found["rewards"] = [_ancestor(parse_term(text).reward) for text in rewards]
    return found


def write_lineage(run: Run, cfg: Any) -> None:
    """Write it into the run folder; a resumed run keeps what it began with."""
    path = run.folder / NAME
    if path.exists():
        return
    found = lineage_of(cfg)
    for labels in {one["manifest"]: one for one in labels_in(found)}.values():
        say(f"people's labels: project {labels['project']!r} up to judgment {labels['last_judgment']}")
    _write(path, found)


def note_people(run: Run, **people: Any) -> None:
    """People judge while it trains: where; the numbers of the judgments that were used stand in the ledger."""
    path = run.folder / NAME
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    _write(path, found | {"people": people})


def hand_down(folder: Path, part: str) -> None:
    """A copy beside the weights that a run ends with, so that they name their labels wherever they are moved."""
    if (folder / NAME).is_file() and (folder / part).is_dir():
        shutil.copyfile(folder / NAME, folder / part / NAME)


def labels_in(lineage: Any) -> list[dict[str, Any]]:
    """Every export that a lineage names, its ancestors' too."""
    if isinstance(lineage, Mapping):
        own = [lineage["labels"]] if isinstance(lineage.get("labels"), dict) else []
        return own + [one for key, value in lineage.items() if key != "labels" for one in labels_in(value)]
    return [one for value in lineage for one in labels_in(value)] if isinstance(lineage, list) else []


def _source(source: str) -> dict[str, Any]:
    if source.startswith(PREFIX):  # made on demand: its name and its settings are all there is
        return {"source": source}
    files = find(source)
    root = Path(source) if Path(source).is_dir() else Path(source).parent
    found: dict[str, Any] = {"source": source, "files": {f.relative_to(root).as_posix(): _sha(f) for f in files}}
    manifest = next((p for f in files for p in (f.parent / MANIFEST,) if p.is_file()), None)
    labels = _labels(manifest, found["files"]) if manifest is not None else None
    return found | ({"labels": labels} if labels else {})


def _labels(manifest: Path, files: Mapping[str, str]) -> dict[str, Any] | None:
    """The export that the files belong to; None where the file of that name is something else's."""
    try:
        about = json.loads(manifest.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return None
    if not isinstance(about, dict) or "last_judgment" not in about:
        return None
    known = about.get("files", {})
    changed = sorted(name for name, sha in files.items() if known.get(Path(name).name, sha) != sha)
    kept = {key: about[key] for key in OF_AN_EXPORT if key in about}
    return {"manifest": _sha(manifest), **kept, **({"changed_since": changed} if changed else {})}


def _ancestor(name: str) -> dict[str, Any]:
    """A model or reward by name, with its lineage where it is a run of ours or a part of one."""
    folder = Path(name)
    path = next((p for p in (folder / NAME, folder.parent / NAME) if folder.is_dir() and p.is_file()), None)
    return {"name": name} | ({"lineage": json.loads(path.read_text(encoding="utf-8"))} if path else {})


def _sha(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, found: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
