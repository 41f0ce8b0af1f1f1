"""What a person pressed, in the order of their screen -> records about the answers themselves: the only place that undoes sides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from tutelage.feedback.payloads import DEFAULTS, Task
from tutelage.feedback.sides import to_canonical
from tutelage.records import Answer, Comparison, Critique, Demonstration, Message, Prompt, Rating, conversation_hash

MARGINS = {1: 1 / 3, 2: 2 / 3, 3: 1.0}
"""Strength -> margin of the reward loss: Llama 2's small one (arXiv:2307.09288, table 27); none stated is 0."""
Said = Literal["first", "second", "tie", "both_bad"]


@dataclass(frozen=True)
class Item:
    """What was judged; `answers` stand in the canonical order that permutations refer to."""

    id: int
    kind: Task
    prompt: Prompt
    answers: tuple[Answer, ...]
    options: Mapping[str, Any]
    check_answer: Mapping[str, Any] | None = None
    """The right payload in canonical order, where it is known."""
    repeat_of: int | None = None
    policy_step: int | None = None
    earlier: Said | None = None
    """Of two answers, the one that the data said was preferred."""

    @property
    def root(self) -> str:
        """Names the conversation by its beginning, up to the first user turn: later turns of a dialogue share it."""
        return conversation_root(self.prompt)

    @property
    def scale(self) -> tuple[float, float]:
        """(lowest, highest) of a rating."""
        low, high = {**DEFAULTS["rating"], **self.options}["scale"]
        return float(low), float(high)


@dataclass(frozen=True)
class Judgment:
    """One judgment (or skip) that counts: `payload` speaks of places on the screen, place k showed answer `permutation[k]`.

    `permutation` is None where the order on the screen is not known (imported data): the payload then is canonical.
    """

    seq: int
    item: Item
    annotator: str
    payload: Mapping[str, Any]
    permutation: tuple[int, ...] | None
    at: float = 0.0
    """Seconds since 1970, UTC."""
    active_seconds: float = 0.0
    instructions: int = 0
    """The version that was read."""
    late: bool = False

    @property
    def skipped(self) -> bool:
        """Whether nothing was judged."""
        return "skip" in self.payload

    @property
    def order(self) -> tuple[int, ...]:
        """The canonical index of the answer at each place."""
        return tuple(range(len(self.item.answers))) if self.permutation is None else self.permutation

    def canonical(self) -> dict[str, Any]:
        """The payload about the answers in canonical order, as if they had been shown so."""
        return canonical_payload(self.item.kind, self.payload, self.order)


@dataclass(frozen=True)
class Person:
    """Who judged. `name` is for the pages; exports call people by their key."""

    key: str
    name: str
    role: Literal["admin", "researcher", "labeller"] = "labeller"
    held_out: bool = False

    @property
    def expert(self) -> bool:
        """Whether this person's word is what labellers are compared with."""
        return self.role != "labeller"


@dataclass(frozen=True)
class Labels:
    """All judgments of one project that count, in the order in which they came, and who made them."""

    project: str
    kind: Task
    judgments: tuple[Judgment, ...]
    people: Mapping[str, Person]
    instructions: Mapping[int, str]
    """Text of each version."""
    flags: int = 0
    overlap: int = 1


def conversation_root(prompt: Prompt) -> str:
    """A hash of the conversation up to its first user turn: splits by it keep all turns of a dialogue on one side."""
    roles = [m.role for m in prompt.messages]
    end = roles.index("user") + 1 if "user" in roles else len(roles)
    return conversation_hash(prompt.messages[:end])


def canonical_payload(kind: Task, payload: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """A payload in shown places -> the same about canonical indexes; texts, numbers and spans have no place and stay."""
    out = dict(payload)
    if kind == "preference" and payload.get("choice") in ("first", "second"):
        place = 0 if payload["choice"] == "first" else 1
        out["choice"] = "first" if order[place] == 0 else "second"
    elif kind == "ranking" and "ranks" in payload:
        out["ranks"] = to_canonical(payload["ranks"], order)
    return out


def shown_payload(kind: Task, payload: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """The inverse of `canonical_payload`: what somebody who sees the answers in `order` has to press."""
    inverse = [list(order).index(i) for i in range(len(order))]
    return canonical_payload(kind, payload, inverse)


def pairs(kind: Task, canonical: Mapping[str, Any], count: int) -> Iterator[tuple[int, int, Said]]:
    """(i, j, who is better) for every two answers i < j that a canonical payload compares."""
    if kind == "preference" and "choice" in canonical:
        yield 0, 1, canonical["choice"]
    elif kind == "ranking" and "ranks" in canonical:
        ranks = canonical["ranks"]
        for i, j in combinations(range(count), 2):
            yield i, j, "tie" if ranks[i] == ranks[j] else "first" if ranks[i] < ranks[j] else "second"


def comparisons(one: Judgment) -> list[Comparison]:
    """The pairs that a judgment orders, better one first; a ranking's share a group and weigh 1 / C(K, 2) each.

    "Both bad" is no tie but a word on each answer alone: it gives no comparison and two ratings.
    """
    if one.skipped:
        return []
    canonical, answers = one.canonical(), one.item.answers
    found = [p for p in pairs(one.item.kind, canonical, len(answers)) if p[2] != "both_bad"]
    margin = MARGINS.get(canonical.get("strength") or 0, 0.0)
    return [
        Comparison(
            prompt=one.item.prompt,
            chosen=answers[j if said == "second" else i],
            rejected=answers[i if said == "second" else j],
            preference=0.5 if said == "tie" else 1.0,
            annotator=one.annotator,
            weight=1 / len(found),
            margin=0.0 if said == "tie" else margin,
            group=f"{one.item.id}/{one.annotator}",
        )
        for i, j, said in found
    ]


def ratings(one: Judgment) -> list[Rating]:
    """Answers judged alone: ratings, yes / no, and a no to every answer that was called bad together with the others."""
    if one.skipped:
        return []
    said, who = one.canonical(), one.annotator
    if one.item.kind == "rating":
        return [Rating(one.item.prompt, one.item.answers[0], float(said["value"]), one.item.scale, who)]
    if one.item.kind == "yesno":
        return [Rating(one.item.prompt, one.item.answers[0], float(said["value"]), (0.0, 1.0), who)]
    if said.get("choice") == "both_bad" or said.get("none_acceptable"):
        return [Rating(one.item.prompt, answer, 0.0, (0.0, 1.0), who) for answer in one.item.answers]
    return []


def critiques(one: Judgment) -> list[Critique]:
    """Language feedback; the notes on spans follow the critique of the whole, each behind its quote."""
    if one.skipped or one.item.kind != "critique":
        return []
    answer = one.item.answers[0]
    lines = [one.payload.get("text", "").strip()]
    for span in one.payload.get("spans", ()):
        note = f": {span['note']}" if span.get("note") else ""
        lines.append(f'"{answer.text[span["start"] : span["end"]]}" ({span["tag"]}){note}')
    rewrite = one.payload.get("rewrite")
    rewritten = Answer(rewrite, author=one.annotator) if rewrite and rewrite.strip() else None
    return [Critique(one.item.prompt, answer, "\n".join(filter(None, lines)), rewritten, one.annotator)]


def demonstrations(one: Judgment) -> list[Demonstration]:
    """What the person wrote as the assistant: a demonstration, or an answer rewritten after a critique."""
    if one.skipped or one.item.kind not in ("demonstration", "critique"):
        return []
    written = one.payload.get("text" if one.item.kind == "demonstration" else "rewrite") or ""
    if not written.strip():
        return []  # an erased person's words, or no rewrite
    prompt = one.item.prompt
    return [Demonstration((*prompt.messages, Message("assistant", written)), prompt.id, prompt.category)]
