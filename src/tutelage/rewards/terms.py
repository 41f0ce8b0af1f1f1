"""One term of the weighted sum as a configuration, and its short form: `NAME=0.5`, `NAME(key=value, ...)=-1`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tutelage.config import build, config, to_dict
from tutelage.rewards.base import OnError


@config
class RewardTerm:
    """What is rewarded, and how much it counts."""

    reward: str
    """A name of docs/rewards.md, `package.module:function`, a reward model's folder or any Hugging Face classifier."""
    weight: float = 1.0
    """What the score is multiplied by; negative for something unwanted, such as a toxicity model."""
    label: str | None = None
    """Of a classifier with several labels, the one whose logit is the score."""
    of: Literal["answer", "conversation"] | None = None
    """What a classifier reads: the answer alone, or the prompt too (default where its tokenizer has a chat template)."""
    output: Literal["score", "probability"] | None = None
    """Of a classifier: its logit, or the probability; default: the probability where `tutelage reward` trained it on yes and no."""
    above: float | None = None
    """A threshold: the reward is 1 where the score is above it, else 0 (`NAME(above=0.5)=2`)."""
    on_error: OnError | None = None
    """A user's function that raises, hangs or returns no score stops the run (`error`) or scores 0 and is counted (`0`)."""
    deadline: Annotated[float, Field(gt=0)] = 60.0
    """Seconds that one call of a user's function may take."""
    settings: dict[str, float | int | str | bool] = Field(default_factory=dict)
    """Keywords that go to a rule or a user's function."""


_KNOWN = {f.name for f in fields(RewardTerm)} - {"reward", "weight", "settings"}
_VALUE = r'"(?:[^"\\]|\\.)*"|[^,()"]+'
_PAIR = re.compile(rf"\s*(\w+)\s*=\s*({_VALUE})\s*(?:,|$)")
_TERM = re.compile(rf"(?P<name>.+?)(?:\((?P<pairs>\s*\w+\s*=(?:{_VALUE}|,)*)\))?(?:=(?P<weight>[^=/()]+))?")


def parse_term(text: str) -> RewardTerm:
    """The short form as a term; a text that names a directory is its path, whatever is in it. ValueError where it is neither."""
    if text and Path(text).is_dir():
        return RewardTerm(reward=text)
    found = _TERM.fullmatch(text)
    if found is None:
        raise ValueError(f"reward {text!r}: expected NAME, NAME=WEIGHT or NAME(key=value, ...)=WEIGHT")
    term: dict[str, Any] = {"reward": found["name"], "settings": {}}
    if found["weight"] is not None:
        term["weight"] = _number(found["weight"], f"reward {text!r}: the weight behind the last `=`")
    for key, value in _pairs(found["pairs"] or "", text):
        if key in ("deadline", "above"):
            term[key] = _number(value, f"reward {text!r}: {key}")
        elif key in _KNOWN:
            term[key] = _unquoted(value)
        else:
            term["settings"][key] = _setting(value)
    return build(RewardTerm, term, f"reward {text!r}")


def term_text(term: RewardTerm) -> str:
    """The inverse of `parse_term`."""
    plain = {f.name: f.default for f in fields(RewardTerm)}
    pairs = {k: v for k, v in to_dict(term).items() if k in _KNOWN and v != plain[k]} | term.settings
    inside = ", ".join(f"{k}={_quoted(v)}" for k, v in pairs.items())
    return term.reward + (f"({inside})" if inside else "") + (f"={term.weight!r}" if term.weight != 1 else "")


def _as_text(value: Any) -> Any:
    """A recipe may write a term as a mapping; the settings keep the short form, so that flags and files are the same."""
    return term_text(build(RewardTerm, value, "reward")) if isinstance(value, Mapping) else value


RewardText = Annotated[str, BeforeValidator(_as_text)]
"""The type of a recipe's or a flag's `reward`: `brevity=0.1`, or in YAML also `{reward: brevity, weight: 0.1}`."""


def _pairs(text: str, where: str) -> list[tuple[str, str]]:
    pairs, at = [], 0
    while at < len(text.rstrip()):
        found = _PAIR.match(text, at)
        if found is None:
            raise ValueError(f"reward {where!r}: expected key=value, ... in the brackets; got {text[at:]!r}")
        pairs.append((found[1], found[2].strip()))
        at = found.end()
    return pairs


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where} must be a finite number; got {text!r}")
    return value


def _unquoted(text: str) -> str:
    return json.loads(text) if text.startswith('"') else text


def _setting(text: str) -> float | int | str | bool:
    """`60`, `0.5`, `true` or text; quoted text stays text."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return value if isinstance(value, float | int | str | bool) else text


def _quoted(value: Any) -> str:
    """Bare where it reads back as itself."""
    if not isinstance(value, str):
        return json.dumps(value)
    return (
        value
        if re.fullmatch(r"[A-Za-z_][\w.-]*", value) and value not in ("true", "false", "null")
        else json.dumps(value)
    )
