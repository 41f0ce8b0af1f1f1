"""`tutelage labels report | export | import`: what people's labels are worth, as files to train on, and from other tools."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from tutelage.config import config, parse
from tutelage.console import say
from tutelage.data.files import find, read_file
from tutelage.data.readers import load_records
from tutelage.evaluation.page import Html, Page, table, tiles
from tutelage.feedback.annotator_quality import standing
from tutelage.feedback.database import Database, open_database, read_url
from tutelage.feedback.export_files import Split, write_export
from tutelage.feedback.exports import Options, export_rows, reliability_weights
from tutelage.feedback.imports import READERS, Imported, from_record, guess_tool
from tutelage.feedback.judgments import Labels
from tutelage.feedback.label_imports import import_labels
from tutelage.feedback.label_store import find_label_project, read_labels
from tutelage.feedback.quality import quality_of
from tutelage.stages.folders import fresh_folder
from tutelage.stages.labels_choice import choose_annotators, model_of, with_agreement

Share = Annotated[float, Field(ge=0, lt=1)]
SHOWN = 10
USAGE = """usage: tutelage labels ACTION --db URL [--flags]     (tutelage labels ACTION --help explains every flag)

  report   agreement, reliability, biases, drift: a page, and the main figures here
  export   the labels as files that `tutelage sft | reward | prefer` and TRL read
  import   labels from Label Studio, Argilla, AlpacaEval or pairs (HH-RLHF and every shape of docs/data.md)
"""


@config
class Report:
    """What the labels of a project are worth: printed, and drawn as one self-contained page."""

    db: str = ""
    """sqlite:///FILE or postgresql://user@host/name, as `tutelage collect` printed it."""
    project: str | None = None
    """Its name; needed where the database holds several."""
    out: str = "labels.html"
    """The page."""
    draws: Annotated[int, Field(ge=100)] = 1000
    """Bootstrap draws of each interval."""
    seed: int = 0
    """Decides the bootstraps."""


@config
class Export:
    """The labels of a project as files to train on, with a manifest of checksums and a data card."""

    db: str = ""
    """sqlite:///FILE or postgresql://user@host/name, as `tutelage collect` printed it."""
    project: str | None = None
    """Its name; needed where the database holds several."""
    out: str | None = None
    """A fresh folder; default: runs/labels-TIME."""
    format: Literal["records", "trl", "trl_implicit", "kto", "sft", "ranking", "critique"] = "records"
    """Our records; TRL's preference shape with explicit or implicit prompt, unpaired (kto) or prompt-completion (sft);
    rankings whole; critiques. docs/labels.md shows a row of each."""
    container: Literal["jsonl", "parquet", "datasets"] = "jsonl"
    """The kind of file."""
    ties: Literal["keep", "drop"] | None = None
    """Default: kept as preference 0.5 in our records, dropped for TRL, whose trainers would take them for wins."""
    labels: Literal["single", "mean", "model"] = "single"
    """A row a judgment; or a row a pair with the share of votes, or the annotator model's probability, as soft label."""
    weights: Literal["none", "reliability"] = "none"
    """`reliability`: a label weighs 2 eta - 1 of its annotator (Crowd-BT), at least 0.05: nothing is deleted."""
    annotators: Literal["all", "screened", "unscreened"] = "all"
    """`screened`: those whose check items show them good enough (lower bound at `threshold`); held-out ones always stay."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.65
    """Of the screening."""
    valid_share: Share = 0.1
    """Share of the conversations for valid.*: to choose settings with."""
    test_share: Share = 0.0
    """Share of the conversations for test.*: to report on, once."""
    checks: bool = False
    """Take check items and repeats as well."""
    seed: int = 0
    """Decides the bootstraps of the agreement table."""


@config
class Import:
    """Labels from other tools as a closed project of an annotation database; report and export then work as on our own."""

    data: tuple[str, ...] = ()
    """Files: Label Studio's or Argilla's JSON, AlpacaEval's annotations, or pairs in any shape of docs/data.md."""
    db: str = ""
    """sqlite:///FILE (made where it is absent) or postgresql://user@host/name."""
    project: str | None = None
    """Its name; default: the file's."""
    tool: Literal["label_studio", "argilla", "alpaca_eval", "pairs"] | None = None
    """What wrote the files; default: guessed from the keys, and said."""
    task: Literal["preference", "ranking", "rating", "yesno", "critique", "demonstration"] | None = None
    """Where a file holds judgments of several tasks: which to take."""


def main(args: Sequence[str]) -> int:
    """`tutelage labels ACTION ...`; returns the exit code."""
    actions: dict[str, tuple[type, Callable[[Any], object]]] = {
        "report": (Report, report),
        "export": (Export, export),
        "import": (Import, bring_in),
    }
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if args[0] not in actions:
        raise ValueError(f"unknown action {args[0]!r}; known: {', '.join(actions)}")
    kind, act = actions[args[0]]
    act(parse(kind, args[1:], prog=f"tutelage labels {args[0]}"))
    return 0


def report(cfg: Report) -> Path:
    """Write the page and print its figures; returns where it is."""
    labels = _read(cfg.db, cfg.project)
    found = quality_of(labels, np.random.default_rng(cfg.seed), cfg.draws)
    page = Page(f"Label quality: {labels.project}", found["summary"])
    page.top(tiles(*((t["label"], t["value"], t["note"]) for t in found["tiles"])))
    for part in found["sections"]:
        rows = table(part["head"], part["rows"], part["title"]) if part["rows"] else ""
        page.section(part["title"], part["text"], Html(part["svg"]), rows)
    out = Path(cfg.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    page.write(out)
    say(found["summary"])
    say("\n".join(f"  {t['label']}: {t['value']}" + (f" ({t['note']})" if t["note"] else "") for t in found["tiles"]))
    say(f"page: {out}")
    return out


def export(cfg: Export) -> Path:
    """Write the folder; returns it."""
    if cfg.valid_share + cfg.test_share >= 1:
        raise ValueError(
            f"--valid-share {cfg.valid_share} --test-share {cfg.test_share}: no conversation is left to train on"
        )
    labels = _read(cfg.db, cfg.project)
    chosen = choose_annotators(labels, cfg.annotators, lambda right, n: standing(right, n, cfg.threshold).passed)
    model = model_of(chosen) if cfg.labels == "model" or cfg.weights == "reliability" else None
    eta = {str(who): found.estimate for who, found in model.reliability.items()} if model else {}
    soft = {str(unit): p for unit, p in model.first_wins.items()} if model else {}
    ties = cfg.ties or ("keep" if cfg.format == "records" else "drop")
    weights = reliability_weights(eta) if cfg.weights == "reliability" else {}
    options = Options(cfg.format, ties, cfg.labels, weights, soft, cfg.checks)
    exported = export_rows(chosen, options)
    exported.left_out["by annotators not chosen"] += len(labels.judgments) - len(chosen.judgments)
    folder = Path(cfg.out) if cfg.out else fresh_folder("labels")
    asked = {k: v for k, v in vars(cfg).items() if k not in ("db", "out")}
    about = with_agreement({"settings": asked | {"ties": ties}, "reliability": eta, "weights": weights}, chosen)
    split = Split(cfg.valid_share, cfg.test_share)
    manifest = write_export(folder, exported, chosen, split, container=cfg.container, about=about)
    _tell(folder, manifest, cfg)
    return folder


def _tell(folder: Path, manifest: dict[str, Any], cfg: Export) -> None:
    rows = ", ".join(f"{name} {count}" for name, count in manifest["rows"].items())
    left = "; ".join(f"{count} {reason}" for reason, count in manifest["left_out"].items() if count)
    say(f"{folder}: rows: {rows}" + (f"\nleft out: {left}" if left else ""))
    command = {"sft": "sft", "kto": "prefer --algorithm kto"}.get(cfg.format, "reward")
    if cfg.container != "datasets" and "train" in manifest["rows"] and cfg.format not in ("ranking", "critique"):
        suffix = cfg.container
        heldout = (
            f" --heldout {folder / f'valid.{suffix}'}" if command == "reward" and "valid" in manifest["rows"] else ""
        )
        say(f"train on it:  tutelage {command} --data {folder / f'train.{suffix}'}{heldout}")


def bring_in(cfg: Import) -> int:
    """Read the files, check every row, write one project; returns its id."""
    if not cfg.data:
        raise ValueError("--data: no file given; docs/labels.md lists what is read")
    url = _named(cfg.db)
    found = [one for source in cfg.data for one in _imported(source, cfg.tool)]
    wanted = [one for one in found if cfg.task in (None, one.kind)]
    name = cfg.project or Path(cfg.data[0]).stem
    database = open_database(url)
    try:
        with database.write() as connection:
            made = import_labels(connection, name, wanted, ", ".join(cfg.data))
    finally:
        database.close()
    people = len({one.annotator for one in wanted})
    say(f"project {name!r}: {len(wanted)} judgments ({wanted[0].kind}) by {people} annotators")
    say(f"look at them:  tutelage labels report --db {cfg.db} --project {json.dumps(name)}")
    return made


def _imported(source: str, tool: str | None) -> list[Imported]:
    rows = [found for file in find(source) for found in read_file(file)]
    chosen = tool or (guess_tool(rows[0].row) if rows else "pairs")
    say(f"{source}: read as {chosen}" + ("" if tool else " (guessed; --tool says otherwise)"))
    if chosen == "pairs":
        return [one for record in load_records(source).records for one in from_record(record)]
    out, bad = [], []
    for found in rows:
        try:
            if found.problem:
                raise ValueError(found.problem)
            out += READERS[chosen](found.row)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:  # another tool's file: any shape
            bad.append(f"  {found.where}: {error if isinstance(error, ValueError) else f'not as expected: {error!r}'}")
    if bad:
        raise ValueError(f"{source}: {len(bad)} of {len(rows)} rows are bad:\n" + "\n".join(bad[:SHOWN]))
    return out


def _read(url: str, project: str | None) -> Labels:
    database = _existing(url)
    try:
        with database.read() as connection:
            return read_labels(connection, find_label_project(connection, project)["id"])
    finally:
        database.close()


def _named(url: str) -> str:
    if not url:
        raise ValueError(
            "--db: which database? `tutelage collect` prints its URL, such as sqlite:///runs/.../feedback.db"
        )
    return url


def _existing(url: str) -> Database:
    parsed = read_url(_named(url))
    if parsed.drivername == "sqlite" and not Path(parsed.database or "").is_file():
        raise ValueError(f"--db {url}: there is no such file; `tutelage collect` prints the URL of its database")
    return open_database(url)
