"""Rows of data -> things to judge: our own shape (prompt, responses, media), and every shape of docs/data.md."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from tutelage.data.fields import asked, optional_text, short, text
from tutelage.data.files import Found, find, read_file
from tutelage.data.readers import BadRows, load_records
from tutelage.feedback.items import EARLIER, PREFERRED, SIZES, NewItem, NewResponse
from tutelage.feedback.payloads import Task
from tutelage.feedback.tasks import MEDIA_TYPES, safe_path
from tutelage.records import Answer, AnswerGroup, Comparison, Demonstration, Document, Prompt, Rating

SHOWN = 10
LARGEST_MEDIA = 20 << 20
OF_A_RESPONSE = ("text", "media")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """A prompt and the answers to judge, as a row of data has them; `known` is the right judgment of a check item."""

    prompt: Prompt
    responses: tuple[NewResponse, ...] = ()
    media: tuple[dict[str, str], ...] = ()
    known: Any = None
    why: str = ""
    """Why it is right, in Markdown: the row's `explanation`."""


def read_groups(sources: Sequence[str], bad_rows: BadRows, media: Path | None) -> list[Group]:
    """Every row of the sources. `media`: the folder that images and videos are copied to. Raises ValueError for bad rows."""
    return [group for source in sources for group in _read_source(source, bad_rows, media)]


def _read_source(source: str, bad_rows: BadRows, media: Path | None) -> list[Group]:
    files = find(source)
    if files and _is_ours(files[0]):
        return _our_rows([row for file in files for row in read_file(file)], source, bad_rows, media)
    return [_of_record(record, source) for record in load_records(source, bad_rows=bad_rows).records]


def _is_ours(file: Path) -> bool:
    first = next((found for found in read_file(file) if not found.problem), None)
    return first is not None and "prompt" in first.row and "responses" in first.row


def _our_rows(rows: Sequence[Found], source: str, bad_rows: BadRows, media: Path | None) -> list[Group]:
    groups, bad = [], []
    for found in rows:
        try:
            if found.problem:
                raise ValueError(found.problem)
            groups.append(_our_row(found.row, Path(found.where.rpartition(":")[0]).parent, media))
        except ValueError as error:
            bad.append(f"{found.where}: {error}")
    if bad and (bad_rows == "error" or not groups):
        lines = "\n".join(f"  {line}" for line in bad[:SHOWN])
        raise ValueError(f"{source}: {len(bad)} of {len(rows)} rows are bad:\n{lines}\nrepair them, or --bad-rows skip")
    return groups


def _our_row(row: Row, folder: Path, media: Path | None) -> Group:
    given = row.get("responses")
    if not isinstance(given, list):
        raise ValueError(
            f'key `responses`: {short(given)}; allowed: a list of texts or of {{"text": ..., "media": ...}}'
        )
    answers = tuple(_response(value, f"responses[{n}]", folder, media) for n, value in enumerate(given))
    return Group(
        asked(row),
        answers,
        _media(row.get("media"), "media", folder, media),
        row.get("answer"),
        optional_text(row, "explanation"),
    )


def _response(value: Any, key: str, folder: Path, media: Path | None) -> NewResponse:
    row = value if isinstance(value, Mapping) else {"text": value}
    files = _media(row.get("media"), f"{key}.media", folder, media)
    said = text({"text": "", **row} if files else row, "text", empty=bool(files))
    return NewResponse(said, {k: v for k, v in row.items() if k not in OF_A_RESPONSE}, files)


def _media(value: Any, key: str, folder: Path, media: Path | None) -> tuple[dict[str, str], ...]:
    names = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"key `{key}`: {short(value)}; allowed: a file beside the data, or a list of them")
    return tuple(_copied(name, key, folder, media) for name in names)


def _copied(name: str, key: str, folder: Path, media: Path | None) -> dict[str, str]:
    """A copy named by its content: the file's own name may tell which policy made it, and the data may move."""
    path = safe_path(folder, name)
    if path is None:
        kinds = ", ".join(MEDIA_TYPES)
        raise ValueError(f"key `{key}`: {name!r}; allowed: a file in the folder of the data or below it, of {kinds}")
    if path.stat().st_size > LARGEST_MEDIA:
        raise ValueError(f"key `{key}`: {name!r} has {path.stat().st_size:,} bytes; allowed: {LARGEST_MEDIA:,}")
    if media is None:
        raise ValueError(f"key `{key}`: nowhere to keep {name!r}; give --media FOLDER")
    target = f"{hashlib.sha256(path.read_bytes()).hexdigest()}{path.suffix.lower()}"
    if not (media / target).exists():
        media.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, media / f".{target}.{os.getpid()}")
        (media / f".{target}.{os.getpid()}").rename(media / target)
    return {"path": target, "type": MEDIA_TYPES[path.suffix.lower()]}


def _of_record(record: Any, source: str) -> Group:
    """A record of any other shape; what is known of it (author, earlier preference) stays on the server."""
    if isinstance(record, Prompt):
        return Group(record)
    if isinstance(record, AnswerGroup):
        return Group(record.prompt, tuple(map(_answer, record.answers)))
    if isinstance(record, Comparison):
        known = {1.0: "first", 0.0: "second", 0.5: "tie"}.get(record.preference)
        answers = [_answer(record.chosen), _answer(record.rejected)]
        if known in ("first", "second"):
            better = ("first", "second").index(known)
            answers[better] = replace(answers[better], origin=answers[better].origin | {EARLIER: PREFERRED})
        return Group(record.prompt, tuple(answers), known=known)
    if isinstance(record, Rating):
        return Group(record.prompt, (_answer(record.answer),), known=record.score)
    if isinstance(record, Demonstration):
        last = max(i for i, m in enumerate(record.messages) if m.role == "assistant")
        asked_before = Prompt(record.messages[:last], record.id, record.category)
        return Group(asked_before, (NewResponse(record.messages[last].content),))
    assert isinstance(record, Document)
    raise ValueError(f"{source}: documents have no prompt; allowed: prompts, with or without answers (docs/collect.md)")


def _answer(answer: Answer) -> NewResponse:
    origin = {"author": answer.author, "stop_reason": answer.stop_reason}
    return NewResponse(answer.text, {key: value for key, value in origin.items() if value})


def guess_task(groups: Sequence[Group]) -> tuple[Task, str]:
    """(the task that the number of answers a prompt suggests, why): none, one, two or more."""
    counts = Counter(len(group.responses) for group in groups)
    most = counts.most_common(1)[0][0]
    task: Task = "demonstration" if most == 0 else "rating" if most == 1 else "preference" if most == 2 else "ranking"
    words = {0: "prompts without answers", 1: "one answer a prompt", 2: "two answers a prompt"}
    return task, words.get(most, f"{most} answers a prompt")


def to_items(groups: Sequence[Group], task: Task) -> tuple[list[NewItem], list[str]]:
    """(items, what was left out or made of it, in words). A prompt with more answers than the task shows becomes several
    items: every pair of K for preference, every answer alone for rating, yes/no and critique."""
    items, notes = [], Counter[str]()
    low, high = SIZES[task]
    for group in groups:
        unique = list({repr((r.text, r.media)): r for r in group.responses}.values())
        if len(unique) < len(group.responses):
            notes["equal answers to one prompt are shown once"] += 1
        if high == 0:
            unique = []
        if len(unique) < low:
            notes[f"has fewer than {low} different answers and is left out"] += 1
            continue
        items += [NewItem(group.prompt, chosen, media=group.media) for chosen in _split(unique, high)]
    if not items:
        raise ValueError(
            f"--task {task}: no row has {'an answer' if low == 1 else f'{low} different answers'} to judge"
        )
    return items, [f"{count} row{'s' if count > 1 else ''}: {note}" for note, count in notes.items()]


def _split(answers: list[NewResponse], high: int) -> Iterator[tuple[NewResponse, ...]]:
    if len(answers) <= high:
        yield tuple(answers)
    else:
        yield from combinations(answers, min(high, 2))


def check_items(groups: Sequence[Group], task: Task, source: str) -> list[NewItem]:
    """Items whose right judgment is known: the row's `answer`, or what a comparison or a rating already says."""
    known = ((group, _known(group, task, source)) for group in groups)
    return [replace(_one(g, task, source), check_answer=right, explanation=g.why) for g, right in known]


def _one(group: Group, task: Task, source: str) -> NewItem:
    low, high = SIZES[task]
    if not low <= len(group.responses) <= high:
        raise ValueError(
            f"{source}: a check item has {len(group.responses)} answers; allowed for {task}: {low} to {high}"
        )
    return NewItem(group.prompt, group.responses, media=group.media)


def _known(group: Group, task: Task, source: str) -> dict[str, Any]:
    """The payload, with the responses in the row's order."""
    known = group.known
    if task == "preference" and known in ("first", "second", "tie", "both_bad"):
        return {"choice": known}
    if task == "ranking" and isinstance(known, list):
        return {"ranks": known}
    if task == "rating" and isinstance(known, int | float) and known == int(known):
        return {"value": int(known)}
    if task == "yesno" and known in (True, False, 0, 1):
        return {"value": bool(known)}
    allowed = {"preference": "first, second, tie or both_bad", "ranking": "a list of ranks", "rating": "a whole number"}
    wanted = allowed.get(task, "true or false" if task == "yesno" else "no check items for this task")
    named = optional_text({"id": group.prompt.id}, "id") or group.prompt.text[:40]
    raise ValueError(f"{source}: check item {named!r}: key `answer`: {short(known)}; allowed for {task}: {wanted}")


def refuse_bomb(path: Path, most: int = 512 << 20) -> None:
    """Raises ValueError for a Parquet file that unpacks to more than `most` bytes; other uploads are not compressed."""
    if path.suffix != ".parquet":
        return
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError("Parquet files need: pip install 'tutelage[data]'") from None
    try:
        about = pyarrow.parquet.ParquetFile(path).metadata
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"not a Parquet file ({error})") from None
    size = sum(about.row_group(n).total_byte_size for n in range(about.num_row_groups))
    if size > most:
        raise ValueError(f"unpacks to {size:,} bytes; allowed: {most:,}")
