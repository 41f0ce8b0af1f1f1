"""Records go to JSON and back unchanged, and a broken line is found where it stands."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.records import (
    Answer,
    AnswerGroup,
    Comparison,
    Message,
    Prompt,
    answer_from_json,
    comparison_from_json,
    conversation_hash,
    group_from_json,
    prompt_from_json,
    read_jsonl,
    to_json,
    user,
    with_id,
    write_jsonl,
)

text = st.text(max_size=8)
messages = st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant", "tool"]), text), max_size=3).map(
    tuple
)
prompts = st.builds(Prompt, messages.filter(len), text, text, st.none() | text.filter(len))
answers = st.builds(
    Answer,
    text,
    st.lists(st.integers(0, 50_000), max_size=3).map(tuple),
    st.lists(st.floats(-50, 0), max_size=3).map(tuple),
    st.sampled_from(["stop", "length"]),
    text,
)
comparisons = st.builds(
    Comparison, prompts, answers, answers, st.floats(0, 1), text, st.floats(0, 3), st.floats(0, 3), text
)
groups = st.builds(AnswerGroup, prompts, st.lists(answers, max_size=3).map(tuple))


def through_json(record):
    return json.loads(json.dumps(to_json(record), ensure_ascii=False))


@given(prompts, answers, comparisons, groups)
def test_to_json_and_back(prompt, answer, comparison, group):
    assert prompt_from_json(through_json(prompt)) == prompt
    assert answer_from_json(through_json(answer)) == answer
    assert comparison_from_json(through_json(comparison)) == comparison
    assert group_from_json(through_json(group)) == group


def test_a_written_record_shows_only_what_it_says():
    comparison = Comparison(user("Hi", id="7"), Answer("yes"), Answer("", author="bob"), preference=0.0)
    assert to_json(comparison) == {
        "prompt": {"messages": [{"role": "user", "content": "Hi"}], "id": "7"},
        "chosen": {"text": "yes", "stop_reason": "stop"},
        "rejected": {"stop_reason": "stop", "author": "bob"},
        "preference": 0.0,
        "weight": 1.0,
        "margin": 0.0,
    }


def test_file_round_trip(tmp_path):
    """Unicode, line separators inside strings, and appending."""
    rows = [{"text": "naïve 漢字 🙂"}, {"text": "one\u2028two\nthree\r\x85"}, {"n": 1}]
    path = tmp_path / "new" / "rows.jsonl"
    assert write_jsonl(path, rows[:2]) == 2
    assert write_jsonl(path, rows[2:], append=True) == 1
    assert list(read_jsonl(path)) == rows
    assert "漢字" in path.read_text("utf-8")
    assert write_jsonl(path, rows[2:]) == 1
    assert list(read_jsonl(path)) == rows[2:]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": 1', r"rows.jsonl:17: not valid JSON \(.*at column \d+\)"),
        (b"[1, 2]", r"rows.jsonl:17: expected a JSON object, got list"),
        (b'{"a": "\xff"}', r"rows.jsonl:17: not UTF-8 text \(byte 8 of the line\)"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 15 + b"\n" + line + b'\n{"a": 2}\n')
    rows = read_jsonl(path)
    assert [next(rows) for _ in range(15)] == [{"a": 1}] * 15, "blank lines are no rows"
    with pytest.raises(ValueError, match=message):
        next(rows)


def test_equal_conversations_share_their_key():
    assert user("Hi").key == conversation_hash([Message("user", "Hi")]) == with_id(user("Hi")).id
    assert user("Hi", id="mine").key == "mine" == with_id(user("Hi", id="mine")).id
    assert conversation_hash([Message("user", "a"), Message("user", "b")]) != conversation_hash([Message("user", "ab")])
    assert conversation_hash([Message("user", "a")]) != conversation_hash([Message("assistant", "a")])
    assert len(user("Hi").key) == 16


def test_what_stands_on_the_label():
    prompt = Prompt((Message("system", "Be kind."), Message("user", "Hi")))
    assert (prompt.text, Prompt(()).text) == ("Hi", "")
    assert [Answer("a").finished, Answer("a", stop_reason="length").finished] == [True, False]
