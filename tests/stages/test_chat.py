"""The terminal chat: what is shown, what the model is asked, and blind picks that a reward model can read."""

from __future__ import annotations

import io
import json
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tutelage.config import build
from tutelage.data.chat import Chat
from tutelage.data.readers import load_records
from tutelage.models.load import save_policy
from tutelage.models.sampling import Decoder, Decoding
from tutelage.models.tiny import byte_tokenizer, tiny
from tutelage.records import Answer, Comparison, Message, Prompt, user
from tutelage.stages.chat import Session, Talk, Voice, main
from tutelage.stages.picks import Ballot, picks_file
from tutelage.stages.terminal import Typist

STOP = 257


@dataclass(frozen=True)
class Scripted:
    """A decoder whose answers are given: bytes, one token each, with the stop token where the script ends in STOP."""

    answers: list[list[int]]
    decode: Callable[[Sequence[int]], str]
    heard: list[list[int]] = field(default_factory=list)
    press_at: int = 0

    def stream(self, prompt: Sequence[int], decoding: Decoding, seed: str) -> Iterator[str]:
        self.heard.append(list(prompt))
        script = self.answers[(len(self.heard) - 1) % len(self.answers)][: decoding.max_tokens]
        for count in range(1, len(script) + 1):
            if count == self.press_at:
                os.kill(os.getpid(), signal.SIGINT)
            yield self.decode([token for token in script[:count] if token != STOP])


def voice(name: str, *answers: str | list[int], **settings: Any) -> Voice:
    """A model that says these answers in turn, each ended by the stop token."""
    chat = Chat.of(byte_tokenizer())
    scripts = [[*a.encode(), STOP] if isinstance(a, str) else a for a in answers]
    model, _ = tiny(hidden=16, heads=2, kv_heads=1)
    actor = SimpleNamespace(module=model, chat=chat, decoder=Scripted(scripts, chat.decode, **settings))
    return Voice(name, actor)  # type: ignore[arg-type]


def session(*voices: Voice, room: int = 1000, ballot: Ballot | None = None, system: str | None = None) -> Session:
    return Session(voices, Decoding(20), room, 0, system, ballot)


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))


def said_to(one: Voice) -> list[str]:
    """The rendered conversation of each question that a scripted model got."""
    return [one.actor.chat.tokenizer.decode(tokens) for tokens in one.actor.decoder.heard]  # type: ignore[union-attr]


def turn(role: str, text: str) -> str:
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


OPEN = "<|im_start|>assistant\n"


def test_letters_appear_when_all_their_bytes_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    raw, typist, shown = "né🙂!".encode(), Typist(), []
    for count in range(1, len(raw) + 1):
        typist.show(raw[:count].decode("utf-8", "replace"))
        shown.append(capsys.readouterr().out)
    assert shown == ["n", "", "é", "", "", "", "🙂", "!"]
    typist.show("né🙂!\ufffd", whole=True)  # the answer really ends in half a letter
    assert capsys.readouterr().out == "\ufffd"


def test_a_model_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Typist().show("a\x1b[2Jb\x07\tc\nd\x9b", whole=True)
    assert capsys.readouterr().out == "a\ufffd[2Jb\ufffd\tc\nd\ufffd"


def test_an_answer_is_what_the_decoder_samples(tmp_path: Path, monkeypatch, capsys) -> None:
    """End to end on a real (random) model: greedy text on the screen, and the next question sees the turn before."""
    model, tokenizer = tiny(hidden=32, heads=4, kv_heads=2, std=0.3)
    save_policy(model, tokenizer, tmp_path / "model")
    typed(monkeypatch, "Hello", "", "And now?")
    cfg = build(Talk, {"model": str(tmp_path / "model"), "temperature": 0, "max_tokens": 12}, "test")
    assert main(cfg) == 0
    chat = Chat.of(tokenizer)
    decoder = Decoder(model, chat.stop_tokens, chat.decode)
    first = decoder.sample([chat.prompt_tokens(user("Hello"))], 1, Decoding(12, 0), "s")[0][0]
    history = (Message("user", "Hello"), Message("assistant", first.text), Message("user", "And now?"))
    asked = chat.prompt_tokens(Prompt(history))
    second = decoder.sample([asked], 1, Decoding(12, 0), "s")[0][0]
    printed = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", capsys.readouterr().out)
    clean = [re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", answer.text) for answer in (first, second)]
    assert f"> Hello\n{clean[0]}\n" in printed
    assert f"> And now?\n{clean[1]}\n" in printed
    assert clean[0] != clean[1]


def test_the_conversation_and_its_commands(monkeypatch, capsys) -> None:
    one = voice("m", "first", "second", "third", "fourth", "fifth")
    typed(monkeypatch, "a", "/undo", "b", "c", "/reset", "//d", "/system Be kind.", "e", "/quit", "never")
    session(one).run()
    assert said_to(one) == [
        turn("user", "a") + OPEN,
        turn("user", "b") + OPEN,
        turn("user", "b") + turn("assistant", "second") + turn("user", "c") + OPEN,
        turn("user", "/d") + OPEN,
        turn("system", "Be kind.") + turn("user", "e") + OPEN,
    ]
    assert "> e\nfifth\n> /quit\n" in capsys.readouterr().out


def test_commands_say_what_they_did(monkeypatch, capsys) -> None:
    typed(monkeypatch, "/help", "/undo", "/system", "/jump")
    session(voice("m", "x")).run()
    printed = capsys.readouterr().out
    assert all(f"/{name}" in printed for name in ("reset", "undo", "system", "quit"))
    assert "nothing to undo" in printed
    assert "the one of the chat template" in printed
    assert "no such command: /jump" in printed


def test_ctrl_c_stops_the_answer_and_not_the_program(monkeypatch, capsys) -> None:
    before = signal.getsignal(signal.SIGINT)
    one = voice("m", "abcdef", press_at=3)
    typed(monkeypatch, "a", "b")
    session(one).run()
    assert said_to(one)[1] == turn("user", "a") + turn("assistant", "abc") + turn("user", "b") + OPEN
    assert capsys.readouterr().out.count("abc\n(stopped)\n") == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_cut_and_empty_answers_are_said(monkeypatch, capsys) -> None:
    one = voice("m", "x" * 30, "", "z" * 20)  # at most 20 tokens: the third one's stop token would be the 21st
    typed(monkeypatch, "a", "b", "c")
    session(one).run()
    printed = capsys.readouterr().out
    assert printed.count("(cut after 20 tokens; --max-tokens)") == 2
    assert printed.count("(an empty answer)") == 1
    assert "assistant\n<|im_end|>" not in said_to(one)[2], "a question without an answer leaves the history"


def test_the_oldest_turns_make_room_and_are_counted(monkeypatch, capsys) -> None:
    """Room for one exchange and a question: every later question pushes one exchange out."""
    one = voice("m", "12345")
    count = one.actor.chat.prompt_tokens
    turns = (Message("user", "aaaaa"), Message("assistant", "12345"), Message("user", "bbbbb"))
    room, length = len(count(Prompt(turns))), len(count(user("aaaaa")))
    typed(monkeypatch, "aaaaa", "bbbbb", "ccccc", "ddddd", "e" * 500, "fffff")
    session(one, room=room).run()
    history = turn("assistant", "12345")
    assert said_to(one) == [
        turn("user", "aaaaa") + OPEN,
        turn("user", "aaaaa") + history + turn("user", "bbbbb") + OPEN,
        turn("user", "bbbbb") + history + turn("user", "ccccc") + OPEN,
        turn("user", "ccccc") + history + turn("user", "ddddd") + OPEN,
        turn("user", "ddddd") + history + turn("user", "fffff") + OPEN,
    ]
    printed = capsys.readouterr().out
    assert printed.count(f"longer than {room} tokens: its 2 oldest messages were dropped") == 3
    assert f"your message has {length + 495} tokens with all that belongs to it; at most {room} fit" in printed


def test_a_template_without_system_messages_says_so_and_goes_on(monkeypatch, capsys) -> None:
    one, refusal = voice("m", "fine"), "{{ raise_exception('no system') }}"
    refusing = "{% for m in messages %}{% if m.role == 'system' %}" + refusal + "{% endif %}{% endfor %}"
    chat = replace(one.actor.chat, template=refusing + one.actor.chat.template)
    strict = Voice("m", SimpleNamespace(**{**vars(one.actor), "chat": chat}))  # type: ignore[arg-type]
    typed(monkeypatch, "/system Be brief.", "a", "/system", "b")
    session(strict).run()
    printed = capsys.readouterr().out
    assert "refuses a conversation of the roles system, user" in printed
    assert "> b\nfine\n" in printed


def ballot(path: Path) -> Ballot:
    return Ballot(("A", "B"), path / "chat.jsonl", {"temperature": 0.7, "top_p": 0.95})


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "chat.jsonl").read_text(encoding="utf-8").splitlines()]


def test_picks_are_blind_until_made_and_read_back_as_comparisons(tmp_path: Path, monkeypatch, capsys) -> None:
    """Whatever the sides, `chosen` is what stood where the person pointed."""
    answers = [f"from {name} né {n}" for name in "AB" for n in range(8)]
    voices = voice("A", *answers[:8]), voice("B", *answers[8:])
    picks = ["1", "2", "2", "1", "0", "x", "s", "1", "2"]
    lines = [line for n, pick in enumerate(p for p in picks if p != "x") for line in (f"q{n}", pick)]
    lines.insert(lines.index("s"), "x")  # a slip is asked again
    typed(monkeypatch, "/system Be kind.", *lines)
    vote = ballot(tmp_path)
    session(*voices, ballot=vote, system="Old.").run()
    printed = capsys.readouterr().out

    shown = re.findall(r"Answer 1:\n(from (\w).*)\n\nAnswer 2:\n(from (\w).*)\n", printed)
    revealed = re.findall(r"Answer 1 was (\w), answer 2 was (\w)\.", printed)
    assert [(a, b) for _, a, _, b in shown] == revealed
    assert len(revealed) == 8
    assert {("A", "B"), ("B", "A")} == set(revealed)

    records = load_records(tmp_path / "chat.jsonl", "comparison").records
    kept = [(pick, one) for pick, one in zip((p for p in picks if p != "x"), shown, strict=True) if pick != "s"]
    assert len(records) == len(kept) == 7
    for record, (pick, (first, a, second, b)), row in zip(records, kept, rows(tmp_path), strict=True):
        assert isinstance(record, Comparison)
        pair = (Answer(first, author=a), Answer(second, author=b))
        chosen, rejected = pair[::-1] if pick == "2" else pair
        assert (record.chosen, record.rejected) == (chosen, rejected)
        assert record.preference == (0.5 if pick == "0" else 1.0)
        assert record.prompt.messages[0] == Message("system", "Be kind.")
        assert row["shown"] == [a, b]
    won = sum(record.chosen.author == "A" for record in records if record.preference == 1.0)
    lost = 6 - won
    tally = next(line for line in printed.splitlines() if line.startswith("A preferred to B: "))
    assert tally.startswith(f"A preferred to B: {(won + 0.5) / 7:.1%} [")
    assert tally.endswith(f"of 7 picks ({won} won, 1 tied, {lost} lost; ties count 1/2); 1 without a pick")


def test_no_name_is_shown_between_the_question_and_the_pick(tmp_path: Path, monkeypatch, capsys) -> None:
    vote = Ballot(("Alpha", "Beta"), tmp_path / "chat.jsonl", {})
    typed(monkeypatch, "q", "1")
    session(voice("Alpha", "yes"), voice("Beta", "no"), ballot=vote).run()
    printed = capsys.readouterr().out
    before = printed[: printed.index("Better: ")]
    assert "yes" in before
    assert "no" in before
    assert "Alpha" not in before
    assert "Beta" not in before


def test_the_conversation_goes_on_with_the_better_answer(tmp_path: Path, monkeypatch) -> None:
    voices = voice("A", "apple"), voice("B", "berry")
    typed(monkeypatch, *[line for n in range(6) for line in (f"q{n}", "2")])
    session(*voices, ballot=ballot(tmp_path)).run()
    said = [row["chosen"]["text"] for row in rows(tmp_path)]
    assert set(said) == {"apple", "berry"}
    assert re.findall(r"assistant\n(\w+)<", said_to(voices[0])[-1]) == said[:-1]
    assert said_to(voices[0]) == said_to(voices[1])


def test_what_cannot_be_compared_is_not_recorded(tmp_path: Path, monkeypatch, capsys) -> None:
    """Equal answers teach nothing (and readers refuse them); a stopped one was never finished."""
    vote = ballot(tmp_path)
    typed(monkeypatch, "q")
    session(voice("A", "same"), voice("B", "same"), ballot=vote).run()
    typed(monkeypatch, "q")
    session(voice("A", "long answer", press_at=2), voice("B", "other", press_at=2), ballot=vote).run()
    assert not vote.path.exists()
    printed = capsys.readouterr().out
    assert "both gave the same answer" in printed
    assert "a stopped answer cannot be compared" in printed
    assert "no picks; 1 without a pick" in printed


def test_an_empty_answer_can_lose(tmp_path: Path, monkeypatch) -> None:
    typed(monkeypatch, "q", "1")
    session(voice("A", ""), voice("B", [*b"no end"] * 9), ballot=ballot(tmp_path)).run()
    (record,) = load_records(tmp_path / "chat.jsonl", "comparison").records
    assert isinstance(record, Comparison)
    by_name = {answer.author: answer for answer in (record.chosen, record.rejected)}
    assert (by_name["A"].text, by_name["A"].tokens, by_name["A"].finished) == ("", (STOP,), True)
    assert (by_name["B"].text, by_name["B"].tokens, by_name["B"].finished) == ("no endno endno endno", (), False)


def test_sides_are_drawn_evenly_and_by_the_seed(tmp_path: Path) -> None:
    vote = ballot(tmp_path)
    orders = [[vote.order(user(f"question {n}"), f"{seed}/{n}") for n in range(400)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert 160 < orders[0].count((0, 1)) < 240  # four standard deviations
    assert set(orders[0]) == {(0, 1), (1, 0)}


def test_the_tally_by_hand(tmp_path: Path) -> None:
    """Three wins, a tie and a loss are 3.5 of 5. Wilson with z^2 = 3.8415: centre (3.5 + 1.9207) / 8.8415 = 0.6131,
    half width sqrt(3.8415 (3.5 x 1.5 / 5 + 0.9604)) / 8.8415 = 0.3143."""
    vote = ballot(tmp_path)
    vote.results += [1.0, 1.0, 0.5, 1.0, 0.0]
    expected = "A preferred to B: 70.0% [29.9%, 92.7%] of 5 picks (3 won, 1 tied, 1 lost; ties count 1/2)"
    assert vote.tally().splitlines()[0] == expected


def saved(folder: Path, seed: int) -> str:
    model, tokenizer = tiny(hidden=16, heads=2, kv_heads=1, seed=seed)
    save_policy(model, tokenizer, folder)
    return str(folder)


@pytest.mark.slow
def test_compare_end_to_end_appends_to_the_run(tmp_path: Path, monkeypatch, capsys) -> None:
    run, other = tmp_path / "runs" / "rl", saved(tmp_path / "other", 1)
    saved(run / "policy", 0)
    (run / "config.yaml").write_text("command: rl\n")
    monkeypatch.chdir(tmp_path)
    for name in (str(run), str(run / "policy")):
        typed(monkeypatch, "Hi", "1")
        cfg = build(Talk, {"model": name, "compare": other, "max_tokens": 6, "system": "Rhyme."}, "test")
        assert main(cfg) == 0
    assert str(run / "chat.jsonl") in capsys.readouterr().out
    records = load_records(run / "chat.jsonl", "comparison").records
    assert len(records) == 2
    assert all(isinstance(r, Comparison) and r.prompt.messages[0].content == "Rhyme." for r in records)
    assert not Path("chat.jsonl").exists()


def test_where_picks_go(tmp_path: Path) -> None:
    assert picks_file("builtin:smollm2-135m-instruct") == Path("chat.jsonl")
    assert picks_file(saved(tmp_path / "plain", 0)) == Path("chat.jsonl")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"compare": "MODEL"}, "that is the model itself"),
        ({"compare": "absent/x/y"}, "model: no such directory: absent/x/y"),
        ({"max_tokens": 4096}, "--max-tokens 4096: no room for a question in 4096 tokens"),
        ({"max_tokens": 50, "context": 50}, "no room for a question in 50 tokens"),
        ({"max_tokens": 5000, "context": 9000}, "no room for a question in 4096 tokens"),
    ],
)
def test_bad_input_at_the_door(tmp_path: Path, monkeypatch, settings: dict[str, Any], message: str) -> None:
    model = saved(tmp_path / "model", 0)
    typed(monkeypatch, "never read")
    given = {key: model if value == "MODEL" else value for key, value in settings.items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        main(build(Talk, {"model": model, **given}, "test"))
