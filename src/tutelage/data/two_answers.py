"""Two answers in one row, in both orders: what a model reads that says which of them is preferred."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.data.batch import Rows, Sequences, concat, sequences
from tutelage.data.chat import PROBE, Chat, Trained
from tutelage.data.collate import Collated
from tutelage.records import Answer, Comparison, Message, Prompt

SECOND = "Now a second answer to the same message, to be compared with the first."
"""What the user says between the two answers."""
VERDICT = "Is the first answer better than the second?"
"""What the user says behind them: every row is read at the same token, where the reply would open."""


@dataclass(frozen=True)
class TwoAnswers(Rows):
    """Comparisons read in both orders: `forward` says chosen then rejected, `backward` the other way round.

    `preference` is P(chosen beats rejected), 1/2 a tie; `weight` what the row counts for. The masks are True on a row's
    second answer, so that each answer is marked once.
    """

    forward: Sequences
    backward: Sequences
    preference: Float[Tensor, "B"]
    weight: Float[Tensor, "B"]

    def both(self) -> Sequences:
        """Forward rows, then backward rows, over the same prompts: one forward computes each prompt once."""
        return concat(self.forward, self.backward)


@dataclass(frozen=True)
class Frame:
    """The conversation around two answers: the user asks, hears one, asks for another, hears it, asks which is better.

    >>> Frame.of(chat).rows(prompt_ids, first_ids, second_ids, 512)
    """

    between: tuple[int, ...]
    """Ids from behind the first answer's end of turn to the opening of the second answer."""
    behind: tuple[int, ...]
    """Ids from behind the second answer's end of turn to the opening of the verdict."""

    @staticmethod
    def of(chat: Chat) -> Frame:
        """Read off the chat template. Raises ValueError for one that shows no end of turn behind an earlier answer."""
        return Frame(_user_turn(chat, SECOND), _user_turn(chat, VERDICT))

    def rows(
        self, prompt: Sequence[int], first: Sequence[int], second: Sequence[int], max_tokens: int
    ) -> tuple[Trained, Trained, bool]:
        """The row of each order and whether an answer was cut; both orders hold the same tokens of each answer.

        Raises ValueError where the prompt leaves no token for each answer.
        """
        around = len(prompt) + len(self.between) + len(self.behind)
        space = max_tokens - around
        if space < 2:
            raise ValueError(
                f"a prompt and what stands between and behind two answers have {around} tokens: no room for the answers in "
                f"{max_tokens}; raise --max-tokens"
            )
        a, b = fair_cut(first, second, space)
        return self._row(prompt, a, b), self._row(prompt, b, a), len(a) + len(b) < len(first) + len(second)

    def _row(self, prompt: Sequence[int], first: Sequence[int], second: Sequence[int]) -> Trained:
        before, behind = [*first, *self.between], list(self.behind)
        mask = [False] * len(before) + [True] * len(second) + [False] * len(behind)
        return Trained(list(prompt), [*before, *second, *behind], mask)


def _user_turn(chat: Chat, text: str) -> tuple[int, ...]:
    """What the template writes from behind an answer's end of turn, over a user's turn, to the next answer's opening."""
    asked = (Message("user", PROBE),)
    opening = len(chat.prompt_tokens(Prompt(asked)))
    whole = chat.prompt_tokens(Prompt((*asked, Message("assistant", PROBE), Message("user", text))))
    ends = [at for at in range(opening, len(whole)) if whole[at] in chat.stop_tokens]
    if not ends:
        raise ValueError("chat template: no end-of-turn token behind an earlier answer; use --chat-template chatml")
    return tuple(whole[ends[0] + 1 :])


def fair_cut(first: Sequence[int], second: Sequence[int], space: int) -> tuple[Sequence[int], Sequence[int]]:
    """Both answers in `space` tokens: a short one whole and the other cut, or each cut to half.

    Swapping the answers swaps the results, so no order loses more: an odd token goes to the longer answer, of two equally
    long ones to the one with the greater ids.
    """
    if len(first) + len(second) <= space:
        return first, second
    one, other = space // 2, space // 2
    if min(len(first), len(second)) <= space // 2:
        one, other = (
            (len(first), space - len(first)) if len(first) < len(second) else (space - len(second), len(second))
        )
    elif space % 2:
        longer = (len(first), *first) > (len(second), *second)
        one, other = one + longer, other + (not longer)
    return first[:one], second[:other]


def two_answers(records: Sequence[Comparison], chat: Chat, max_tokens: int) -> Collated[TwoAnswers]:
    """Comparisons as rows of both orders; equal prompts are stored once. Long answers are cut, and counted.

    A pair whose two sides are the same tokens after the cut says nothing and is left out (`same_after_cut`).
    Raises ValueError where no pair is left, and where an answer's token ids were made by another tokenizer.
    """
    frame = Frame.of(chat)
    fates: Counter[str] = Counter()
    kept: list[tuple[Comparison, Trained, Trained]] = []
    for record in records:
        prompt = chat.prompt_tokens(record.prompt)
        chosen, rejected = (_tokens(record, answer, chat) for answer in (record.chosen, record.rejected))
        forward, backward, cut = frame.rows(prompt, chosen, rejected, max_tokens)
        same = forward == backward
        fates["same_after_cut" if same else "truncated" if cut else "kept"] += 1
        if not same:
            kept.append((record, forward, backward))
    if not kept:
        raise ValueError(f"none of {len(records)} comparisons can be trained on: {dict(fates) or 'there are none'}")
    return Collated(_batch(kept), fates)


def _tokens(record: Comparison, answer: Answer, chat: Chat) -> list[int]:
    chat.check_tokens(answer)
    return chat.answer_tokens(record.prompt, answer)


def _batch(kept: Sequence[tuple[Comparison, Trained, Trained]]) -> TwoAnswers:
    index: dict[tuple[int, ...], int] = {}
    prompt_of = [index.setdefault(tuple(forward.prompt), len(index)) for _, forward, _ in kept]
    forward = sequences(list(index), prompt_of, [f.tokens for _, f, _ in kept], [f.mask for _, f, _ in kept])
    backward = sequences(list(index), prompt_of, [b.tokens for _, _, b in kept], [b.mask for _, _, b in kept])
    return TwoAnswers(
        forward,
        replace(backward, prompts=forward.prompts),
        torch.tensor([float(record.preference) for record, _, _ in kept]),
        torch.tensor([float(record.weight) for record, _, _ in kept]),
    )
