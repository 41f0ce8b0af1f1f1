"""Other tools' exports -> judgments: Label Studio, Argilla, AlpacaEval, and pairs whose sides are already known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from tutelage.feedback.payloads import Task
from tutelage.records import Answer, Comparison, Message, Prompt, Rating, user

Tool = Literal["label_studio", "argilla", "alpaca_eval", "pairs"]
TOOLS: tuple[Tool, ...] = get_args(Tool)
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Imported:
    """One judgment from elsewhere: `payload` speaks of `answers` in their order here.

    `shown`: the answers stood in this order on the screen. Where that is not known, no side bias can be measured.
    """

    kind: Task
    prompt: Prompt
    answers: tuple[Answer, ...]
    annotator: str
    payload: dict[str, Any]
    shown: bool = False
    at: float | None = None
    """Seconds since 1970, UTC."""
    seconds: float = 0.0


def label_studio(row: Row) -> list[Imported]:
    """One task of Label Studio's JSON export (labelstud.io/guide/task_format, tags Pairwise, Ranker, Rating, Choices).

    `data`: the prompt under `prompt` (or `question`, `instruction`, `text`); two answers under the names that the Pairwise tag's
    `to_name` lists, or `items: [{"id", "body" or "html" or "title"}]` for a Ranker, or one under `response`, `answer` or
    `completion`. Skipped (`was_cancelled`) annotations and empty results give nothing. Raises ValueError with the key.
    """
    data = _mapping(row, "data")
    prompt = user(_first(data, ("prompt", "question", "instruction", "text")), id=str(row.get("id", "")))
    out = []
    for number, annotation in enumerate(_list(row, "annotations")):
        if annotation.get("was_cancelled"):
            continue
        who = annotation.get("completed_by", "")
        name = str(who.get("email") or who.get("id")) if isinstance(who, Mapping) else str(who)
        for result in annotation.get("result") or ():
            found = _ls_result(result, data, f"annotations[{number}].result")
            if found is None:
                continue
            kind, answers, payload = found
            seconds = float(annotation.get("lead_time") or 0.0)
            at = _seconds(annotation.get("created_at"))
            shown = kind == "preference"  # left and right are as the configuration names them
            out.append(Imported(kind, prompt, answers, name, payload, shown, at, seconds))
    return out


def argilla(row: Row) -> list[Imported]:
    """One record of Argilla: `Dataset.records.to_list()` nested (2.x), or flattened with `QUESTION.responses`, `.users`.

    `fields`: the prompt under `prompt` (or `instruction`, `question`), the answers under names that a ranking's values or a
    label's values name (`response-1`), or one under `response` (`completion`, `answer`). A ranking is a list of names, best
    first (2.x), or of {"value", "rank"} with ties (1.x). A label question that names one of two answer fields, or says
    `tie`, is a preference; a whole number is a rating; yes / no are such. Discarded and draft responses give nothing.
    """
    fields = row["fields"] if isinstance(row.get("fields"), Mapping) else row
    prompt_key = next((k for k in ("prompt", "instruction", "question") if fields.get(k)), None)
    if prompt_key is None:
        raise ValueError("key `fields`: no prompt; allowed: prompt, instruction or question")
    prompt = _asked(fields[prompt_key], str(row.get("id") or row.get("external_id") or ""))
    names = [k for k, v in fields.items() if isinstance(v, str) and k not in (prompt_key, *RESERVED) and "." not in k]
    answers = {name: fields[name] for name in names}
    out = []
    for value, who in _argilla_responses(row):
        found = _argilla_value(value, answers)
        if found is not None:
            out.append(Imported(found[0], prompt, found[1], who, found[2]))
    return out


def alpaca_eval(row: Row) -> list[Imported]:
    """One annotation of AlpacaEval / AlpacaFarm: instruction, output_1, output_2, preference 1 (first) to 2, 1.5 a tie."""
    value = row.get("preference")
    if value is None:
        return []  # the annotator gave no usable answer
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= 2:
        raise ValueError(f"key `preference`: {value!r}; allowed: a number from 1 (output_1) to 2 (output_2)")
    asked = "\n\n".join(p for p in (_text(row, "instruction"), row.get("input") or "") if p)
    answers = [Answer(_text(row, f"output_{n}"), author=str(row.get(f"generator_{n}") or "")) for n in (1, 2)]
    choice = "tie" if value == 1.5 else "first" if value < 1.5 else "second"
    who = str(row.get("annotator") or row.get("annotator_index") or "alpaca_eval")
    return [Imported("preference", user(asked), tuple(answers), who, {"choice": choice})]


def from_record(record: Any) -> list[Imported]:
    """A comparison or a yes / no that was read as docs/data.md says (HH-RLHF among them); sides are not known."""
    if isinstance(record, Comparison):
        choice = "tie" if record.preference == 0.5 else "first" if record.preference > 0.5 else "second"
        sides = record.chosen, record.rejected
        return [Imported("preference", record.prompt, sides, record.annotator or "imported", {"choice": choice})]
    if isinstance(record, Rating) and record.scale == (0.0, 1.0):
        who = record.annotator or "imported"
        return [Imported("yesno", record.prompt, (record.answer,), who, {"value": record.score > 0.5})]
    raise ValueError(f"{type(record).__name__}: no judgment; allowed: comparisons, and answers with a yes or a no")


RESERVED = ("id", "external_id", "_server_id", "status")
"""Keys of a flattened Argilla record that are no fields."""
READERS: dict[str, Callable[[Row], list[Imported]]] = {
    "label_studio": label_studio,
    "argilla": argilla,
    "alpaca_eval": alpaca_eval,
}


def guess_tool(row: Row) -> Tool:
    """Which tool wrote a row, by its keys."""
    if "annotations" in row and "data" in row:
        return "label_studio"
    if "output_1" in row and "output_2" in row:
        return "alpaca_eval"
    if ("fields" in row and "responses" in row) or any(str(key).endswith(".responses") for key in row):
        return "argilla"
    return "pairs"


def _ls_result(result: Row, data: Row, place: str) -> tuple[Task, tuple[Answer, ...], dict[str, Any]] | None:
    """(task, answers in the order they were shown, payload) of one region of a result; None for other tags."""
    value, kind = result.get("value") or {}, result.get("type")
    if kind == "pairwise":
        names = [name.strip() for name in str(result.get("to_name")).split(",")]
        if len(names) != 2:
            raise ValueError(f"key `{place}.to_name`: {result.get('to_name')!r}; allowed: the names of two answers")
        answers = tuple(Answer(_text(data, name)) for name in names)
        choice = {"left": "first", "right": "second"}.get(str(value.get("selected")), "tie")
        return "preference", answers, {"choice": choice}
    if kind == "ranker":
        return _ls_ranking(value.get("ranker"), data, place)
    single = next((k for k in ("response", "answer", "completion", "output") if data.get(k)), None)
    if single is None:
        return None
    answer = (Answer(_text(data, single)),)
    if kind == "rating":
        return "rating", answer, {"value": int(value["rating"])}
    if kind == "choices" and str(value["choices"][0]).lower() in ("yes", "no", "good", "bad"):
        return "yesno", answer, {"value": str(value["choices"][0]).lower() in ("yes", "good")}
    if kind == "textarea":
        return "critique", answer, {"text": "\n".join(value["text"]), "spans": []}
    return None


def _ls_ranking(order: Any, data: Row, place: str) -> tuple[Task, tuple[Answer, ...], dict[str, Any]]:
    """A Ranker's list of item ids, best first; in the form with buckets, `_` is the list."""
    items = _list(data, "items")
    order = order.get("_") if isinstance(order, Mapping) else order
    ids = [str(item.get("id")) for item in items]
    if not isinstance(order, list) or sorted(map(str, order)) != sorted(ids):
        raise ValueError(f"key `{place}.value.ranker`: {order!r}; allowed: every id of `items` once: {', '.join(ids)}")
    answers = tuple(Answer(_first(item, ("body", "text", "html", "title"))) for item in items)
    return "ranking", answers, {"ranks": [1 + list(map(str, order)).index(i) for i in ids], "none_acceptable": False}


def _argilla_responses(row: Row) -> Iterable[tuple[Any, str]]:
    """(value, user) of every submitted response, nested or flattened."""
    for given in (row.get("responses") or {}).values() if isinstance(row.get("responses"), Mapping) else ():
        for one in given:
            if one.get("status") in (None, "submitted"):
                yield one["value"], str(one.get("user_id") or "argilla")
    for key, values in row.items():
        if key.endswith(".responses") and values:
            users = row.get(f"{key}.users") or [None] * len(values)
            states = row.get(f"{key}.status") or [None] * len(values)
            for value, who, state in zip(values, users, states, strict=True):
                if state in (None, "submitted"):
                    yield value, str(who or "argilla")


def _argilla_value(value: Any, answers: Mapping[str, str]) -> tuple[Task, tuple[Answer, ...], dict[str, Any]] | None:
    if isinstance(value, list):
        return _argilla_ranking(value, answers)
    sides = tuple(answers)
    if len(sides) == 2 and (value in sides or value == "tie"):
        choice = "tie" if value == "tie" else "first" if value == sides[0] else "second"
        return "preference", tuple(Answer(answers[k]) for k in sides), {"choice": choice}
    single = next((answers[k] for k in ("response", "completion", "answer", "output") if k in answers), None)
    if single is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return "rating", (Answer(single),), {"value": value}
    if str(value).lower() in ("yes", "no", "true", "false"):
        return "yesno", (Answer(single),), {"value": str(value).lower() in ("yes", "true")}
    return None


def _argilla_ranking(
    value: Sequence[Any], answers: Mapping[str, str]
) -> tuple[Task, tuple[Answer, ...], dict[str, Any]]:
    ranked = {one["value"]: one.get("rank") for one in value} if isinstance(value[0], Mapping) else dict.fromkeys(value)
    if missing := [name for name in ranked if name not in answers]:
        raise ValueError(f"ranking: {missing[0]!r} is no field; allowed: {', '.join(answers)}")
    given = [place if rank is None else int(rank) for place, rank in enumerate(ranked.values(), start=1)]
    ranks = [1 + sum(other < rank for other in given) for rank in given]
    sides = tuple(Answer(answers[name]) for name in sorted(ranked))
    by_name = dict(zip(ranked, ranks, strict=True))
    return "ranking", sides, {"ranks": [by_name[name] for name in sorted(ranked)], "none_acceptable": False}


def _asked(value: Any, name: str) -> Prompt:
    if isinstance(value, list):  # a chat field
        return Prompt(tuple(Message(m["role"], m["content"]) for m in value), name)
    return user(str(value), id=name)


def _seconds(value: Any) -> float | None:
    return None if not value else datetime.fromisoformat(str(value).replace("Z", "+00:00")).timestamp()


def _mapping(row: Row, key: str) -> Row:
    if not isinstance(row.get(key), Mapping):
        raise ValueError(f"key `{key}`: {type(row.get(key)).__name__}; allowed: an object")
    return row[key]


def _list(row: Row, key: str) -> Sequence[Any]:
    if not isinstance(row.get(key), list):
        raise ValueError(f"key `{key}`: {type(row.get(key)).__name__}; allowed: a list")
    return row[key]


def _text(row: Row, key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"key `{key}`: {value!r}; allowed: a text that is not blank")
    return value


def _first(row: Row, keys: Sequence[str]) -> str:
    key = next((k for k in keys if row.get(k)), keys[0])
    return _text(row, key)
