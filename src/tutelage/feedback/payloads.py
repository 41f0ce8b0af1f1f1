"""What an annotator may send for each kind of task; anything else is refused with the key, what was got and what is allowed."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

Task = Literal["preference", "ranking", "rating", "yesno", "critique", "demonstration"]
TASKS: tuple[Task, ...] = get_args(Task)
LONGEST = 100_000
"""Characters in one text of a judgment."""


def _no_nul(text: str) -> str:
    if "\x00" in text:
        raise ValueError("holds a NUL character")  # PostgreSQL stores none
    return text


Text = Annotated[str, Field(max_length=LONGEST), AfterValidator(_no_nul)]
Word = Annotated[str, Field(max_length=100), AfterValidator(_no_nul)]
Tags = Annotated[list[Word], Field(max_length=50)]

METADATA_FLAGS = (
    "Fails to follow the instruction or task",
    "Inappropriate for a customer assistant",
    "Hallucination",
    "Satisfies the constraint in the instruction",
    "Contains sexual content",
    "Contains violent content",
    "Encourages or fails to discourage violence, abuse, terrorism or self-harm",
    "Denigrates a protected class",
    "Gives harmful advice",
    "Expresses an opinion",
    "Expresses a moral judgment",
)
"""InstructGPT's metadata of an answer (arXiv:2203.02155, table 3), without its overall rating."""

DEFAULTS: dict[Task, dict[str, Any]] = {
    "preference": {"strength": True, "ties": True, "both_bad": True},
    "ranking": {"ties": True, "none_acceptable": True},
    "rating": {
        "scale": [1, 7],
        "anchors": ["very bad", "bad", "rather bad", "neither", "rather good", "good", "very good"],
        "flags": list(METADATA_FLAGS),
    },
    "yesno": {"question": "Is this a good answer?", "flags": list(METADATA_FLAGS)},
    "critique": {"tags": ["wrong", "unclear", "harmful", "off topic", "style", "good"], "rewrite": True},
    "demonstration": {},
}
"""What the screen of each task offers unless the project says otherwise."""
EVERYWHERE = {
    "flag_tags": ["unsafe", "personal data", "prompt unclear", "reveals which model", "other"],
    "skip_reasons": ["unclear", "cannot judge", "offensive", "other"],
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Flag(_Strict):
    """A problem with the item, beside the judgment."""

    tags: Tags
    note: Text = ""


class _Judgment(_Strict):
    flag: Flag | None = None


class Skip(_Judgment):
    """No judgment, and why."""

    skip: Text


class Preference(_Judgment):
    """Which of two; strength 1 slightly, 2 clearly, 3 strongly."""

    choice: Literal["first", "second", "tie", "both_bad"]
    strength: Annotated[int, Field(ge=1, le=3)] | None = None


class Ranking(_Judgment):
    """The rank of the response at each place of the screen, 1 the best, equal numbers tie."""

    ranks: list[int]
    none_acceptable: bool = False

    @field_validator("ranks")
    @classmethod
    def _competition(cls, ranks: list[int]) -> list[int]:
        expected = [1 + sum(other < rank for other in ranks) for rank in ranks]
        if ranks != expected:
            raise ValueError(f"not ranks: the rank is 1 + the number of better ones, here {expected}")
        return ranks


class Rated(_Judgment):
    """A number on the project's scale."""

    value: int
    flags: Tags = []


class YesNo(_Judgment):
    """Yes or no."""

    value: bool
    flags: Tags = []


class Span(_Strict):
    """A part of the raw text, by characters (code points)."""

    start: Annotated[int, Field(ge=0)]
    end: Annotated[int, Field(ge=1)]
    tag: Word
    note: Text = ""
    quote: Text = ""


class Critiqued(_Judgment):
    """Language feedback: of the whole, of spans, and how it should read."""

    text: Text
    spans: Annotated[list[Span], Field(max_length=200)] = []
    rewrite: Text | None = None


class Written(_Judgment):
    """A demonstration: the answer that the person wrote."""

    text: Text


KINDS: dict[Task, type[_Judgment]] = {
    "preference": Preference,
    "ranking": Ranking,
    "rating": Rated,
    "yesno": YesNo,
    "critique": Critiqued,
    "demonstration": Written,
}


def check(kind: Task, payload: Any, options: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    """A payload as it is stored. `texts`: the responses in shown order. Raises ValueError with the key and what is allowed."""
    skip = isinstance(payload, dict) and "skip" in payload
    try:
        read = TypeAdapter(Skip if skip else KINDS[kind]).validate_python(payload)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "(top level)"
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"payload.{place}: {message}; got {_short(first['input'])}") from None
    if isinstance(read, Preference):
        _allowed("choice", read.choice, [c for c, on in _choices(options) if on])
    elif isinstance(read, Ranking) and len(read.ranks) != len(texts):
        raise ValueError(f"payload.ranks: {len(read.ranks)} ranks; allowed: {len(texts)}, one for each response")
    elif isinstance(read, Ranking) and not options.get("ties", True) and len(set(read.ranks)) < len(read.ranks):
        raise ValueError("payload.ranks: ties are not allowed in this project")
    elif isinstance(read, Rated):
        low, high = options["scale"]
        if not low <= read.value <= high:
            raise ValueError(f"payload.value: {read.value}; allowed: {low} to {high}")
    elif isinstance(read, Critiqued):
        _check_critique(read, texts[0])
    elif isinstance(read, Written) and not read.text.strip():
        raise ValueError("payload.text: blank; allowed: an answer")
    return read.model_dump(exclude_none=True)


def _choices(options: dict[str, Any]) -> list[tuple[str, bool]]:
    return [
        ("first", True),
        ("second", True),
        ("tie", bool(options.get("ties", True))),
        ("both_bad", bool(options.get("both_bad", True))),
    ]


def _check_critique(read: Critiqued, text: str) -> None:
    if not (read.text.strip() or read.spans or read.rewrite):
        raise ValueError("payload: empty; allowed: a text, a span with a tag, or a rewritten answer")
    for number, span in enumerate(read.spans):
        if not span.start < span.end <= len(text):
            where = f"payload.spans.{number}: {span.start} to {span.end}"
            raise ValueError(f"{where}; allowed: 0 <= start < end <= {len(text)}")
        if span.quote and span.quote != text[span.start : span.end]:
            raise ValueError(f"payload.spans.{number}.quote: is not what stands at {span.start} to {span.end}")


def _allowed(key: str, value: str, allowed: list[str]) -> None:
    if value not in allowed:
        raise ValueError(f"payload.{key}: {value!r}; allowed: {', '.join(allowed)}")


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
