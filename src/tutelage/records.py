"""What people and models said, as plain frozen records: no torch, JSON in and out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
StopReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


Messages = tuple[Message, ...]


@dataclass(frozen=True)
class Prompt:
    """What the policy is asked: the conversation so far, ending before the assistant's next turn.

    `solution` is the known right answer where there is one (verifiable rewards read it; the policy never does).
    """

    messages: Messages
    id: str = ""
    category: str = ""
    solution: str | None = None

    @property
    def text(self) -> str:
        """The last user turn, for display."""
        return self.messages[-1].content if self.messages else ""

    @property
    def key(self) -> str:
        """The id, or a hash of the conversation where the data gave none: equal prompts share it."""
        return self.id or conversation_hash(self.messages)


@dataclass(frozen=True)
class Answer:
    """What a policy or a person said to a prompt. Sampled token ids are the truth; `text` is a view of them."""

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    stop_reason: StopReason = "stop"
    author: str = ""

    @property
    def finished(self) -> bool:
        """Whether the author ended the answer (False: the token limit cut it)."""
        return self.stop_reason == "stop"


@dataclass(frozen=True)
class Comparison:
    """Two answers to one prompt and who was preferred: `preference` is P(chosen beats rejected), 0.5 for a tie."""

    prompt: Prompt
    chosen: Answer
    rejected: Answer
    preference: float = 1.0
    annotator: str = ""
    weight: float = 1.0
    margin: float = 0.0
    group: str = ""


@dataclass(frozen=True)
class Rating:
    """One answer judged alone: yes/no (0 or 1) or a score on a scale that `scale` names as (lowest, highest)."""

    prompt: Prompt
    answer: Answer
    score: float
    scale: tuple[float, float] = (0.0, 1.0)
    annotator: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class Critique:
    """Language feedback: what is wrong with an answer, and optionally how it should read."""

    prompt: Prompt
    answer: Answer
    critique: str
    rewritten: Answer | None = None
    annotator: str = ""


@dataclass(frozen=True)
class Demonstration:
    """A conversation whose assistant turns show what to do (SFT trains on them)."""

    messages: Messages
    id: str = ""
    category: str = ""


@dataclass(frozen=True)
class Document:
    """Plain text for next-token training: every token counts, no chat template."""

    text: str
    id: str = ""


Record = Prompt | Comparison | Rating | Critique | Demonstration | Document


@dataclass(frozen=True)
class AnswerGroup:
    """One prompt and several answers to it, as sampled; the row of `answers.jsonl`."""

    prompt: Prompt
    answers: tuple[Answer, ...] = field(default_factory=tuple)


def user(content: str, **fields: Any) -> Prompt:
    """A prompt of a single user turn."""
    return Prompt((Message("user", content),), **fields)


def conversation_hash(messages: Iterable[Message]) -> str:
    """Sixteen hex digits that name a conversation; splits by conversation root use it."""
    text = json.dumps([[m.role, m.content] for m in messages], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def with_id(prompt: Prompt) -> Prompt:
    """The same prompt with its id filled in from its content where it had none."""
    return prompt if prompt.id else replace(prompt, id=prompt.key)


def _compact(value: Any) -> Any:
    """Drop empty fields, so that a written record shows only what it says."""
    if isinstance(value, Mapping):
        return {k: _compact(v) for k, v in value.items() if v not in ("", None, (), [])}
    if isinstance(value, list | tuple):
        return [_compact(v) for v in value]
    return value


def to_json(record: Any) -> dict[str, Any]:
    """A record as a JSON object; prompts are message lists, answers keep text, stop reason and author."""
    return _compact(asdict(record))


def _messages(rows: Iterable[Mapping[str, Any]]) -> Messages:
    return tuple(Message(row["role"], row.get("content", "")) for row in rows)  # `to_json` leaves empty fields out


def prompt_from_json(row: Mapping[str, Any]) -> Prompt:
    """The inverse of `to_json` for a prompt."""
    return Prompt(_messages(row["messages"]), row.get("id", ""), row.get("category", ""), row.get("solution"))


def answer_from_json(row: Mapping[str, Any]) -> Answer:
    """The inverse of `to_json` for an answer."""
    return Answer(
        row.get("text", ""),
        tuple(row.get("tokens", ())),
        tuple(row.get("logprobs", ())),
        row.get("stop_reason", "stop"),
        row.get("author", ""),
    )


def comparison_from_json(row: Mapping[str, Any]) -> Comparison:
    """The inverse of `to_json` for a comparison."""
    plain = {k: row[k] for k in ("preference", "annotator", "weight", "margin", "group") if k in row}
    return Comparison(
        prompt_from_json(row["prompt"]), answer_from_json(row["chosen"]), answer_from_json(row["rejected"]), **plain
    )


def group_from_json(row: Mapping[str, Any]) -> AnswerGroup:
    """The inverse of `to_json` for an answer group."""
    return AnswerGroup(prompt_from_json(row["prompt"]), tuple(answer_from_json(a) for a in row.get("answers", ())))


def write_jsonl(path: Path | str, rows: Iterable[Mapping[str, Any]], append: bool = False) -> int:
    """Write JSON objects, one a line, UTF-8; returns how many."""
    path, count = Path(path), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if append else "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_jsonl(path: Path | str) -> Iterator[dict[str, Any]]:
    """JSON objects, one a line; a broken line raises ValueError that names file and line."""
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: not UTF-8 text (byte {error.start + 1} of the line)") from None
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: not valid JSON ({error.msg} at column {error.colno})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: expected a JSON object, got {type(row).__name__}")
            yield row
