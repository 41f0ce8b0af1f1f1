"""The gold rule against real answers: no single feature gives it away, degenerate answers lose, parts by hand."""

import math
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest

from tutelage.evaluation.gold import Parts, features, gold_preference, gold_score, parts
from tutelage.records import Answer, AnswerGroup, Prompt, group_from_json, read_jsonl, user

FIXTURE = Path(__file__).parents[1] / "data" / "reference_answers.jsonl"
KETTLE = user("Why does my kettle whistle?")
STOP_WORDS = {
    "a",
    "an",
    "the",
    "of",
    "to",
    "in",
    "on",
    "for",
    "and",
    "or",
    "is",
    "are",
    "it",
    "my",
    "me",
    "i",
    "you",
    "with",
}


@pytest.fixture(scope="module")
def reference() -> list[AnswerGroup]:
    return [group_from_json(row) for row in read_jsonl(FIXTURE)]


@pytest.fixture(scope="module")
def scored(reference: list[AnswerGroup]) -> list[tuple[Prompt, list[float]]]:
    """Each prompt with the gold scores of its reference answers."""
    return [(group.prompt, [gold_score(group.prompt, answer) for answer in group.answers]) for group in reference]


@pytest.fixture(scope="module")
def measured(reference: list[AnswerGroup]) -> list[list[dict[str, float]]]:
    """Every measure of every reference answer."""
    return [[all_measures(group.prompt, answer) for answer in group.answers] for group in reference]


def keywords(prompt: Prompt, count: int | None = None) -> list[str]:
    """The prompt's words without the smallest ones: the test's own list, not the rule's."""
    words = [word.strip(".,:;!?\"'()").lower() for word in prompt.text.split()]
    return list(dict.fromkeys(word for word in words if word and word not in STOP_WORDS))[:count]


def first_sentence(prompt: Prompt) -> str:
    return prompt.text.split(". ")[0]


HELP = "I'm happy to help you with that today!"
DEGENERATE: dict[str, Callable[[Prompt], str]] = {
    "empty": lambda prompt: "",
    "blank": lambda prompt: " \n",
    "full stop": lambda prompt: ".",
    "yes": lambda prompt: "Yes.",
    "polite": lambda prompt: HELP,
    "polite, longer": lambda prompt: (
        "Of course! Please let me know if you have any other questions, I am always glad to help."
    ),
    "polite, thanks": lambda prompt: (
        "Thank you for your question. I hope this answer is useful and that you have a great day!"
    ),
    "polite, refusal": lambda prompt: "I'm sorry, but as an AI language model I can't help you with this request.",
    "interesting": lambda prompt: (
        "That is a really interesting question, and there are many different ways to think about it."
    ),
    "prompt": lambda prompt: prompt.text,
    "prompt with full stop": lambda prompt: prompt.text.rstrip("?.! ") + ".",
    "prompt twice": lambda prompt: f"{prompt.text} {prompt.text}",
    "prompt and polite": lambda prompt: f"{prompt.text} {HELP}",
    "keywords": lambda prompt: " ".join(keywords(prompt)),
    "keywords with full stop": lambda prompt: " ".join(keywords(prompt)) + ".",
    "keywords with commas": lambda prompt: ", ".join(keywords(prompt)) + ".",
    "three keywords": lambda prompt: " ".join(keywords(prompt, 3)) + ".",
    "keywords backwards": lambda prompt: " ".join(keywords(prompt)[::-1]) + ".",
    "keywords sorted": lambda prompt: " ".join(sorted(keywords(prompt, 8))) + ".",
    "keywords joined by and": lambda prompt: "This is about " + " and ".join(keywords(prompt, 5)) + ".",
    "keywords and polite": lambda prompt: " ".join(keywords(prompt, 4)) + f". {HELP}",
    "keywords into polite": lambda prompt: " ".join(keywords(prompt, 3)) + f": {HELP}",
    "first sentence and sure": lambda prompt: f"Sure. {first_sentence(prompt)}.",
    "one word for ever": lambda prompt: " ".join(keywords(prompt, 1) * 20) + ".",
}


def preferred(first: float, second: float) -> float:
    """1 if the first score is higher, 0 if the second is, 1/2 if they are equal."""
    return 0.5 if first == second else float(first > second)


def win_rate(scored: list[tuple[Prompt, list[float]]], say: Callable[[Prompt], str]) -> float:
    """How often the said answer beats a reference answer to the same prompt, ties 1/2."""
    wins = []
    for prompt, scores in scored:
        mine = gold_score(prompt, Answer(say(prompt)))
        wins += [preferred(mine, score) for score in scores]
    return sum(wins) / len(wins)


def test_the_preference_is_that_of_the_scores(reference: list[AnswerGroup], scored: list[tuple[Prompt, list[float]]]):
    for group, (prompt, scores) in zip(reference[:20], scored[:20], strict=True):
        for (first, mine), (second, other) in combinations(zip(group.answers, scores, strict=True), 2):
            assert gold_preference(prompt, first, second) == preferred(mine, other)


@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_answers_lose_against_the_reference(scored: list[tuple[Prompt, list[float]]], kind: str):
    assert win_rate(scored, DEGENERATE[kind]) < 0.35


@pytest.mark.parametrize(
    "sentence",
    [
        "The old wooden boat crossed the quiet lake beside green mountains while the children sang.",
        "My neighbor painted her garden fence last spring and planted roses along the path.",
    ],
)
def test_one_fixed_sentence_about_something_else_loses(scored: list[tuple[Prompt, list[float]]], sentence: str):
    assert win_rate(scored, lambda prompt: sentence) < 0.5


def all_measures(prompt: Prompt, answer: Answer) -> dict[str, float]:
    return features(prompt, answer) | {f"part {name}": value for name, value in parts(prompt, answer)._asdict().items()}


MEASURES = list(all_measures(KETTLE, Answer("x")))


@pytest.mark.parametrize("measure", MEASURES)
def test_no_single_measure_gives_the_gold_choices_away(
    scored: list[tuple[Prompt, list[float]]], measured: list[list[dict[str, float]]], measure: str
):
    agreed = choices = 0.0
    for (_, scores), found in zip(scored, measured, strict=True):
        values = [one[measure] for one in found]
        for i, j in combinations(range(len(values)), 2):
            gold = preferred(scores[i], scores[j])
            if gold == 0.5:
                continue
            choices += 1
            agreed += 0.5 if values[i] == values[j] else float((values[i] > values[j]) == (gold == 1.0))
    assert choices > 400
    assert max(agreed, choices - agreed) / choices < 0.75


def test_answers_to_one_prompt_are_told_apart(reference: list[AnswerGroup]):
    pairs = [
        gold_preference(group.prompt, first, second, tie_margin=0.01)
        for group in reference
        for first, second in combinations(group.answers, 2)
    ]
    assert pairs.count(0.5) / len(pairs) < 0.2


def test_the_best_of_four_beats_one_of_the_four(reference: list[AnswerGroup]):
    """7/8 for four different scores, its own half win included: less means ties."""
    wins = []
    for group in reference:
        best = max(group.answers, key=lambda answer: gold_score(group.prompt, answer))
        wins += [gold_preference(group.prompt, best, answer) for answer in group.answers]
    assert 0.85 <= sum(wins) / len(wins) <= 0.875


def test_a_finished_answer_mostly_beats_an_unfinished_one_to_the_same_prompt(reference: list[AnswerGroup]):
    wins = [
        gold_preference(group.prompt, done, cut)
        for group in reference
        for done in group.answers
        for cut in group.answers
        if done.finished and not cut.finished
    ]
    assert 0.65 < sum(wins) / len(wins) < 0.95


def test_parts_of_a_good_answer_by_hand():
    answer = Answer("Your kettle sings because steam rushes through the small hole in its lid, and the air trembles.")
    got = parts(KETTLE, answer)
    # wanted: kettle, whistle; taken up: kettle, (1 - 0.3) / (1 - 0.3^2) = 10/13
    assert got.topic == pytest.approx(0.07 + 0.93 * 10 / 13)
    # new content words: sings, steam, rushes, small, hole, lid, air, trembles = 8 of 12
    assert got.substance == pytest.approx(0.02 + 0.98 * (8 / 12) ** 0.5)
    assert got._replace(topic=1, substance=1) == Parts(1, 1, 1, 1, 1, 1, 1)
    assert gold_score(KETTLE, answer) == pytest.approx((got.topic * got.substance) ** 0.5)


def test_ending_rewards_a_finished_sentence_and_a_stop():
    text = "The kettle whistles because steam escapes through a narrow hole"
    stopped, open_end, cut = Answer(text + "."), Answer(text), Answer(text + ".", stop_reason="length")
    assert [parts(KETTLE, answer).ending for answer in (stopped, open_end, cut)] == [1.0, 0.6, 0.12]
    assert parts(KETTLE, Answer('She said: "Steam!"')).ending == 1.0


def test_brevity_allows_three_sentences_and_counts_list_lines():
    assert parts(KETTLE, Answer("Steam. Air. Heat.")).brevity == 1.0
    assert parts(KETTLE, Answer("Steam. Air. Heat. Water. Metal.")).brevity == pytest.approx(1 / math.e)
    assert features(KETTLE, Answer("Try this:\n1. Fill it.\n2. Heat it.\n\n- Wait"))["sentences"] == 4


def test_repeating_oneself_lowers_variety():
    # content words: steam x 4, hole: 2 different of 5
    assert parts(KETTLE, Answer("Steam steam steam and steam in a hole.")).variety == pytest.approx((2 / 5) ** 0.5)


def test_copying_the_prompt_lowers_own_words():
    copied = Answer("Why does my kettle whistle? Because of the steam.")
    # 5 of 9 words stand in copied runs of three or more: 1 - (5/9 - 0.3) / 0.7
    assert features(KETTLE, copied)["copied"] == pytest.approx(5 / 9)
    assert parts(KETTLE, copied).own_words == pytest.approx(1 - (5 / 9 - 0.3) / 0.7)


def test_prompt_words_count_only_inside_sentences():
    assert parts(KETTLE, Answer("Kettle whistle. Steam goes through a hole.")).topic == pytest.approx(0.07)
    assert parts(KETTLE, Answer("The kettle has a whistle. Steam goes through a hole.")).topic == pytest.approx(1.0)
    assert parts(user("How are you?"), Answer("Steam goes through a hole.")).topic == 1.0


def test_a_string_of_content_words_is_not_prose():
    # 8 content words in a row and no small word
    assert parts(KETTLE, Answer("kettle whistle steam hole lid water heat metal")).prose == pytest.approx(0.1)
    # share of small words 3/9 is enough; the longest run of content words is six, still allowed
    enough = Answer("The steam of water kettle whistle hole lid the")
    assert parts(KETTLE, enough).prose == pytest.approx(1.0)


def test_preference_is_antisymmetric_and_ties_inside_the_margin():
    good, bad = Answer("The kettle whistles because steam escapes through a narrow hole."), Answer("Yes.")
    assert gold_preference(KETTLE, good, bad) == 1.0
    assert gold_preference(KETTLE, bad, good) == 0.0
    assert gold_preference(KETTLE, good, good) == 0.5
    assert gold_preference(KETTLE, good, bad, tie_margin=1.0) == 0.5


def test_scores_stay_in_range(reference: list[AnswerGroup]):
    scores = [gold_score(group.prompt, answer) for group in reference for answer in group.answers]
    assert min(scores) >= 0
    assert max(scores) <= 1
    assert gold_score(KETTLE, Answer("")) == 0.0
