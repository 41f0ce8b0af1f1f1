"""The built-in prompts: InstructGPT's shares in every part, and no prompt that is a variation of another.

The first 480 rows alternate between training and held-out prompts; the last 720 are more training prompts.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from functools import cache
from importlib.resources import files
from itertools import combinations, pairwise

import pytest

Row = dict[str, str]

# InstructGPT (arXiv:2203.02155, table 1) in rows of 480: 45.6, 12.4, 11.2, 8.4, 6.6, 4.2, 3.5, 3.5, 2.6 and 1.9 %.
# The table's shares add up to 99.9 %, so 219 is 45.6 % rounded to the nearest row, and so are the others.
COUNTS = {
    "generation": 219,
    "open_qa": 60,
    "brainstorming": 54,
    "chat": 40,
    "rewrite": 32,
    "summarization": 20,
    "classification": 17,
    "other": 17,
    "closed_qa": 12,
    "extract": 9,
}
PUNCTUATION = re.compile(r"[^\w\s]")


@cache
def words(text: str) -> tuple[str, ...]:
    return tuple(PUNCTUATION.sub("", text.lower()).split())


@cache
def five_grams(text: str) -> frozenset[tuple[str, ...]]:
    return frozenset(zip(*(words(text)[k:] for k in range(5))))


def shared_five_grams(first: str, second: str) -> float:
    """Share of the smaller set of word 5-grams that the other prompt has too (0 where one has fewer than 5 words)."""
    a, b = five_grams(first), five_grams(second)
    return len(a & b) / min(len(a), len(b)) if a and b else 0.0


def swapped_words(first: str, second: str) -> float:
    """In how many positions two prompts of equal length differ (infinity at unequal length)."""
    a, b = words(first), words(second)
    return sum(x != y for x, y in zip(a, b)) if len(a) == len(b) else float("inf")


def shared_frame(first: str, second: str) -> float:
    """Share of the shorter prompt that is the other's beginning plus the other's end: a template around one slot."""
    a, b = words(first), words(second)
    shorter = min(len(a), len(b))
    head = next((k for k in range(shorter) if a[k] != b[k]), shorter)
    tail = next((k for k in range(shorter - head) if a[-1 - k] != b[-1 - k]), shorter - head)
    return (head + tail) / shorter


def are_variations(first: str, second: str) -> bool:
    """Whether one prompt looks made from the other, by any of the three measures."""
    return (
        shared_five_grams(first, second) > 0.5 or swapped_words(first, second) <= 2 or shared_frame(first, second) > 0.5
    )


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    text = (files("tutelage") / "quickstart_data" / "prompts.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_every_row_is_whole(rows: list[Row]) -> None:
    for row in rows:
        assert list(row) == ["id", "prompt", "category", "split"]
        assert row["prompt"] == row["prompt"].strip()
        assert 1 <= len(row["prompt"].split()) <= 130, row["id"]
    assert len({row["id"] for row in rows}) == len(rows) == 1200


def test_categories_have_instructgpt_shares(rows: list[Row]) -> None:
    assert Counter(row["category"] for row in rows[:480]) == COUNTS
    more = Counter(row["category"] for row in rows[480:720])
    assert {category for category, count in COUNTS.items() if abs(more[category] - count / 2) > 0.5} == set()
    assert Counter(row["category"] for row in rows[720:]) == COUNTS


def test_splits_are_even_halves_of_every_category(rows: list[Row]) -> None:
    assert Counter(row["split"] for row in rows[:480]) == {"train": 240, "heldout": 240}
    assert {row["split"] for row in rows[480:]} == {"train"}
    cells = Counter((row["category"], row["split"]) for row in rows[:480])
    for category in COUNTS:
        assert abs(cells[category, "train"] - cells[category, "heldout"]) <= 1, category


def test_split_alternates_within_each_category(rows: list[Row]) -> None:
    """The rule that assigns a split reads the position only, never the prompt."""
    splits: dict[str, list[str]] = defaultdict(list)
    for row in rows[:480]:
        splits[row["category"]].append(row["split"])
    assert all(one != next_one for column in splits.values() for one, next_one in pairwise(column))


def test_every_48_rows_have_about_the_shares_of_the_whole(rows: list[Row]) -> None:
    """A run that takes only the first prompts still sees the mixture: 48 rows hold 21.9 of 219, 6 of 60, ..."""
    for start in range(0, len(rows), 48):
        tenth = Counter(row["category"] for row in rows[start : start + 48])
        for category, count in COUNTS.items():
            assert abs(tenth[category] - count / 10) < 2, (start, category)


@pytest.mark.slow
def test_no_prompt_is_a_variation_of_another(rows: list[Row]) -> None:
    prompts = [(row["id"], row["prompt"]) for row in rows]
    found = [(a, b) for (a, first), (b, second) in combinations(prompts, 2) if are_variations(first, second)]
    assert found == []


def test_openings_vary(rows: list[Row]) -> None:
    fives = Counter(tuple(words(row["prompt"])[:5]) for row in rows)
    threes = Counter(tuple(words(row["prompt"])[:3]) for row in rows)
    ones = Counter(words(row["prompt"])[0] for row in rows)
    assert max(fives.values()) <= 3, fives.most_common(3)
    assert max(threes.values()) <= 8, threes.most_common(3)
    assert max(ones.values()) <= len(rows) / 10, ones.most_common(3)


def test_most_prompts_are_short(rows: list[Row]) -> None:
    lengths = [len(row["prompt"].split()) for row in rows]
    assert sum(6 <= length <= 40 for length in lengths) / len(lengths) >= 0.9


def test_measures_by_hand() -> None:
    # 8 and 9 words hold 4 and 5 five-grams; only "write a poem about the" (1 of 4) is common; the frame is 5 + 2 of 8.
    first, second = "Write a poem about the sea, for Ann!", "write a poem about the cold moon for Ann"
    assert shared_five_grams(first, second) == 1 / 4
    assert swapped_words(first, second) == float("inf")
    assert shared_frame(first, second) == 7 / 8
    assert swapped_words("Name a red bird", "Name a blue fish") == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Write a haiku about spring.", "Write a haiku about winter!"),  # a swapped noun
        ("Why do cats purr?", "why do cats purr"),  # the same, too short for 5-grams
        ("Explain how a zipper works.", "Explain how a nuclear power station works."),  # a slot of another length
        (
            "My boss turns fifty, so give me a warm but not sappy line for the card.",
            "I need help: give me a warm but not sappy line for the card.",  # another beginning
        ),
    ],
)
def test_variations_are_caught(first: str, second: str) -> None:
    assert are_variations(first, second)
