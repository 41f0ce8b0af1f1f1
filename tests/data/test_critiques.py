"""Critiques as data: rewritten answers become demonstrations and pairs, character by character; nothing is made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tutelage.data.chat import Chat
from tutelage.data.collate import comparisons, demonstrations
from tutelage.data.readers import load_records
from tutelage.models.tiny import byte_tokenizer
from tutelage.records import Answer, Critique, Message, to_json, user, write_jsonl

FIXTURES = Path(__file__).parent / "fixtures"
PLAIN, WRITTEN = FIXTURES / "prompt_response_critique.jsonl", FIXTURES / "critique_records.jsonl"


def test_a_row_is_the_critique_that_it_says():
    first, second, _, last = load_records(PLAIN).records
    expected = Critique(user("Größe?", id="k1"), Answer("Keine Ahnung"), "Nenne die Höhe.", Answer("1,80 m 📏"), "zoë")
    assert first == expected
    assert isinstance(second, Critique)
    assert [m.content for m in second.prompt.messages] == ["a", "b", "c"]
    assert (second.answer.text, second.critique) == ("d", "d is\nwrong")
    assert second.rewritten == Answer("e")
    assert isinstance(last, Critique)
    assert last.rewritten is None


def test_rewritten_answers_are_what_sft_trains_on():
    loaded = load_records(PLAIN, "demonstration")
    assert [r.messages[-1] for r in loaded.records] == [Message("assistant", t) for t in ("1,80 m 📏", "e", "y")]  # type: ignore[union-attr]
    chat = Chat.of(byte_tokenizer())
    batch = demonstrations(list(loaded.records), chat, 1000).batch  # type: ignore[arg-type]
    trained = [chat.tokenizer.decode(row[mask].tolist()) for row, mask in zip(batch.tokens, batch.mask, strict=True)]
    assert trained == ["1,80 m 📏<|im_end|>", "b<|im_end|>e<|im_end|>", "y<|im_end|>"], "earlier turns by --turns all"


def test_rewritten_beats_the_original_and_an_unchanged_one_beats_nothing():
    loaded = load_records(PLAIN, "comparison")
    assert [(r.chosen.text, r.rejected.text, r.preference) for r in loaded.records] == [  # type: ignore[union-attr]
        ("1,80 m 📏", "Keine Ahnung", 1.0),
        ("e", "d", 1.0),
    ]
    chat = Chat.of(byte_tokenizer())
    batch = comparisons(list(loaded.records), chat, 1000).batch  # type: ignore[arg-type]
    sides = [chat.tokenizer.decode(side.tokens[1][side.mask[1]].tolist()) for side in (batch.chosen, batch.rejected)]
    assert sides == ["e<|im_end|>", "d<|im_end|>"]


def test_our_own_critiques_come_back_as_they_were_written(tmp_path: Path):
    records = load_records(WRITTEN).records
    assert [(r.critique, r.rewritten.text) for r in records] == [("Say the unit. ✓", "1,80 m"), ("", "z")]  # type: ignore[union-attr]
    write_jsonl(tmp_path / "again.jsonl", (to_json(record) for record in records))
    assert load_records(tmp_path / "again.jsonl", "critique").records == records
    assert [p.messages[-1].content for p in load_records(WRITTEN, "prompt").records] == ["Größe?", "x"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"critique": " "}, r"x.jsonl:2: key `critique`"),
        ({"response": ""}, r"x.jsonl:2: key `response`"),
        ({"rewrite": [{"role": "user", "content": "u"}]}, r"x.jsonl:2: key `rewrite`: roles user"),
    ],
)
def test_what_is_wrong_is_named(change: dict, message: str, tmp_path: Path):
    row = {"prompt": "q", "response": "r", "critique": "c"}
    write_jsonl(tmp_path / "x.jsonl", [row, {**row, **change}])
    with pytest.raises(ValueError, match=message):
        load_records(tmp_path / "x.jsonl")


def test_without_any_rewrite_nothing_is_trained(tmp_path: Path):
    write_jsonl(tmp_path / "x.jsonl", [{"prompt": "q", "response": "r", "critique": "c"}])
    with pytest.raises(ValueError, match="no usable row is left of 1"):
        load_records(tmp_path / "x.jsonl", "comparison")
