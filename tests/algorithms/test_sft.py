"""SFT over every possible mask, and from conversations: which turns are trained, and what each token counts for."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from tutelage.algorithms.base import Models
from tutelage.algorithms.sft import SFT
from tutelage.data.batch import Sequences, sequences
from tutelage.data.chat import Chat
from tutelage.data.collate import demonstrations
from tutelage.functional.weights import weighted_sum
from tutelage.models.tiny import byte_tokenizer
from tutelage.records import Demonstration, Message

LOGP = torch.tensor([[-1.0, -2.0, -4.0], [-8.0, -16.0, -32.0]])
"""Powers of two: a sum of them says which tokens are in it."""
LENGTHS = (3, 2)


class Fixed:
    """A model that says LOGP, and something absurd where nobody asks."""

    def logprobs(self, answers: Sequences) -> torch.Tensor:
        return torch.where(answers.mask, LOGP, 1000.0)


def loss(average: str, masks: tuple[tuple[bool, ...], ...]) -> float:
    rows = sequences([(1,)], [0, 0], [[5] * n for n in LENGTHS], masks)
    method = SFT(average=average)
    losses, _ = method.losses(Models(policy=Fixed()), rows)
    return float(weighted_sum(losses, method.weights(rows)))


def every_mask() -> list[tuple[tuple[bool, ...], ...]]:
    """All 2^5 ways to train on two answers of 3 and 2 tokens."""
    bits = itertools.product((False, True), repeat=sum(LENGTHS))
    return [(b[:3], b[3:]) for b in bits]


def trained(masks, row: int) -> list[float]:
    return [-float(LOGP[row, t]) for t, kept in enumerate(masks[row]) if kept]


def test_by_hand():
    """Tokens 1 and 3 of the first row, the first of the second: -logp 1, 4 and 8."""
    masks = ((True, False, True), (True, False))
    assert loss("token", masks) == pytest.approx((1 + 4 + 8) / 3)
    assert loss("sequence", masks) == pytest.approx(((1 + 4) / 2 + 8) / 2)


def test_token_mean_over_every_mask():
    """The sum over all trained tokens of the step by their number, whichever row they stand in."""
    for masks in every_mask():
        tokens = trained(masks, 0) + trained(masks, 1)
        assert loss("token", masks) == pytest.approx(sum(tokens) / max(1, len(tokens))), masks


def test_sequence_mean_over_every_mask():
    """Each example its own mean, then the mean of the examples; one without a trained token stays in the denominator."""
    for masks in every_mask():
        means = [sum(row) / max(1, len(row)) for row in (trained(masks, 0), trained(masks, 1))]
        assert loss("sequence", masks) == pytest.approx(sum(means) / 2), masks


def test_the_two_averages_differ_where_rows_do():
    """The mutant that takes one for the other: equal only where both rows train as many tokens."""
    for masks in every_mask():
        same = math.isclose(loss("token", masks), loss("sequence", masks), rel_tol=1e-6)
        assert same == (sum(masks[0]) == sum(masks[1])), masks


CHAT = Chat.of(byte_tokenizer())
END = 257


def conversations() -> list[tuple[Message, ...]]:
    """Every order of up to five turns that the roles allow: a system or not, users and assistants in turn, either first."""
    found = []
    for system, first, turns in itertools.product((False, True), ("user", "assistant"), range(2, 6)):
        roles = [first if i % 2 == 0 else {"user": "assistant", "assistant": "user"}[first] for i in range(turns)]
        said = [Message(role, f"{role[0]}{i}") for i, role in enumerate(roles)]
        found.append(tuple([Message("system", "s")] * system + said))
    return found


@pytest.mark.parametrize("turns", ["all", "last"])
def test_turns_of_every_conversation(turns):
    """Trained: what the assistant says behind a user's turn, each time with its end of turn; `last`: only the last of them."""
    seen = 0
    for messages in conversations():
        wanted = [
            m.content
            for i, m in enumerate(messages)
            if m.role == "assistant" and any(before.role == "user" for before in messages[:i])
        ]
        if not wanted:
            with pytest.raises(ValueError, match="no assistant turn follows a user turn"):
                CHAT.demonstration(messages, turns)
            continue
        seen += 1
        batch = demonstrations([Demonstration(messages)], CHAT, 1000, turns=turns).batch
        tokens = batch.tokens[batch.mask].tolist()
        expected = [[*text.encode(), END] for text in (wanted if turns == "all" else wanted[-1:])]
        assert tokens == [t for turn in expected for t in turn], messages
        prompt = bytes(t for t in batch.prompts.tokens[0] if t < 256).decode()
        assert prompt.endswith("assistant\n")
        assert (wanted[0] in prompt) == (turns == "last" and len(wanted) > 1)
    assert seen > 10


def test_losses_of_a_dialogue():
    """Two turns of 3 and 2 tokens with their ends: by token all count the same, whatever stands between them."""
    messages = tuple(
        Message(r, c) for r, c in (("user", "a"), ("assistant", "bcd"), ("user", "efgh"), ("assistant", "i"))
    )
    batch = demonstrations([Demonstration(messages)], CHAT, 1000).batch
    weights = SFT().weights(batch)
    assert int(batch.mask.sum()) == 6
    assert_close(weights[batch.mask], torch.full((6,), 1 / 6))
    assert not weights[~batch.mask].any()
