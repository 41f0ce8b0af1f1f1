"""Labelled answers: who is whose partner, and batches of them."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from tutelage.data.chat import Chat
from tutelage.data.collate import ratings, ratings_with_partners
from tutelage.data.labelled import Partnered, with_partners
from tutelage.data.readers import load_records
from tutelage.models.tiny import byte_tokenizer
from tutelage.records import Answer, Message, Prompt, Rating, user

END = 257
CHAT = Chat.of(byte_tokenizer())
ROOM = len(CHAT.prompt_tokens(user("q")))


def rating(prompt: str, answer: str, score: float = 1.0, **fields) -> Rating:
    return Rating(user(prompt), Answer(answer), score, **fields)


def said(rows: list[Partnered]) -> dict[tuple[str, str], str]:
    return {(row.rating.prompt.text, row.rating.answer.text): row.partner.text for row in rows}


RECORDS = [rating(f"prompt {i % 5}", f"answer {i}", float(i % 2)) for i in range(15)]


def test_no_record_is_its_own_partner_nor_that_of_its_prompt():
    rows = with_partners(RECORDS)
    prompt_of = {r.answer.text: r.prompt.text for r in RECORDS}
    assert all(prompt_of[row.partner.text] != row.rating.prompt.text for row in rows)
    assert Counter(row.partner.text for row in rows) == Counter(r.answer.text for r in RECORDS), "each once"


def test_partners_do_not_depend_on_the_order_of_the_records():
    expected = said(with_partners(RECORDS))
    for seed in range(5):
        shuffled = random.Random(seed).sample(RECORDS, len(RECORDS))
        assert said(with_partners(shuffled)) == expected


def test_chosen_and_rejected_of_one_prompt_are_never_partners():
    """The trap: pairs as two neighbouring rows, each paired with the next row."""
    rows = with_partners(
        [rating(f"p{i}", text, score) for i in range(6) for text, score in ((f"y{i}", 1.0), (f"n{i}", 0.0))]
    )
    assert all(row.rating.answer.text[1:] != row.partner.text[1:] for row in rows)


def test_one_prompt_with_most_of_the_records():
    """Seven of nine: the two others serve as partners several times, and nobody is paired within the prompt."""
    rows = with_partners([rating("big", f"b{i}") for i in range(7)] + [rating("small", "s"), rating("other", "o")])
    assert {row.partner.text for row in rows if row.rating.prompt.text == "big"} == {"s", "o"}
    assert all(row.partner.text[0] == "b" for row in rows if row.rating.prompt.text == "small")


def test_one_prompt_alone_is_an_error():
    with pytest.raises(ValueError, match="at least 2 different prompts; got 3 records of 1"):
        with_partners([rating("q", text) for text in "abc"])
    same = [Rating(Prompt((Message("user", "q"),), id=str(i)), Answer(str(i)), 1.0) for i in range(3)]
    with pytest.raises(ValueError, match="got 3 records of 1"):
        with_partners(same)  # three ids, one conversation


def test_ratings_by_hand():
    out = ratings([rating("q", "ab", 0.0, weight=2.0), rating("r", "c"), rating("q", "d")], CHAT, 100)
    assert out.batch.answers.tokens.tolist() == [[97, 98, END], [99, END, 0], [100, END, 0]]
    assert out.batch.answers.prompt_of.tolist() == [0, 1, 0]
    assert out.batch.labels.tolist() == [0.0, 1.0, 1.0]
    assert out.batch.weight.tolist() == [2.0, 1.0, 1.0]
    assert out.counts == {"kept": 3}
    empty = Rating(user("q"), Answer("", stop_reason="length"), 1.0)
    left = ratings([empty, rating("r", "c", 0.5)], CHAT, 100)
    assert (left.batch.labels.tolist(), left.counts) == ([0.5], {"fully_masked": 1, "kept": 1})


def test_a_mismatched_row_is_the_rows_prompt_with_the_partners_answer():
    rows = [Partnered(rating("q", "ab", 0.0), Answer("wxyz")), Partnered(rating("qq", "c"), Answer("d"))]
    out = ratings_with_partners(rows, CHAT, ROOM + 3)
    batch = out.batch
    assert batch.mismatched.prompts is batch.answers.prompts
    assert torch.equal(batch.mismatched.prompt_of, batch.answers.prompt_of)
    assert batch.mismatched.tokens.tolist() == [[119, 120, 121], [100, END, 0]]
    assert batch.answers.tokens.tolist() == [[97, 98, END], [99, END, 0]]
    assert out.counts == {"kept": 2, "partner_cut": 1}
    assert batch.sequences() == (batch.answers,), "what is not trained on costs no room in a micro-batch"
    swapped = batch[[1, 0]]
    assert swapped.mismatched.tokens[0].tolist() == [100, END, 0]
    assert swapped.labels.tolist() == [1.0, 0.0]


def test_rows_without_a_token_leave_with_their_partners():
    empty = Rating(user("q"), Answer("", stop_reason="length"), 1.0)
    batch = ratings_with_partners(
        [Partnered(empty, Answer("x")), Partnered(rating("q", "c"), Answer("d"))], CHAT, 100
    ).batch
    assert batch.mismatched.tokens.tolist() == [[100, END]]


def test_pairs_and_labels_are_read_with_their_weights(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "q", "chosen": "a", "rejected": "b", "weight": 0.5, "preference": 0.0}\n')
    found = load_records(file, "rating").records
    assert [(r.answer.text, r.score, r.weight) for r in found if isinstance(r, Rating)] == [
        ("b", 1.0, 0.5),
        ("a", 0.0, 0.5),
    ]
    file.write_text('{"prompt": "q", "completion": "a", "label": true, "weight": 3, "annotator": "bob"}\n')
    (one,) = load_records(file, "rating").records
    assert isinstance(one, Rating)
    assert (one.weight, one.annotator, one.score) == (3.0, "bob", 1.0)
    file.write_text('{"prompt": "q", "completion": "a", "label": true, "weight": -1}\n')
    with pytest.raises(ValueError, match=r"pairs.jsonl:1: key `weight`"):
        load_records(file, "rating")
