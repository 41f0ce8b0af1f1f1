"""Two answers in one row: what stands where, both orders alike, nothing cut unfairly."""

from __future__ import annotations

import pytest

from tutelage.data.chat import Chat
from tutelage.data.two_answers import SECOND, VERDICT, Frame, fair_cut, two_answers
from tutelage.records import Answer, Comparison, Message, Prompt, user


@pytest.fixture
def chat(tiny):
    return Chat.of(tiny[1])


def shown(chat, rows, row):
    ids = [*rows.prompts.tokens[int(rows.prompt_of[row])], *rows.tokens[row, : int(rows.lengths[row])].tolist()]
    return chat.tokenizer.decode(ids)


def turn(role, text):
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def conversation(question, first, second):
    whole = turn("user", question) + turn("assistant", first) + turn("user", SECOND) + turn("assistant", second)
    return whole + turn("user", VERDICT) + "<|im_start|>assistant\n"


def test_both_orders_read_as_a_conversation_with_a_verdict_to_come(chat):
    records = [
        Comparison(user("Say é."), Answer("é"), Answer("a long one"), preference=0.5, weight=2.0),
        Comparison(user("Say no."), Answer("no"), Answer("yes")),
    ]
    batch = two_answers(records, chat, 512).batch
    assert shown(chat, batch.forward, 0) == conversation("Say é.", "é", "a long one")
    assert shown(chat, batch.backward, 0) == conversation("Say é.", "a long one", "é")
    assert shown(chat, batch.forward, 1) == conversation("Say no.", "no", "yes")
    assert batch.preference.tolist() == [0.5, 1.0]
    assert batch.weight.tolist() == [2.0, 1.0]


def test_the_mask_marks_each_answer_once(chat):
    batch = two_answers([Comparison(user("Q"), Answer("first"), Answer("other"))], chat, 512).batch
    marked = [chat.tokenizer.decode(rows.tokens[0][rows.mask[0]]) for rows in (batch.forward, batch.backward)]
    assert marked == ["other<|im_end|>", "first<|im_end|>"]


def test_it_is_the_template_s_own_conversation(chat):
    """Token by token what `apply_chat_template` gives for the same five turns, in a prompt of several turns too."""
    prompt = Prompt(
        (Message("system", "Be kind."), Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    )
    batch = two_answers([Comparison(prompt, Answer("x"), Answer("y"))], chat, 512).batch
    turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
    turns += [{"role": r, "content": c} for r, c in [("assistant", "x"), ("user", SECOND), ("assistant", "y")]]
    turns += [{"role": "user", "content": VERDICT}]
    whole = chat.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert shown(chat, batch.forward, 0) == whole


def test_an_unfinished_answer_has_no_end_of_turn(chat):
    batch = two_answers([Comparison(user("Q"), Answer("cut", stop_reason="length"), Answer("z"))], chat, 512).batch
    assert "\ncut<|im_start|>user" in shown(chat, batch.forward, 0).replace("cut\n", "cut")


@pytest.mark.parametrize(
    ("first", "second", "space", "expected"),
    [
        ("abc", "de", 5, ("abc", "de")),
        ("abcdef", "xy", 5, ("abc", "xy")),
        ("xy", "abcdef", 5, ("xy", "abc")),
        ("abcdef", "uvwxyz", 6, ("abc", "uvw")),
        ("abcdefg", "uvwxyz", 7, ("abcd", "uvw")),
        ("abcdef", "uvwxyz", 7, ("abc", "uvwx")),
    ],
)
def test_fair_cut_by_hand(first, second, space, expected):
    codes = [list(map(ord, text)) for text in (first, second)]
    cut = fair_cut(*codes, space)
    assert tuple("".join(map(chr, ids)) for ids in cut) == expected
    assert fair_cut(*codes[::-1], space) == cut[::-1]
    assert sum(map(len, cut)) == min(space, len(first) + len(second))


def test_long_answers_are_cut_in_both_orders_alike_and_counted(chat):
    records = [
        Comparison(user("Q"), Answer("a" * 60), Answer("b" * 60)),
        Comparison(user("Q"), Answer("short"), Answer("c")),
        Comparison(user("Q"), Answer("d" * 60), Answer("d" * 60 + "e")),
    ]
    frame = Frame.of(chat)
    room = len(chat.prompt_tokens(user("Q"))) + len(frame.between) + len(frame.behind) + 41
    collated = two_answers(records, chat, room)
    assert collated.counts["kept"] == 1
    assert collated.counts["truncated"] == 2, "an odd token goes to one of two answers of 60 letters d"
    forward, backward = collated.batch.forward, collated.batch.backward
    totals = forward.lengths + len(forward.prompts.tokens[0])
    assert int(totals[0]) == room == int(backward.lengths[0]) + len(backward.prompts.tokens[0])
    assert sorted(forward.tokens[0].tolist()) == sorted(backward.tokens[0].tolist())


def test_what_cannot_be_read_is_refused(chat):
    with pytest.raises(ValueError, match="no room for the answers in 40; raise --max-tokens"):
        two_answers([Comparison(user("Q"), Answer("a"), Answer("b"))], chat, 40)
    frame = Frame.of(chat)
    tight = len(chat.prompt_tokens(user("Q"))) + len(frame.between) + len(frame.behind) + 2
    with pytest.raises(ValueError, match=r"none of 1 comparisons can be trained on: .*same_after_cut"):
        two_answers([Comparison(user("Q"), Answer("aa"), Answer("ab"))], chat, tight)
