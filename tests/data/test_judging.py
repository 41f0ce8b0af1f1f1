"""What a scorer reads behind an answer: the same tokens everywhere, and exactly what the saved template renders."""

import pytest

from tutelage.data.chat import Chat
from tutelage.data.collate import comparisons
from tutelage.data.judging import as_read, judging
from tutelage.records import Answer, Comparison, user

LLAMA = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
PLAIN = "{% for m in messages %}{{ '<|im_start|>' if m['role'] == 'user' }}{{ m['content'] }}{{ '<|im_end|>' if m['role'] == 'assistant' }}{% endfor %}"
PAIR = Comparison(user("Hi"), Answer("Hello"), Answer("Good day to", stop_reason="length"))


@pytest.fixture
def chat(tiny):
    return Chat.of(tiny[1])


def test_an_answer_is_followed_by_the_opening_of_the_next_turn(chat):
    judged = judging(chat)
    assert (as_read(chat).closing, judged.closing) == ("\n", "\n<|im_start|>")
    assert judged.prompt_tokens(PAIR.prompt) == chat.prompt_tokens(PAIR.prompt)
    batch = comparisons([PAIR], judged, 100).batch
    for side, said in ((batch.chosen, "Hello<|im_end|>"), (batch.rejected, "Good day to")):
        assert judged._decode(side.tokens[0][side.mask[0]].tolist()) == said + "\n<|im_start|>"


def test_the_saved_template_renders_what_was_trained_on(chat):
    judged = judging(chat)
    judged.tokenizer.chat_template = judged.template
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rendered = judged.tokenizer.apply_chat_template(turns, tokenize=True)["input_ids"]
    batch = comparisons([PAIR], judged, 100).batch
    assert (
        rendered
        == [*batch.chosen.prompts.tokens[0], *batch.chosen.tokens[0].tolist()[: len(rendered)]][: len(rendered)]
    )
    assert len(rendered) == len(batch.chosen.prompts.tokens[0]) + int(batch.chosen.lengths[0])
    again = Chat.of(judged.tokenizer)
    assert judging(again) == as_read(again), "a template that closes already is not closed twice"
    assert as_read(again).closing == judged.closing


@pytest.mark.parametrize(("template", "closing"), [(LLAMA, "<|im_start|>"), (PLAIN, "<|im_end|>")])
def test_other_templates(tiny, template, closing):
    tiny[1].chat_template = template
    assert judging(Chat.of(tiny[1])).closing == closing


def test_a_cut_answer_keeps_its_closing(chat):
    judged = judging(chat)
    room = len(judged.prompt_tokens(PAIR.prompt)) + 5
    batch = comparisons([PAIR], judged, room)
    assert batch.counts == {"truncated": 1}
    assert judged._decode(batch.batch.chosen.tokens[0].tolist()) == "Hel\n<|im_start|>"
    assert judged._decode(batch.batch.rejected.tokens[0].tolist()) == "Goo\n<|im_start|>"
