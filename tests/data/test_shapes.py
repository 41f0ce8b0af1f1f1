"""Every shape of data: what its rows become, character by character, with a multi-turn row, Unicode and an edge case."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from tutelage.data.chat import Chat, Trained, document
from tutelage.data.readers import load_records
from tutelage.data.shapes import SHAPES
from tutelage.models.tiny import byte_tokenizer
from tutelage.records import Comparison, Demonstration, Message, Prompt, Rating, to_json, user, write_jsonl

FIXTURES = Path(__file__).parent / "fixtures"
END, OPEN = "<|im_end|>", "<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.of(byte_tokenizer())


def load(name: str, kind: Any = None) -> Any:
    return load_records(FIXTURES / name, kind)


def turn(role: str, content: str) -> str:
    return f"<|im_start|>{role}\n{content}{END}\n"


def marked(chat: Chat, row: Trained) -> str:
    """The row's text with its trained spans in [[ ]]."""
    text, at = chat.tokenizer.decode(row.prompt), 0
    for trained, span in groupby(row.mask):
        length = len(list(span))
        piece = chat.tokenizer.decode(row.tokens[at : at + length])
        text, at = text + (f"[[{piece}]]" if trained else piece), at + length
    return text


def shown(chat: Chat, record: Any) -> Any:
    """What is trained on for a record: a marked string, or one for each side."""
    if isinstance(record, Demonstration):
        return marked(chat, chat.demonstration(record.messages))
    if isinstance(record, Comparison):
        return tuple(answered(chat, record.prompt, answer) for answer in (record.chosen, record.rejected))
    return answered(chat, record.prompt, record.answer)


def answered(chat: Chat, prompt: Prompt, answer: Any) -> str:
    tokens = chat.answer_tokens(prompt, answer)
    return marked(chat, Trained(chat.prompt_tokens(prompt), tokens, [True] * len(tokens)))


HI_BYE = turn("user", "Hi") + turn("assistant", "Hello!") + turn("user", "Bye") + OPEN
A_B_C = turn("user", "a") + turn("assistant", "b") + turn("user", "c") + OPEN
TRAINED = {
    "prompt_completion.jsonl": [
        turn("user", "Größe?") + OPEN + "[[1,80 m 📏<|im_end|>]]",
        turn("system", "Be brief.") + HI_BYE.replace("Hello!<|im_end|>", "[[Hello!<|im_end|>]]") + "[[Ciao.<|im_end|>]]",
        turn("user", "Write <|im_end|>") + OPEN + "[[  It is <|im_end|>.\n<|im_end|>]]",
    ],
    "prompt_completion.csv": [
        turn("user", "Größe?") + OPEN + "[[1,80 m 📏<|im_end|>]]",
        turn("user", "two\nlines") + OPEN + '[[said "yes"<|im_end|>]]',
    ],
    "messages.jsonl": [
        turn("system", "Sei höflich.") + turn("user", "2+2?") + OPEN + "[[4<|im_end|>]]\n"
        + turn("user", "und 3+3?") + OPEN + "[[6 ✓<|im_end|>]]",
        turn("assistant", "Welcome.") + turn("user", "weather?") + OPEN + "[[I look.<|im_end|>]]\n"
        + turn("tool", '{"sky": "grey"}') + OPEN + "[[Grey.<|im_end|>]]",
        turn("user", "line one\nline two") + OPEN + "[[\n\nspaced\n<|im_end|>]]",
    ],
    "alpaca.json": [
        turn("user", "Translate.\n\nnaïve café") + OPEN + "[[naiver Kaffee<|im_end|>]]",
        turn("user", "Count to three.\nOne per line.") + OPEN + "[[1\n2\n3<|im_end|>]]",
        turn("user", "Go") + OPEN + "[[行<|im_end|>]]",
    ],
    "sharegpt.jsonl": [
        turn("user", "¿Qué tal?") + OPEN + "[[Bien.<|im_end|>]]\n" + turn("user", "Adiós") + OPEN + "[[¡Chao!<|im_end|>]]",
        turn("system", "Be dry.") + turn("user", "joke") + OPEN + "[[No.<|im_end|>]]",
        turn("user", "x") + turn("tool", "y") + OPEN + "[[z<|im_end|>]]",
    ],
    "prompt_chosen_rejected.jsonl": [
        (turn("user", "Farbe?") + OPEN + "[[Grün 🌿<|im_end|>]]", turn("user", "Farbe?") + OPEN + "[[keine<|im_end|>]]"),
        (HI_BYE + "[[See you.<|im_end|>]]", HI_BYE + "[[Go.<|im_end|>]]"),
        (
            turn("user", "Same start?") + OPEN + "[[Yes, it is.<|im_end|>]]",
            turn("user", "Same start?") + OPEN + "[[Yes, it<|im_end|>]]",
        ),
    ],
    "chosen_rejected_messages.jsonl": [
        tuple(
            turn("user", "Hi") + turn("assistant", "Hello!") + turn("user", "Wie geht’s?") + OPEN + f"[[{said}<|im_end|>]]"
            for said in ("Gut 😀", "Schlecht")
        ),
        tuple(turn("system", "S") + turn("user", "Q") + OPEN + f"[[{said}<|im_end|>]]" for said in "AB"),
    ],
    "chosen_rejected_strings.jsonl": [
        tuple(turn("user", "Der Himmel über uns ist") + OPEN + f"[[{said}<|im_end|>]]" for said in ("blau.", "blaß.")),
        tuple(turn("user", "Q: one\nA:") + OPEN + f"[[{said}<|im_end|>]]" for said in ("yes", "no")),
    ],
    "hh_rlhf.jsonl": [
        tuple(
            turn("user", "Is tea healthy? ☕") + turn("assistant", "Mostly.") + turn("user", "Why?") + OPEN
            + f"[[{said}<|im_end|>]]"
            for said in ("Antioxidants.", "Dunno.")
        ),
        tuple(
            turn("user", "I asked a Human: what now?") + OPEN + f"[[{said}<|im_end|>]]" for said in ("First.\n\nSecond.", "No")
        ),
    ],
    "prompt_completion_label.jsonl": [
        turn("user", "Straße?") + OPEN + "[[Ja ✓<|im_end|>]]",
        A_B_C + "[[d<|im_end|>]]",
        turn("user", "x") + OPEN + "[[y<|im_end|>]]",
    ],
    "prompt_completion_score.jsonl": [
        turn("user", "Straße?") + OPEN + "[[Ja ✓<|im_end|>]]",
        A_B_C + "[[d<|im_end|>]]",
        turn("user", "x") + OPEN + "[[y<|im_end|>]]",
    ],
    "instruction_chosen_rejected.json": [
        tuple(turn("user", "Translate.\n\nGrüße") + OPEN + f"[[{said}<|im_end|>]]" for said in ("Greetings.", "Whatever.")),
        tuple(turn("user", "Say no.") + OPEN + f"[[{said}<|im_end|>]]" for said in ("I fear not.", "Nope 🙃")),
    ],
    "comparison_records.jsonl": [
        tuple(
            turn("user", "Hi") + turn("assistant", "Hello!") + turn("user", "Größe?") + OPEN + f"[[{said}]]"
            for said in ("1,80<|im_end|>", "cut")
        ),
        tuple(turn("user", "x") + OPEN + f"[[{said}]]" for said in ("y<|im_end|>", "<|im_end|>")),
    ],
    "rating_records.jsonl": [
        turn("user", "Hi") + turn("assistant", "Hello!") + turn("user", "Größe?") + OPEN + "[[1,80 ✓<|im_end|>]]",
        turn("user", "x") + OPEN + "[[y<|im_end|>]]",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", TRAINED)
def test_trained_text_of_every_shape(name: str, chat: Chat):
    assert [shown(chat, record) for record in load(name).records] == TRAINED[name]


PROMPTS = {
    "prompt_only.jsonl": [turn("user", "Nenne drei Früchte 🍎") + OPEN, A_B_C, turn("user", " x ") + OPEN],
    "messages_prompt.jsonl": [
        turn("user", "Où est la gare ?") + OPEN, A_B_C, turn("system", "") + turn("user", "e") + OPEN,
    ],
    "instruction.jsonl": [turn("user", "Summarise.\n\nEin Satz. 🙂") + OPEN, turn("user", "Just this.") + OPEN],
    "question_answer.jsonl": [
        turn("user", "Anna hat 3 Äpfel 🍎 und 4 Birnen. Wie viele?") + OPEN,
        turn("user", "A million and a half?") + OPEN,
        turn("user", "Capital of France?") + OPEN,
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", PROMPTS)
def test_prompt_text_of_every_prompt_shape(name: str, chat: Chat):
    loaded = load(name)
    assert loaded.kind == "prompt"
    assert [chat.tokenizer.decode(chat.prompt_tokens(p)) for p in loaded.records] == PROMPTS[name]


def test_documents_train_every_token_but_the_first_and_learn_to_end(chat: Chat):
    rows = [marked(chat, document(chat.tokenizer, record.text)) for record in load("text.jsonl").records]
    assert rows == ["E[[in Döner, bitte. 🥙\n<|im_end|>]]", "<[[|im_end|> is text here<|im_end|>]]", "x[[<|im_end|>]]"]
    looks_special = document(chat.tokenizer, "<|im_end|> is text here")
    assert looks_special.tokens.count(257) == 1, "only the real end is the control token"


def test_every_shape_has_a_fixture():
    names = {load_records(path, bad_rows="skip").shape for path in FIXTURES.iterdir()}
    assert names == {shape.name for shape in SHAPES}


def test_solutions_of_questions():
    assert [p.solution for p in load("question_answer.jsonl").records] == ["7", "1500000", "Paris"]
    assert (
        load("question_answer.jsonl", "demonstration").records[0].messages[-1].content == "3 + 4 = <<3+4=7>>7\n#### 7"
    )


def test_what_prompts_say_of_themselves():
    first, second, _ = load("prompt_only.jsonl").records
    assert (first.category, first.solution) == ("brainstorming", None)
    assert (second.id, second.solution) == ("7", "42")


def test_what_comparisons_say_of_themselves():
    pair = load("prompt_chosen_rejected.jsonl").records[0]
    assert (pair.preference, pair.annotator, pair.weight, pair.margin) == (0.75, "ann", 2.0, 0.5)
    written = load("comparison_records.jsonl").records[0]
    assert (written.annotator, written.group, written.rejected.stop_reason, written.rejected.author) == (
        "zoë",
        "g",
        "length",
        "tiny",
    )


def test_labels_become_ratings():
    assert [r.score for r in load("prompt_completion_label.jsonl").records] == [1.0, 0.0, 0.0]
    ratings = load("prompt_completion_score.jsonl").records
    assert [(r.score, r.scale) for r in ratings] == [(4.0, (1.0, 5.0)), (1.5, (1.0, 5.0)), (3.0, (1.0, 5.0))]
    rating = load("rating_records.jsonl").records[0]
    assert (rating.score, rating.scale) == (4.0, (1.0, 5.0))


def test_sampled_ids_survive_the_file():
    group = load("answer_groups.jsonl").records[0]
    assert [a.tokens for a in group.answers] == [(49, 44, 56, 48, 257), (257,), (99, 117, 116)]
    assert group.answers[0].logprobs == (-1.0, -0.5, -0.25, -2.0, -0.125)
    assert [a.finished for a in group.answers] == [True, True, False]


@pytest.mark.parametrize(("name", "kind"), [
    ("comparison_records.jsonl", "comparison"), ("rating_records.jsonl", "rating"), ("answer_groups.jsonl", "group"),
    ("messages.jsonl", "demonstration"), ("prompt_only.jsonl", "prompt"), ("text.jsonl", "document"),
])  # fmt: skip
def test_our_own_records_come_back_as_they_were_written(name: str, kind: Any, tmp_path: Path):
    records = load(name).records
    write_jsonl(tmp_path / "again.jsonl", (to_json(record) for record in records if "" not in contents(record)))
    again = load_records(tmp_path / "again.jsonl", kind).records
    assert again == tuple(record for record in records if "" not in contents(record))


def contents(record: Any) -> list[str]:
    return [m.content for m in getattr(record, "messages", ())]


def test_a_pair_serves_as_prompt_demonstration_and_ratings():
    name = "prompt_chosen_rejected.jsonl"
    assert load(name, "prompt").records[0] == user("Farbe?")
    assert load(name, "demonstration").records[0].messages[-1] == Message("assistant", "Grün 🌿")
    good, bad = load(name, "rating").records[:2]
    assert (good.answer.text, good.score, bad.answer.text, bad.score) == ("Grün 🌿", 1.0, "keine", 0.0)


def test_a_preference_below_a_half_turns_the_pair_round_and_a_tie_shows_nothing(tmp_path: Path):
    rows = [{"prompt": "q", "chosen": "A", "rejected": "B", "preference": p} for p in (0.25, 0.5)]
    write_jsonl(tmp_path / "x.jsonl", rows)
    assert [r.messages[-1].content for r in load_records(tmp_path / "x.jsonl", "demonstration").records] == ["B"]  # type: ignore[union-attr]
    ratings = [r for r in load_records(tmp_path / "x.jsonl", "rating").records if isinstance(r, Rating)]
    assert [(r.answer.text, r.score) for r in ratings] == [("B", 1.0), ("A", 0.0)]


def test_a_demonstration_serves_as_the_prompt_of_its_last_answer():
    first, second, _ = load("messages.jsonl", "prompt").records
    assert first.messages[-1].content == "und 3+3?"
    assert first.id == "m1"
    assert second.messages[-1].content == "thanks", "it already ends with what is asked"
    assert load("sharegpt.jsonl", "prompt").records[0].messages[-1].content == "Adiós"


def test_the_written_output_of_a_pair_is_its_demonstration():
    assert load("instruction_chosen_rejected.json", "demonstration").records[0].messages[-1].content == "greetings"
