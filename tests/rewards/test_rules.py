"""Rules, each on cases worked by hand."""

import pytest

from tutelage.records import Answer, user
from tutelage.rewards import rules

PROMPT = user("What is 40 + 2?", id="sum-1", solution="42")


def score(rule, *texts, prompt=PROMPT, **settings):
    return rule(prompt, [Answer(text) for text in texts], **settings)


def test_brevity_is_a_half_at_its_setting_and_nothing_for_silence():
    assert score(rules.brevity, "a b", "a b c d e f", "", " \n", half=2) == [0.5, 0.25, 0, 0]
    assert score(rules.brevity, "word " * 50) == [0.5]


def test_length_penalty_falls_from_target_to_target_plus_span():
    texts = ["a " * n for n in (0, 10, 12, 15, 20, 99)]
    expected = [0, 0, -0.2, -0.5, -1, -1]
    assert score(rules.length_penalty, *texts, target=10, span=10) == pytest.approx(expected)


def test_finished_reads_the_stop_reason_not_the_text():
    answers = [Answer("cut in the", stop_reason="stop"), Answer("A whole sentence.", stop_reason="length")]
    assert rules.finished(PROMPT, answers) == [1, 0]


def test_five_lines_by_distance_and_blank_lines_do_not_count():
    lines = ["\n".join("abcdefghijkl"[:n]) for n in (5, 4, 6, 0, 12)]
    assert score(rules.five_lines, *lines) == pytest.approx([0, -0.2, -0.2, -1, -1])
    assert score(rules.five_lines, "a\n\nb\n \nc\nd\ne\n") == [0]
    assert score(rules.five_lines, "a\nb", lines=2) == [0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>40 and 2</think>\n<answer>42</answer>\n", 1),
        ("<think>a < b > c\nover lines</think><answer>42</answer>", 1),
        ("Sure. <think>x</think><answer>42</answer>", 0),
        ("<think>x</think><answer>42</answer> done", 0),
        ("<think>x</think> so <answer>42</answer>", 0),
        ("<answer>42</answer><think>x</think>", 0),
        ("<think> </think><answer>42</answer>", 0),
        ("<think>x</think><answer></answer>", 0),
        ("<think>x</think><think>y</think><answer>42</answer>", 0),
        ("<think>x<think>y</think></think><answer>42</answer>", 0),
        ("<think>x</think><answer>1</answer><answer>42</answer>", 0),
        ("<think>x</think><answer>42", 0),
        ("<answer>42</answer>", 0),
        ("", 0),
    ],
)
def test_think_answer_format(text, expected):
    assert score(rules.think_answer_format, text) == [expected]


def test_answer_tag_match_reads_the_last_tag_only():
    right = ["<answer>42</answer>", "<answer> 42. </answer> or 41", "<answer>1</answer><answer>42.0</answer>"]
    wrong = ["42", "<answer>41</answer> 42", "<answer>42", "</answer>42<answer>", "", "<answer>42 or 43</answer>"]
    assert score(rules.answer_tag_match, *right) == [1, 1, 1]
    assert score(rules.answer_tag_match, *wrong) == [0] * len(wrong)


def test_answer_tag_match_compares_words_where_the_solution_is_no_number():
    prompt = user("Capital of France?", solution="Paris")
    assert score(rules.answer_tag_match, "<answer>\nParis </answer>", "<answer>paris</answer>", prompt=prompt) == [1, 0]


def test_sums_takes_the_last_number_of_an_answer_without_the_tag():
    assert score(rules.sums, "40 + 2 = 42", "it is 42.", "<answer>42</answer> 7") == [1, 1, 1]
    assert score(rules.sums, "42 is not 41", "<answer>41</answer> 42", "<answer>42", "no idea", "") == [0] * 5


@pytest.mark.parametrize("name", sorted(rules.NEED_SOLUTION))
def test_a_missing_solution_is_an_error_not_a_zero(name):
    with pytest.raises(ValueError, match=f"reward {name} compares with a known solution and prompt 'p7' has none"):
        rules.REWARDS[name](user("?", id="p7"), [Answer("42")])


@pytest.mark.parametrize("name", sorted(rules.REWARDS))
def test_every_rule_gives_a_number_an_answer(name):
    answers = [Answer("42"), Answer(""), Answer("\u2028 4²\n½ 数", stop_reason="length")]
    scores = rules.REWARDS[name](PROMPT, answers)
    assert [type(s) for s in scores] == [float] * 3
    assert rules.REWARDS[name](PROMPT, answers[::-1]) == scores[::-1]
    assert rules.REWARDS[name](PROMPT, []) == []
