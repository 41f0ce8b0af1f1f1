"""Answers judged alone: batches with a label a row, and the mismatched partner that KTO compares a row with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tutelage.data.batch import Rows, Sequences
from tutelage.records import Answer, Rating, conversation_hash


@dataclass(frozen=True)
class Labelled(Rows):
    """Answers with a label each: 1 yes and 0 no, or a score on the records' scale. `weight` is what the row counts for."""

    answers: Sequences
    labels: Float[Tensor, "B"]
    weight: Float[Tensor, "B"]


@dataclass(frozen=True)
class LabelledWithPartner(Labelled):
    """Labelled answers; row b of `mismatched` is row b's prompt with an answer that was given to another prompt."""

    mismatched: Sequences

    def sequences(self) -> tuple[Sequences, ...]:
        """The answers alone: nothing is trained on `mismatched`, which is only scored, before the step, without gradient."""
        return (self.answers,)


@dataclass(frozen=True)
class LabelledWithReference(Labelled):
    """Labelled answers with what KTO holds fixed during a step.

    `z0` is one number, repeated. `share` is the part of the step's weight that rows with this row's label have.
    """

    ref_logprobs: Float[Tensor, "B"]
    z0: Float[Tensor, "B"]
    share: Float[Tensor, "B"]


@dataclass(frozen=True)
class Partnered:
    """A judged answer, and the answer to another prompt that is its mismatched partner for good."""

    rating: Rating
    partner: Answer


def with_partners(records: Sequence[Rating]) -> list[Partnered]:
    """Every record with its partner, in the order of their content. Who is whose partner depends on the set of records alone.

    So neither the records' order nor the batch they fall into moves KTO's z0. Each answer is the partner of exactly one
    record, unless more than half of the records have the same prompt. Raises ValueError where all of them do.
    """
    keyed = sorted(
        (((conversation_hash(r.prompt.messages), *_content(r)), r) for r in records), key=lambda pair: pair[0]
    )
    prompts, ordered = [key[0] for key, _ in keyed], [record for _, record in keyed]
    if len(set(prompts)) < 2:
        raise ValueError(
            "KTO compares an answer with one to another prompt (its z0): the records need at least 2 different prompts; "
            f"got {len(records)} records of {len(set(prompts))}"
        )
    # Records of a prompt stand together, so a shift by the largest prompt's count leads out of every prompt
    shift = max(Counter(prompts).values())
    partnered = []
    for place, record in enumerate(ordered):
        other = (place + shift) % len(ordered)
        while prompts[other] == prompts[place]:
            other = (other + 1) % len(ordered)
        partnered.append(Partnered(record, ordered[other].answer))
    return partnered


def _content(record: Rating) -> tuple[str, str, float, str]:
    answer = record.answer
    return answer.text, repr(answer.tokens), record.score, record.annotator
