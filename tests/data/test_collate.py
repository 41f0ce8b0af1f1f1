"""Records -> batches: shared prompts, masks, and every cut row counted."""

from __future__ import annotations

import pytest
import torch

from tutelage.data.chat import Chat
from tutelage.data.collate import check_prompts, comparisons, demonstrations, documents, prompts_and_answers
from tutelage.models.tiny import byte_tokenizer
from tutelage.records import Answer, AnswerGroup, Comparison, Demonstration, Document, Message, user

END = 257
CHAT = Chat.of(byte_tokenizer())
PROMPT = CHAT.prompt_tokens(user("q"))  # <|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n
ROOM = len(PROMPT)


def shown(*said: str) -> Demonstration:
    return Demonstration(tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(said)))


def pair(chosen: str, rejected: str, prompt: str = "q", **fields) -> Comparison:
    return Comparison(user(prompt), Answer(chosen), Answer(rejected), **fields)


def test_the_prompt_takes_twenty_five_tokens_so_the_numbers_below_can_be_read():
    assert ROOM == 1 + len("user\nq") + 1 + len("\n") + 1 + len("assistant\n") == 20


def test_demonstrations_by_hand():
    out = demonstrations([shown("q", "ab"), shown("q", "c", "d", "e")], CHAT, 100)
    batch = out.batch
    between = [10, 256, *b"user\nd", END, 10, 256, *b"assistant\n"]
    assert batch.tokens[0, :3].tolist() == [97, 98, END]
    assert batch.tokens[1].tolist() == [99, END, *between, 101, END]
    assert batch.lengths.tolist() == [3, 4 + len(between)]
    assert batch.mask[0].tolist() == [True] * 3 + [False] * (1 + len(between))
    assert batch.mask[1].tolist() == [True] * 2 + [False] * len(between) + [True] * 2
    assert batch.prompts.tokens == (tuple(PROMPT),)
    assert batch.prompt_of.tolist() == [0, 0], "the same prompt is stored once"
    assert out.counts == {"kept": 2}


def test_a_long_answer_loses_its_tail_and_is_counted():
    out = demonstrations([shown("q", "abcdef"), shown("q", "ab")], CHAT, ROOM + 3)
    assert out.batch.tokens.tolist() == [[97, 98, 99], [97, 98, END]]
    assert out.counts == {"truncated": 1, "kept": 1}
    dropped = demonstrations([shown("q", "abcdef"), shown("q", "ab")], CHAT, ROOM + 3, too_long="drop")
    assert dropped.batch.tokens.tolist() == [[97, 98, END]]
    assert dropped.counts == {"dropped": 1, "kept": 1}
    with pytest.raises(ValueError, match="record that begins 'q': it has 27 tokens, allowed with the answer: 23"):
        demonstrations([shown("q", "abcdef")], CHAT, ROOM + 3, too_long="error")


def test_a_prompt_without_room_for_an_answer_is_an_error_at_the_door():
    long = shown("q" * 50, "a")
    with pytest.raises(
        ValueError, match=r"its prompt alone has 69 tokens, allowed with the answer: 69; raise --max-tokens"
    ):
        demonstrations([shown("q", "a"), long], CHAT, 69)
    assert demonstrations([shown("q", "a"), long], CHAT, 69, too_long="drop").counts == {"kept": 1, "dropped": 1}
    with pytest.raises(ValueError, match="record 'p7': its prompt alone has 69"):
        check_prompts([user("q"), user("q" * 50, id="p7")], CHAT, 69)
    check_prompts([user("q" * 50)], CHAT, 70)


def test_no_row_left_is_an_error():
    with pytest.raises(ValueError, match=r"none of 2 records can be trained on: \{'dropped': 2\}"):
        demonstrations([shown("q", "abcdef")] * 2, CHAT, ROOM + 2, too_long="drop")
    with pytest.raises(ValueError, match="none of 0 records"):
        demonstrations([], CHAT, 50)


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="at least 2; got 1"):
        demonstrations([shown("q", "a")], CHAT, 1)
    with pytest.raises(ValueError, match="truncate, drop or error; got 'cut'"):
        demonstrations([shown("q", "a")], CHAT, 50, too_long="cut")  # type: ignore[arg-type]


def test_comparisons_share_one_prompts_object_and_merge_equal_prompts():
    rows = [pair("ab", "c", preference=0.75, weight=2.0, margin=0.5), pair("d", "ef", "r"), pair("g", "h")]
    batch = comparisons(rows, CHAT, 100).batch
    assert batch.chosen.prompts is batch.rejected.prompts
    assert batch.chosen.prompts.tokens == (tuple(PROMPT), tuple(CHAT.prompt_tokens(user("r"))))
    assert batch.chosen.prompt_of.tolist() == batch.rejected.prompt_of.tolist() == [0, 1, 0]
    assert batch.chosen.tokens.tolist() == [[97, 98, END], [100, END, 0], [103, END, 0]]
    assert batch.rejected.tokens.tolist() == [[99, END, 0], [101, 102, END], [104, END, 0]]
    assert batch.rejected.mask.tolist() == [[True, True, False], [True] * 3, [True, True, False]]
    assert [batch.preference.tolist(), batch.weight.tolist(), batch.margin.tolist()] == [
        [0.75, 1, 1],
        [2, 1, 1],
        [0.5, 0, 0],
    ]
    assert torch.equal(batch.both().lengths, torch.tensor([3, 2, 2, 2, 3, 2]))


def test_a_pair_counts_once_whatever_happens_to_its_sides():
    rows = [pair("abcd", "x"), pair("abcde", "wxyz"), pair("a", "b")]
    assert comparisons(rows, CHAT, ROOM + 3).counts == {"truncated": 2, "kept": 1}
    assert comparisons(rows, CHAT, ROOM + 3, too_long="drop").counts == {"dropped": 2, "kept": 1}


def test_a_pair_that_the_cut_makes_equal_says_nothing_and_leaves():
    out = comparisons([pair("same start, good", "same start, bad"), pair("a", "b")], CHAT, ROOM + 5)
    assert out.counts == {"same_after_cut": 1, "kept": 1}
    assert len(out.batch) == 1


def test_a_pair_of_another_models_ids_is_refused():
    row = Comparison(user("q"), Answer("ab", tokens=(5, 6)), Answer("c"))
    with pytest.raises(ValueError, match="another tokenizer made them; remove `tokens`"):
        comparisons([row], CHAT, 100)


def test_groups_keep_their_sampled_ids_and_stay_apart():
    answers = (Answer("ab", tokens=(97, 98, END)), Answer("", tokens=(END,)))
    batch = prompts_and_answers([AnswerGroup(user("q"), answers), AnswerGroup(user("q"), answers[::-1])], CHAT)
    assert batch.prompt_of.tolist() == [0, 0, 1, 1], "a group of its own, though the prompt is the same"
    assert batch.tokens.tolist() == [[97, 98, END], [END, 0, 0], [END, 0, 0], [97, 98, END]]
    assert batch.lengths.tolist() == [3, 1, 1, 3]


def test_documents_need_no_chat_template():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    out = documents([Document("abcd"), Document("e")], tokenizer, 4)
    assert out.batch.prompts.tokens == ((97,), (101,))
    assert out.batch.tokens.tolist() == [[98, 99, 100], [END, 0, 0]]
    assert out.counts == {"truncated": 1, "kept": 1}
