"""Records -> batches: tokens, masks and shared prompts; every row that is cut or left out is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar, get_args

import torch

from tutelage.data.batch import Pairs, Rows, Sequences, sequences
from tutelage.data.chat import Chat, Trained, Turns, document
from tutelage.data.labelled import Labelled, LabelledWithPartner, Partnered
from tutelage.records import Answer, AnswerGroup, Comparison, Demonstration, Document, Prompt, Rating

B = TypeVar("B", bound=Rows)
TooLong = Literal["truncate", "drop", "error"]
Fate = Literal["kept", "truncated", "dropped", "fully_masked", "same_after_cut"]


@dataclass(frozen=True)
class Collated(Generic[B]):
    """A batch, and how many records met which fate; the rows of the batch are the `kept` and the `truncated` ones."""

    batch: B
    counts: Counter[str]


@dataclass(frozen=True)
class Room:
    """How long a row may be, what happens to a longer one, and what stands behind every row.

    "truncate" cuts the end of the answer, "drop" leaves the row out, "error" refuses it. A prompt that leaves no room for
    a single answer token is an error unless rows are dropped.
    """

    max_tokens: int
    too_long: TooLong = "truncate"
    closing: tuple[int, ...] = ()
    """Tokens behind every answer, also behind one that is cut: a scorer reads all answers at the same token."""
    remedy: str = "raise --max-tokens or drop long rows"
    """What the error says to do."""

    def __post_init__(self) -> None:
        if self.max_tokens < 2:
            raise ValueError(f"max_tokens: a prompt token and an answer token need at least 2; got {self.max_tokens}")
        if self.too_long not in ("truncate", "drop", "error"):
            raise ValueError(f"too_long: must be truncate, drop or error; got {self.too_long!r}")

    def fit(self, row: Trained, name: str) -> tuple[Trained, Fate]:
        """The row within `max_tokens`, and what became of it."""
        around = len(row.prompt) + len(self.closing)
        length, space = around + len(row.tokens), self.max_tokens - around
        if length > self.max_tokens and self.too_long == "drop":
            return row, "dropped"
        if space < 1 or (length > self.max_tokens and self.too_long == "error"):
            what = f"its prompt alone has {around} tokens" if space < 1 else f"it has {length} tokens"
            raise ValueError(f"{name}: {what}, allowed with the answer: {self.max_tokens}; {self.remedy}")
        tokens, mask = row.tokens[:space], row.mask[:space]
        if not any(mask):
            return Trained(row.prompt, tokens, mask), "fully_masked"
        cut = Trained(row.prompt, [*tokens, *self.closing], [*mask, *([True] * len(self.closing))])
        return cut, "truncated" if length > self.max_tokens else "kept"


def demonstrations(
    records: Sequence[Demonstration],
    chat: Chat,
    max_tokens: int,
    *,
    turns: Turns = "all",
    too_long: TooLong = "truncate",
) -> Collated[Sequences]:
    """Conversations whose assistant turns are trained, a row each. Raises ValueError where no row is left."""

    def encode(record: Demonstration) -> Trained:
        return chat.demonstration(record.messages, turns)

    return _rows(records, encode, Room(max_tokens, too_long))


def documents(
    records: Sequence[Document], tokenizer: Any, max_tokens: int, *, too_long: TooLong = "truncate"
) -> Collated[Sequences]:
    """Plain texts of which every token is trained; needs no chat template. Raises ValueError where no row is left."""
    return _rows(records, lambda record: document(tokenizer, record.text), Room(max_tokens, too_long))


def comparisons(
    records: Sequence[Comparison], chat: Chat, max_tokens: int, *, too_long: TooLong = "truncate"
) -> Collated[Pairs]:
    """Pairs of answers over shared prompts; equal prompts are stored once, so a forward computes them once.

    A pair whose two sides are the same tokens after the cut says nothing and is left out (`same_after_cut`).
    Raises ValueError where no pair is left, and where an answer's token ids were made by another tokenizer.
    """
    room = Room(max_tokens, too_long, chat.closing_tokens)
    fates: Counter[str] = Counter()
    kept: list[tuple[Comparison, Trained, Trained]] = []
    for record in records:
        chosen, chosen_fate = room.fit(_side(record, chat, record.chosen), _name(record))
        rejected, rejected_fate = room.fit(_side(record, chat, record.rejected), _name(record))
        fate = max(chosen_fate, rejected_fate, key=get_args(Fate).index)
        fate = "same_after_cut" if fate == "truncated" and chosen == rejected else fate
        fates[fate] += 1
        if fate in ("kept", "truncated"):
            kept.append((record, chosen, rejected))
    _refuse_empty(kept, fates, len(records))
    prompts, prompt_of = _merged([chosen.prompt for _, chosen, _ in kept])
    better = sequences(prompts, prompt_of, [chosen.tokens for _, chosen, _ in kept])
    worse = sequences(prompts, prompt_of, [rejected.tokens for _, _, rejected in kept])
    batch = Pairs(
        chosen=better,
        rejected=replace(worse, prompts=better.prompts),
        preference=torch.tensor([float(record.preference) for record, _, _ in kept]),
        weight=torch.tensor([float(record.weight) for record, _, _ in kept]),
        margin=torch.tensor([float(record.margin) for record, _, _ in kept]),
    )
    return Collated(batch, fates)


def ratings(
    records: Sequence[Rating], chat: Chat, max_tokens: int, *, too_long: TooLong = "truncate"
) -> Collated[Labelled]:
    """Answers judged alone, a row each, with their scores as labels; equal prompts are stored once.

    Raises ValueError where no row is left, and where an answer's token ids were made by another tokenizer.
    """
    return _labelled(records, chat, Room(max_tokens, too_long, chat.closing_tokens))[0]


def ratings_with_partners(rows: Sequence[Partnered], chat: Chat, max_tokens: int) -> Collated[LabelledWithPartner]:
    """`ratings`, each row beside its mismatched partner: its own prompt with the partner's answer, cut to `max_tokens`.

    `partner_cut` counts the partners that lost their tail: they had followed a shorter prompt. Raises as `ratings` does.
    """
    room = Room(max_tokens)
    collated, kept = _labelled([row.rating for row in rows], chat, room)
    batch, rows = collated.batch, [rows[i] for i in kept]
    fitted = [room.fit(_side(row.rating, chat, row.partner), _name(row.rating)) for row in rows]
    other = sequences(batch.answers.prompts.tokens, batch.answers.prompt_of.tolist(), [row.tokens for row, _ in fitted])
    fields = {name: getattr(batch, name) for name in ("answers", "labels", "weight")}
    mismatched = replace(other, prompts=batch.answers.prompts)
    counts = collated.counts + Counter(partner_cut=sum(fate == "truncated" for _, fate in fitted))
    return Collated(LabelledWithPartner(**fields, mismatched=mismatched), counts)


def prompts_and_answers(groups: Sequence[AnswerGroup], chat: Chat) -> Sequences:
    """Sampled answers, a prompt a group and a row an answer, group by group; the sampled ids are used as they are.

    Equal prompts of different groups stay apart: a group is what a baseline is computed over.
    """
    rows = [chat.answer_tokens(group.prompt, answer) for group in groups for answer in group.answers]
    assert all(rows), "an answer needs at least one token: the stop token is one"
    prompt_of = [p for p, group in enumerate(groups) for _ in group.answers]
    return sequences([chat.prompt_tokens(group.prompt) for group in groups], prompt_of, rows)


def check_prompts(prompts: Sequence[Prompt], chat: Chat, max_tokens: int, remedy: str = Room.remedy) -> None:
    """Raises ValueError, which says `remedy`, for the first prompt that leaves no room for an answer token."""
    room = Room(max_tokens, "error", remedy=remedy)
    for prompt in prompts:
        room.fit(Trained(chat.prompt_tokens(prompt), [0], [True]), _name(prompt))


def _rows(records: Sequence[Any], encode: Callable[[Any], Trained], room: Room) -> Collated[Sequences]:
    fitted = [room.fit(encode(record), _name(record)) for record in records]
    fates: Counter[str] = Counter(fate for _, fate in fitted)
    kept = [row for row, fate in fitted if fate in ("kept", "truncated")]
    _refuse_empty(kept, fates, len(records))
    prompts, prompt_of = _merged([row.prompt for row in kept])
    batch = sequences(prompts, prompt_of, [row.tokens for row in kept], [row.mask for row in kept])
    return Collated(batch, fates)


def _labelled(records: Sequence[Rating], chat: Chat, room: Room) -> tuple[Collated[Labelled], list[int]]:
    """The batch, and which record each of its rows is."""
    fitted = [room.fit(_side(record, chat, record.answer), _name(record)) for record in records]
    fates: Counter[str] = Counter(fate for _, fate in fitted)
    kept = [i for i, (_, fate) in enumerate(fitted) if fate in ("kept", "truncated")]
    _refuse_empty(kept, fates, len(records))
    prompts, prompt_of = _merged([fitted[i][0].prompt for i in kept])
    batch = Labelled(
        answers=sequences(prompts, prompt_of, [fitted[i][0].tokens for i in kept]),
        labels=torch.tensor([float(records[i].score) for i in kept]),
        weight=torch.tensor([float(records[i].weight) for i in kept]),
    )
    return Collated(batch, fates), kept


def _side(record: Comparison | Rating, chat: Chat, answer: Answer) -> Trained:
    chat.check_tokens(answer)
    tokens = chat.answer_tokens(record.prompt, answer)
    return Trained(chat.prompt_tokens(record.prompt), tokens, [True] * len(tokens))


def _merged(prompts: Sequence[Sequence[int]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """The distinct prompts in order of appearance, and which one each row has."""
    index: dict[tuple[int, ...], int] = {}
    prompt_of = [index.setdefault(tuple(prompt), len(index)) for prompt in prompts]
    return list(index), prompt_of


def _name(record: Any) -> str:
    """How an error names a record: its id, or how it begins."""
    prompt = getattr(record, "prompt", record)
    text = (
        record.text
        if isinstance(record, Document)
        else prompt.messages[-1 if isinstance(prompt, Prompt) else 0].content
    )
    return f"record {prompt.id!r}" if prompt.id else f"record that begins {text[:60]!r}"


def _refuse_empty(kept: Sequence[Any], fates: Counter[str], total: int) -> None:
    if not kept:
        raise ValueError(f"none of {total} records can be trained on: {dict(fates) or 'there are none'}")
