"""Files and hub data sets -> rows with the place they stand at; knows JSONL, JSON, CSV, Parquet and `.gz` of each."""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(:(?P<split>[\w\[\]%:-]+))?")
SPACE = re.compile(r"\s*")


class Found(NamedTuple):
    """One row: where it stands, and its value or what is wrong with it."""

    where: str
    row: dict[str, Any]
    problem: str = ""


def find(source: str | Path) -> list[Path]:
    """The data files of a path (a folder gives all files of known formats below it), or [] for a hub name.

    Raises ValueError for what does not exist, an unknown format and a folder without data.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.is_file() and file_format(f) and not f.name.startswith("."))
        if not files:
            raise ValueError(f"{path}: no data files in this folder; known: {_known()}")
        return files
    if path.is_file():
        if not file_format(path):
            raise ValueError(f"{path}: unknown format; known: {_known()}")
        return [path]
    if HUB_NAME.fullmatch(str(source)) and not file_format(path):
        return []
    raise ValueError(f"{source}: no such file or folder")


def file_format(path: Path) -> str:
    """`.jsonl`, `.json`, `.csv` or `.parquet`; "" for any other file."""
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    return suffix if suffix in FORMATS else ""


def read_file(path: Path) -> Iterator[Found]:
    """The rows of one file. Raises ValueError for an empty or unreadable file; a broken row is given with its problem."""
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    kind = file_format(path)
    try:
        yield from _parquet(path) if kind == ".parquet" else _text(path, kind)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error})") from None


def read_hub(source: str) -> Iterator[Found]:
    """The rows of `owner/name[/config][:split]` (split: train) through the `datasets` library, which may use the network."""
    parts = HUB_NAME.fullmatch(source)
    assert parts, source
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"{source}: no such file or folder, and a hub data set needs: pip install 'tutelage[data]'"
        ) from None
    try:
        rows = datasets.load_dataset(parts["name"], parts["config"], split=parts["split"] or "train")
    except (
        Exception
    ) as error:  # whatever the hub, the network or the data set's own files raise; its text is shown whole
        raise ValueError(
            f"{source}: no such file or folder, and it cannot be read as a hub data set "
            f"owner/name[/config][:split]: {error}"
        ) from None
    for number, row in enumerate(rows, start=1):
        yield Found(f"{source}: row {number}", dict(row))


def _known() -> str:
    return ", ".join(FORMATS) + ", each also with .gz"


def _text(path: Path, kind: str) -> Iterator[Found]:
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
        if kind == ".csv":
            yield from _csv(path, file)
        elif kind == ".json":
            text = file.read()
            is_list = text.lstrip().startswith("[")
            yield from (
                _json_list(path, text) if is_list else _json_lines(path, text.split("\n"))
            )  # JSONL by another name
        else:
            yield from _json_lines(path, file)


def _json_lines(path: Path, lines: Iterable[str]) -> Iterator[Found]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield _object(f"{path}:{number}", json.loads(line.rstrip("\r\n")))
            except json.JSONDecodeError as error:
                yield Found(f"{path}:{number}", {}, f"not valid JSON ({error.msg} at column {error.colno})")


def _json_list(path: Path, text: str) -> Iterator[Found]:
    """The objects of a JSON list with the line that each begins on; a broken one ends the file, so it is an error."""
    decoder, at, line, counted = json.JSONDecoder(), text.index("[") + 1, 1, 0
    at = _skip_space(text, at)
    while not text.startswith("]", at):
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{error.lineno}: not valid JSON ({error.msg} at column {error.colno})") from None
        yield _object(f"{path}:{line}", value)
        at = _skip_space(text, end)
        if text.startswith(",", at):
            at = _skip_space(text, at + 1)
        elif not text.startswith("]", at):
            raise ValueError(f"{path}:{text.count(chr(10), 0, at) + 1}: not valid JSON (expected , or ] in the list)")
    at = _skip_space(text, at + 1)
    if at < len(text):
        raise ValueError(f"{path}:{text.count(chr(10), 0, at) + 1}: not valid JSON (text behind the end of the list)")


def _skip_space(text: str, at: int) -> int:
    match = SPACE.match(text, at)
    return match.end() if match else at


def _object(where: str, value: Any) -> Found:
    if isinstance(value, dict):
        return Found(where, value)
    return Found(where, {}, f"expected an object {{...}}, got {type(value).__name__}")


def _csv(path: Path, file: TextIO) -> Iterator[Found]:
    """Rows under the header's names; an empty cell is an absent key. A row is named by the line that it ends on."""
    reader = csv.DictReader(file, strict=True)
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                yield Found(where, {}, f"its number of cells is not the header's {len(reader.fieldnames or ())}")
            else:
                yield Found(where, {key: cell for key, cell in row.items() if cell != ""})
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.reader.line_num}: not valid CSV ({error})") from None


def _parquet(path: Path) -> Iterator[Found]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{path}: Parquet files need: pip install 'tutelage[data]'") from None
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            table = pyarrow.parquet.read_table(pyarrow.BufferReader(file.read()))
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        raise ValueError(f"{path}: not a Parquet file ({error})") from None
    for number, row in enumerate(table.to_pylist(), start=1):
        yield Found(f"{path}: row {number}", row)
