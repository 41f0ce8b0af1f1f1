"""Rows -> files: split by conversation and by annotator, with a manifest of checksums and a data card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tutelage.feedback.exports import Exported, Row
from tutelage.feedback.judgments import Labels
from tutelage.records import write_jsonl

Container = Literal["jsonl", "parquet", "datasets"]
MANIFEST, CARD = "manifest.json", "README.md"


@dataclass(frozen=True)
class Split:
    """Shares of the conversations kept out of training; which ones depends on their content alone, so it stays the same."""

    valid: float = 0.1
    test: float = 0.0

    def side(self, root: str) -> str:
        """train, valid or test."""
        place = int(hashlib.sha256(f"split/{root}".encode()).hexdigest()[:8], 16) / 16**8
        return "test" if place < self.test else "valid" if place < self.test + self.valid else "train"


def split_rows(rows: Sequence[Row], split: Split, held_out: set[str]) -> dict[str, list[dict[str, Any]]]:
    """File name -> rows. Held-out annotators have files of their own: what they said of conversations that are trained on,
    by whomever else, stands apart, because a model tested there has seen the prompt."""
    files: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        side = split.side(row.root)
        name = side
        if held_out & set(row.annotators):
            name = "heldout_annotators_seen_prompts" if side == "train" else f"heldout_annotators_{side}"
        files.setdefault(name, []).append(row.data)
    return files


def write_export(
    folder: Path, exported: Exported, labels: Labels, split: Split, *, container: Container, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the files, manifest.json and README.md; returns the manifest. `about`: settings and agreement, for both.

    Raises ValueError for a folder that is not empty, and where a library for the container is missing.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--out {folder}: is not empty; give a fresh folder")
    held_out = {key for key, person in labels.people.items() if person.held_out}
    parts = split_rows(exported.rows, split, held_out)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        _write(folder, name, rows, container)
    manifest = {
        "project": labels.project,
        "task": labels.kind,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "last_judgment": max(one.seq for one in labels.judgments),
        "rows": {name: len(rows) for name, rows in parts.items()},
        "left_out": dict(exported.left_out),
        "flags": labels.flags,
        "split": vars(split) | {"by": "hash of the conversation up to its first user turn; held-out annotators apart"},
        "annotators": [
            {"annotator": p.key, "role": p.role, "held_out": p.held_out, "judgments": _count(labels, p.key)}
            for p in labels.people.values()
        ],
        "instructions": {str(v): _sha(text.encode()) for v, text in labels.instructions.items()},
        **about,
        "files": {f.relative_to(folder).as_posix(): _sha(f.read_bytes()) for f in _files(folder)},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / CARD).write_text(_card(manifest), encoding="utf-8")
    return manifest


def verify(folder: Path) -> list[str]:
    """What is wrong with an export: files that the manifest names and that are missing or changed, and files it does not name."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    found = {f.relative_to(folder).as_posix(): _sha(f.read_bytes()) for f in _files(folder)}
    wrong = [f"{name}: missing" for name in manifest if name not in found]
    wrong += [f"{name}: changed" for name in manifest if found.get(name, manifest[name]) != manifest[name]]
    return wrong + [f"{name}: not in the manifest" for name in found if name not in manifest]


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file() and f.name not in (MANIFEST, CARD))


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _count(labels: Labels, who: str) -> int:
    return sum(one.annotator == who and not one.skipped for one in labels.judgments)


def _write(folder: Path, name: str, rows: list[dict[str, Any]], container: Container) -> None:
    if container == "jsonl":
        write_jsonl(folder / f"{name}.jsonl", rows)
        return
    try:
        rows = _rectangular(rows)
        if container == "parquet":
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{name}.parquet")
        else:
            import datasets

            datasets.Dataset.from_list(rows).save_to_disk(str(folder / name))
    except ImportError:
        raise ValueError(f"--container {container} needs: pip install 'tutelage[data]'") from None


def _rectangular(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every row with every key: table writers take their columns from the first row alone."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in keys} for row in rows]


def _card(manifest: Mapping[str, Any]) -> str:
    """A page for whoever trains on the files: where the labels come from, what they are worth, what was left out."""
    rows = "\n".join(f"| {name} | {count} |" for name, count in manifest["rows"].items())
    left = "\n".join(f"- {count}: {reason}" for reason, count in manifest["left_out"].items()) or "- nothing"
    people = "\n".join(
        f"| {p['annotator']} | {p['role']}{', held out' if p['held_out'] else ''} | {p['judgments']} |"
        for p in manifest["annotators"]
    )
    agreed = "\n".join(f"| {name} | {value} |" for name, value in manifest.get("agreement", {}).items())
    versions = ", ".join(manifest["instructions"]) or "none"
    settings = json.dumps(manifest.get("settings", {}), ensure_ascii=False)
    return f"""# Labels of the project {json.dumps(manifest["project"], ensure_ascii=False)}

People judged answers in the annotation app (task: {manifest["task"]}). Made {manifest["made_at"]}, up to judgment
{manifest["last_judgment"]}. Checksums of all files are in {MANIFEST}.

| file | rows |
|---|---|
{rows}

Files are split by conversation, never by row: {manifest["split"]["by"]}. Settings: `{settings}`.

## What the labels are worth
| measure | value |
|---|---|
{agreed}

## Who
Annotators have numbers, not names. Versions of the instructions: {versions} (their hashes are in the manifest).

| annotator | role | judgments |
|---|---|---|
{people}

## Left out
Judgments (or pairs) that gave no row, and why. {manifest["flags"]} flags were raised; flagged items are not left out.

{left}

## Limits
These are the opinions of the people above under these instructions, not facts. Answers may be wrong, offensive or hold
personal data that nobody flagged.
"""
