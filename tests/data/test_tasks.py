"""The sums task: no pair of operands is shared between splits, and every problem, solution and demonstration is right."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations

import pytest

from tutelage.data.readers import load_records, split_weight
from tutelage.data.tasks import SHARES, all_pairs, load_task, parse_task, split_of, worked
from tutelage.records import Answer, Demonstration, Prompt
from tutelage.rewards.rules import sums, think_answer_format

SPLITS = tuple(SHARES)


def operands(record: Prompt | Demonstration) -> tuple[int, int]:
    """The two numbers, read from the text that the policy sees."""
    found = re.findall(r"(\d+) \+ (\d+) =", record.messages[0].content)
    assert len(found) == 1, record.messages[0].content
    return int(found[0][0]), int(found[0][1])


def pairs_of(records: tuple) -> list[tuple[int, int]]:
    return [(min(p), max(p)) for p in map(operands, records)]


def test_every_pair_belongs_to_one_split_whichever_way_round() -> None:
    pairs = all_pairs(2)
    # 10 digits give 10 * 11 / 2 unordered pairs, 90 two-digit numbers 90 * 91 / 2
    assert len(pairs) == len(set(pairs)) == 55 + 4095
    assert all(split_of(a, b) == split_of(b, a) for a, b in pairs)
    counts = Counter(split_of(a, b) for a, b in pairs)
    assert set(counts) == set(SPLITS)
    for split in SPLITS:
        # four standard deviations of a fair draw by these shares
        p = SHARES[split] / 100
        assert abs(counts[split] - p * len(pairs)) < 4 * (len(pairs) * p * (1 - p)) ** 0.5
    assert len(set(map(split_of, *zip(*all_pairs(1), strict=True)))) == 3, "one-digit sums are in every split too"


@pytest.mark.slow
def test_whole_splits_share_no_unordered_pair() -> None:
    """All problems there are, at different seeds, so that a split drawn by the seed would be caught."""
    drawn = {
        split: pairs_of(load_task(f"task:sums/{split}(size={size}, seed={seed})", None))
        for seed, (split, size) in enumerate(whole_sizes().items())
    }
    assert all(len(pairs) == len(set(pairs)) for pairs in drawn.values()), "a pair comes once"
    for one, other in combinations(SPLITS, 2):
        assert not set(drawn[one]) & set(drawn[other])
    assert set().union(*drawn.values()) == set(all_pairs(2)), "and every pair is in one of them"


def whole_sizes() -> dict[str, int]:
    return dict(Counter(split_of(a, b) for a, b in all_pairs(2)))


@pytest.mark.parametrize("split", SPLITS)
def test_prompts_carry_the_sum_and_ask_for_the_format(split: str) -> None:
    loaded = load_records(f"task:sums/{split}", "prompt")
    assert loaded.kind == "prompt"
    assert len(loaded.records) == loaded.rows == {"sft": 400, "train": 1000, "eval": 300}[split]
    for prompt in loaded.records:
        assert isinstance(prompt, Prompt)
        a, b = operands(prompt)
        assert prompt.solution == str(a + b)
        assert {len(str(a)), len(str(b))} in ({1}, {2})
        assert all(tag in prompt.text for tag in ("<think>", "</think>", "<answer>", "</answer>"))


def test_a_prompt_word_by_word() -> None:
    prompt = load_task("task:sums/eval(size=1)", "prompt")[0]
    assert isinstance(prompt, Prompt)
    a, b = operands(prompt)
    assert prompt.text == (
        f"State the final answer to the following arithmetic problem: {a} + {b} =\n"
        "Think between <think> and </think>, then give the number between <answer> and </answer>."
    )
    assert prompt.id == f"sums/{a}+{b}"


def test_solutions_agree_with_reasoning_gyms_own_scoring() -> None:
    from reasoning_gym.arithmetic import ChainSumConfig, ChainSumDataset

    score = ChainSumDataset(ChainSumConfig(min_terms=2, max_terms=2)).score_answer
    for prompt in load_task("task:sums/train(size=50)", None):
        assert isinstance(prompt, Prompt)
        a, b = operands(prompt)
        entry = {"answer": str(a + b)}
        assert score(prompt.solution, entry) == 1.0
        assert score(str(a + b + 1), entry) < 1.0


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [
        (4, 3, "4 + 3 = 7"),
        (9, 8, "9 + 8 = 17"),
        (45, 67, "5 + 7 = 12, 1 + 4 + 6 = 11"),
        (31, 48, "1 + 8 = 9, 3 + 4 = 7"),
        (50, 50, "0 + 0 = 0, 5 + 5 = 10"),
    ],
)
def test_the_column_method_by_hand(a: int, b: int, text: str) -> None:
    assert worked(a, b) == text


def test_demonstrations_are_right_and_in_the_format_that_the_rewards_read() -> None:
    prompts = load_records("task:sums/sft", "prompt").records
    shown = load_records("task:sums/sft", "demonstration").records
    assert len(shown) == len(prompts) == 400
    for prompt, record in zip(prompts, shown, strict=True):
        assert isinstance(prompt, Prompt)
        assert isinstance(record, Demonstration)
        assert [m.role for m in record.messages] == ["user", "assistant"]
        assert record.messages[:1] == prompt.messages
        answer = Answer(record.messages[1].content)
        assert sums(prompt, [answer]) == think_answer_format(prompt, [answer]) == [1.0]
        for terms, result in re.findall(r"(\d+(?: \+ \d+)+) = (\d+)", answer.text):
            assert sum(map(int, terms.split(" + "))) == int(result)
        wrong = Answer(answer.text.replace(f"<answer>{prompt.solution}", f"<answer>{prompt.solution}1"))
        assert sums(prompt, [wrong]) == [0.0]


def test_the_seed_and_the_digits() -> None:
    def order(source: str) -> list[tuple[int, int]]:
        return [operands(record) for record in load_task(source, None)]

    assert order("task:sums/train(size=40)") == order("task:sums/train(size=40, seed=0)")
    assert order("task:sums/train(size=40)") == order("task:sums/train(size=300)")[:40]
    assert order("task:sums/train(size=40)") != order("task:sums/train(size=40, seed=1)")
    one = pairs_of(load_task("task:sums/train(digits=1)", None))
    assert sorted(one) == [pair for pair in all_pairs(1) if split_of(*pair) == "train"]


def test_drawing_leaves_the_global_randomness_alone() -> None:
    state = random.getstate()
    load_task("task:sums/eval(size=5)", None)
    assert random.getstate() == state


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("task:products/train", "no such task"),
        ("task:sums", "no such task"),
        ("task:sums/test", "SPLIT: sft, train, eval"),
        ("task:sums/train(size=0)", "'size=0'"),
        ("task:sums/train(size=-3)", "'size=-3'"),
        ("task:sums/train(digits=3)", "digits=1..2"),
        ("task:sums/train(terms=3)", "'terms=3'"),
        ("task:sums/train(size)", "'size'"),
        ("task:sums/train(size=3, size=4)", "each once"),
        ("task:sums/eval(digits=1, size=56)", "its pairs of operands"),
    ],
)
def test_bad_sources_say_what_is_allowed(source: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        load_records(source)
    assert "task:sums" in str(caught.value)


def test_a_task_gives_no_comparisons() -> None:
    with pytest.raises(ValueError, match="allowed: prompt, demonstration"):
        load_records("task:sums/train", "comparison")


def test_a_weight_stands_behind_the_brackets() -> None:
    assert split_weight("task:sums/train") == ("task:sums/train", None)
    assert split_weight("task:sums/train(size=9)") == ("task:sums/train(size=9)", None)
    assert split_weight("task:sums/train(size=9)=0.3") == ("task:sums/train(size=9)", 0.3)
    assert parse_task("task:sums/train( size = 9,seed=2 )").size == 9


def test_without_reasoning_gym_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym.arithmetic", None)
    with pytest.raises(ValueError, match=re.escape("pip install 'tutelage[tasks]'")):
        load_records("task:sums/train")


def test_reading_files_does_not_import_reasoning_gym() -> None:
    code = "import sys, tutelage.data.readers; sys.exit('reasoning_gym' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
