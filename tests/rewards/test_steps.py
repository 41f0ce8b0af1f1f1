"""An answer as steps: where each ends in tokens, what its prefix says, and any reward asked about it."""

from __future__ import annotations

from tutelage.models.tiny import byte_tokenizer
from tutelage.records import Answer, user
from tutelage.rewards.combine import combine
from tutelage.rewards.steps import score_steps, step_prefixes

STOP = 257
TOKENIZER = byte_tokenizer()


def decode(tokens) -> str:
    """As chats decode: without the stop token that ends the answer."""
    spoken = tokens[:-1] if len(tokens) and tokens[-1] == STOP else tokens
    return str(TOKENIZER.decode(list(spoken)))


def said(text: str, stop: bool = True) -> Answer:
    tokens = (*text.encode(), STOP) if stop else tuple(text.encode())
    return Answer(text, tokens, tuple(-0.1 * n for n in range(len(tokens))), "stop" if stop else "length")


def test_a_step_is_a_line_with_something_in_it():
    prefixes = step_prefixes(said("2+2\n\n is 4\nso 4"), decode)
    assert [p.text for p in prefixes] == ["2+2", "2+2\n\n is 4", "2+2\n\n is 4\nso 4"]
    assert [len(p.tokens) for p in prefixes] == [3, 10, 16], "one token a byte, and the stop token with the last step"
    assert [p.stop_reason for p in prefixes] == ["length", "length", "stop"]
    assert prefixes[0].logprobs == (0.0, -0.1, -0.2)


def test_unicode_and_odd_answers():
    assert [p.text for p in step_prefixes(said("é\nü"), decode)] == ["é", "é\nü"]
    assert [len(p.tokens) for p in step_prefixes(said("é\nü"), decode)] == [2, 6]
    assert [p.text for p in step_prefixes(said("a\n\n", stop=False), decode)] == ["a\n\n"], "what trails is no step"
    assert [len(p.tokens) for p in step_prefixes(said(""), decode)] == [1], "the stop token alone is one step"
    assert step_prefixes(Answer(""), decode) == []


def test_lines_that_end_in_one_token_are_one_step():
    """A token for the whole of `a\\nb`, and one for `\\nc`."""
    texts = {1: "a\nb", 2: "\nc"}

    def of(tokens):
        return "".join(texts[t] for t in tokens)

    assert [p.text for p in step_prefixes(Answer("a\nb\nc", (1, 2), (0.0, 0.0)), of)] == ["a\nb", "a\nb\nc"]


def test_any_reward_is_asked_about_every_prefix():
    """The solution is 4: the second step has said it, the third takes it back; the other answer has one step."""
    prompt = user("2+2?", solution="4")
    groups = [[said("well\n4\nno, 5"), said("4")], [said("7")]]
    judge = combine(["sums"])
    found = score_steps(judge, decode, [prompt, user("3+4?", solution="7")], groups)
    assert found == [[[(4, 0.0), (6, 1.0), (13, 0.0)], [(2, 1.0)]], [[(2, 1.0)]]]
