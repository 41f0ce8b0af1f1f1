"""A chat as a scorer reads it: behind every answer the same tokens, so that all answers are read at the same place.

A model read at an answer's own last token reads a full stop here and half a word there, and that token's identity drowns
what is to be judged. Behind a fixed closing it is read where the next turn opens. On the quickstart's comparisons a linear
probe of the frozen middle layers rose from 61 % to 70 % held-out accuracy by it (docs/log.md, 2026-11-21).
"""

from __future__ import annotations

from dataclasses import replace

from tutelage.data.chat import PROBE, Chat, special_tokens


def as_read(chat: Chat) -> Chat:
    """The chat with its closing: all that the template writes behind the last end of turn, as `apply_chat_template` does."""
    return replace(chat, closing=_tail(chat))


def judging(chat: Chat) -> Chat:
    """`as_read`, where the template's last words are the special token that opens a turn; the template is extended for it.

    The extended template goes into the saved model's folder, so that `tokenizer.apply_chat_template(messages)` gives what the
    model was trained on. A template without such an opening repeats the end-of-turn token.
    """
    names = special_tokens(chat.tokenizer)
    if any(name in _tail(chat) for name in names):
        return as_read(chat)
    turn = [{"role": "user", "content": PROBE}]
    done, opened = (_render(chat, turn, generation) for generation in (False, True))
    opening = opened.removeprefix(done)
    opener = min((name for name in names if name in opening), key=opening.find, default=chat.end_of_turn)
    closed = chat.template + "{% if not add_generation_prompt %}{{ " + repr(opener) + " }}{% endif %}"
    return as_read(replace(chat, template=closed))


def _tail(chat: Chat) -> str:
    """What the template writes behind the end of an assistant's last turn."""
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": PROBE}]
    return _render(chat, turns, False).rpartition(PROBE)[2].partition(chat.end_of_turn)[2]


def _render(chat: Chat, turns: list[dict[str, str]], generation: bool) -> str:
    return chat.tokenizer.apply_chat_template(
        turns, chat_template=chat.template, tokenize=False, add_generation_prompt=generation
    )
