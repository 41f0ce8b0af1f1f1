"""Sources -> records: recognises the shape of the rows, checks every one, and reports all the bad ones together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tutelage.data.files import Found, find, read_file, read_hub
from tutelage.data.shapes import SHAPES, Kind, Loadable, Shape, recognise
from tutelage.data.tasks import PREFIX, load_task

BadRows = Literal["error", "skip"]
SHOWN = 10


@dataclass(frozen=True)
class Loaded:
    """What was read from one source: the records, and how they came about."""

    records: tuple[Loadable, ...]
    source: str
    shape: str
    kind: Kind
    rows: int
    """Rows in the source, the skipped ones included."""
    skipped: tuple[str, ...] = ()
    """One line for every bad row that was left out."""
    ignored_keys: tuple[str, ...] = ()
    """Keys that the shape does not read."""
    weight: float | None = None
    """Share of the rows drawn from this source (`path=0.3`), where one was given."""

    def describe(self) -> str:
        """One line for the console and the report."""
        ignored = f"; keys not read: {', '.join(self.ignored_keys)}" if self.ignored_keys else ""
        skipped = f"; {len(self.skipped)} bad rows skipped" if self.skipped else ""
        return f"{self.source}: {self.rows} rows, {self.shape} -> {len(self.records)} x {self.kind}{skipped}{ignored}"


def load_sources(sources: Sequence[str], kind: Kind | None = None, bad_rows: BadRows = "error") -> tuple[Loaded, ...]:
    """Several sources, `path` or `path=weight`; all have a weight or none has.

    Raises ValueError as `load_records` does, and where kinds or weights do not go together.
    """
    if not sources:
        raise ValueError("--data: no source given; it takes a file, a folder or a hub data set")
    split = [split_weight(source) for source in sources]
    weights = [weight for _, weight in split]
    if None in weights and any(weight is not None for weight in weights):
        raise ValueError(f"--data: give every source a weight (path=0.3) or none; got {', '.join(sources)}")
    loaded = tuple(load_records(path, kind, bad_rows, weight=weight) for path, weight in split)
    if len({one.kind for one in loaded}) > 1:
        raise ValueError("--data: the sources hold different records: " + "; ".join(one.describe() for one in loaded))
    return loaded


def split_weight(source: str) -> tuple[str, float | None]:
    """`path=0.3` -> (path, 0.3). What exists under the whole name is a path without a weight."""
    match = re.fullmatch(r"(.+)=([^=/()]+)", source)
    if match is None or Path(source).exists():
        return source, None
    try:
        weight = float(match[2])
    except ValueError:
        weight = 0.0
    if not 0 < weight < float("inf"):
        raise ValueError(f"--data {source}: the weight is {match[2]!r}; allowed: a positive number, as in path=0.3")
    return match[1], weight


def load_records(
    source: str | Path, kind: Kind | None = None, bad_rows: BadRows = "error", *, weight: float | None = None
) -> Loaded:
    """All records of a file, a folder or a hub data set as `kind` (None: as what their shape says they are).

    Raises ValueError for a missing or empty source, an unknown shape, a shape that cannot serve `kind`, for bad rows
    (the first ten and the total) unless they are skipped, and always where no usable row is left.
    """
    for name, value, allowed in (("kind", kind, (None, *get_args(Kind))), ("bad_rows", bad_rows, get_args(BadRows))):
        if value not in allowed:
            raise ValueError(f"{name}: {value!r}; allowed: {', '.join(map(str, allowed))}")
    if str(source).startswith(PREFIX):
        made = load_task(str(source), kind)
        return Loaded(made, str(source), "task", kind or "prompt", len(made), weight=weight)
    files = find(source)
    tables = [(str(file), read_file(file)) for file in files] or [(str(source), read_hub(str(source)))]
    parts = [_read(name, found, kind) for name, found in tables]
    bad, rows = [line for part in parts for line in part.skipped], sum(part.rows for part in parts)
    if bad and bad_rows == "error":
        raise ValueError(_bad_rows(str(source), bad, rows))
    if len({part.kind for part in parts}) > 1:
        raise ValueError(f"{source}: its files hold different records: " + "; ".join(part.describe() for part in parts))
    records = tuple(record for part in parts for record in part.records)
    if not records:
        raise ValueError(
            f"{source}: no usable row is left of {rows}\n" + "\n".join(f"  {line}" for line in bad[:SHOWN])
        )
    shapes = ", ".join(dict.fromkeys(part.shape for part in parts))
    ignored = dict.fromkeys(key for part in parts for key in part.ignored_keys)
    return Loaded(records, str(source), shapes, parts[0].kind, rows, tuple(bad), tuple(ignored), weight)


def _bad_rows(source: str, bad: Sequence[str], rows: int) -> str:
    lines = [f"{source}: {len(bad)} of {rows} rows are bad" + (f"; the first {SHOWN}:" if len(bad) > SHOWN else ":")]
    lines += [f"  {line}" for line in bad[:SHOWN]]
    return "\n".join([*lines, "repair them, or leave them out with --bad-rows skip"])


def _read(name: str, table: Iterable[Found], kind: Kind | None) -> Loaded:
    """One table; its shape is that of the first row that has one, and the other rows must have it too."""
    found = list(table)
    if not found:
        raise ValueError(f"{name}: there are no rows")
    shape = next((shape for f in found if not f.problem and (shape := recognise(f.row))), None)
    if shape is None:
        raise ValueError(_unknown(name, found))
    wanted = kind or shape.kind
    read = shape.reader(wanted)
    if read is None:
        raise ValueError(_cannot_serve(name, shape, wanted))
    records, bad, keys = [], [], Counter()
    for one in found:
        row = {key: value for key, value in one.row.items() if value is not None}
        keys.update(row.keys())
        try:
            if one.problem:
                raise ValueError(one.problem)
            _check_keys(row, shape)
            records += read(row)
        except ValueError as error:
            bad.append(f"{one.where}: {error}")
    ignored = tuple(str(key) for key in keys if key not in (*shape.keys, *shape.optional))
    return Loaded(tuple(records), name, shape.name, wanted, len(found), tuple(bad), ignored)


def _check_keys(row: dict, shape: Shape) -> None:
    missing = [key for key in shape.keys if key not in row]
    if missing:
        raise ValueError(f"key `{missing[0]}`: missing; the file has the shape {shape.name} ({', '.join(shape.keys)})")
    if not shape.fits(row):
        raise ValueError(
            f"keys {', '.join(shape.keys)}: their values have not the shape {shape.name} of the rows before"
        )


def _unknown(name: str, found: Sequence[Found]) -> str:
    good = next((one for one in found if not one.problem), None)
    if good is None:
        return _bad_rows(name, [f"{one.where}: {one.problem}" for one in found], len(found))
    known = "\n".join(f"  {', '.join(shape.keys)}  ({shape.name}: {shape.kind})" for shape in SHAPES)
    return f"{good.where}: unknown keys: {', '.join(map(str, good.row)) or 'none'}; a row needs one of these sets:\n{known}"


def _cannot_serve(name: str, shape: Shape, kind: Kind) -> str:
    able = [f"{other.name} ({', '.join(other.keys)})" for other in SHAPES if other.reader(kind)]
    return f"{name}: its rows have the shape {shape.name} ({', '.join(shape.keys)}), which gives no {kind}; needed: {'; '.join(able)}"
