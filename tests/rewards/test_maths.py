"""The final-answer check: what counts as equal, real GSM8K solutions, and expressions that never end."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tutelage.records import Answer, user
from tutelage.rewards.maths import MEMORY_BYTES, FinalAnswer, final_answer, gsm8k, number, same_number, symbolic_child
from tutelage.rewards.sandbox import Child, ChildRaisedError

TOWER = r"\boxed{9^{9^{9^{9}}}}"


@pytest.fixture(scope="module")
def check():
    """One check with one child for the whole file."""
    reward = FinalAnswer()
    yield reward
    reward.close()


def verdict(check, text, solution):
    return check.measure([user("?", solution=solution)], [[Answer(text)]]).values[0][0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12 - 3 = 9\n#### 9", "9"),
        ("#### 7\n#### 9 apples\nthanks", "9 apples"),
        (r"so \boxed{\frac{1}{2}} it is 3", r"\frac{1}{2}"),
        (r"\boxed{1} and then #### 2", "2"),
        (r"#### 2 and then \boxed{1}", "1"),
        ("He has 1,234.50 left.", "1,234.50"),
        ("16 / 4 = 4.", "4"),
        ("20-5", "5"),
        ("that is -5", "-5"),
        ("it takes 3 1/2 hours", "3 1/2"),
        ("it costs $3.50", "$3.50"),
        ("about 20%", "20%"),
        ("no number", None),
        ("#### ", None),
        (r"\boxed{}", None),
        (r"\boxed{9", None),
        ("", None),
    ],
)
def test_final_answer(text, expected):
    assert final_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        ("1,234,567", 1234567),
        ("$1,234.50", 1234.5),
        ("-$5", -5),
        ("$-5", -5),
        ("−5", -5),
        (".5", 0.5),
        ("3/4", 0.75),
        (r"-\frac{3}{4}", -0.75),
        (r"3\frac{1}{2}", 3.5),
        ("3 1/2", 3.5),
        ("-2 million", -2_000_000),
        ("12 apples.", 12),
        (r"\text{42 km}", 42),
        (r"42\text{ dollars}", 42),
        (r"\$42", 42),
    ],
)
def test_numbers_as_people_write_them(text, value):
    assert float(number(text).value) == value


@pytest.mark.parametrize(
    "text", ["", "x", "2x", "2 pi", "1/0", "5 + 3", "1,23", "1.2.3", "2 or 3", "9" * 300, "twelve"]
)
def test_what_is_no_plain_number(text):
    assert number(text) is None


def test_percentages_agree_with_figure_and_value():
    agree = [("50%", "50"), ("50%", "0.5"), ("50", "50%"), ("0.5", r"50\%"), ("50 percent", "50%")]
    assert [same_number(a, b) for a, b in agree] == [True] * 5
    assert [same_number(a, b) for a, b in [("50%", "5"), ("0.5", "50"), ("50%", "0.5%")]] == [False] * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "solution", "expected"),
    [
        (r"\boxed{x^2+2x+1}", "(x+1)^2", 1),
        (r"\boxed{x^2+2x+2}", "(x+1)^2", 0),
        (r"\boxed{\sqrt{8}}", r"2\sqrt{2}", 1),
        (r"\boxed{2\pi}", "2", 0),
        (r"\boxed{\{1,2\}}", r"\{2,1\}", 1),
        ("#### 1/3", "0.333333", 1),
        ("#### 1/3", "0.34", 0),
        ("#### 5 + 3", "8", 1),
        ("#### 8", r"\boxed{8}", 1),
        ("#### 8", "2 + 6 is 8\n#### 8", 1),
        (r"\boxed{)(}", "8", 0),
        (r"\boxed{__import__('os').system('true')}", "0", 0),
        (r"\boxed{" + "(" * 95 + "}" * 3, "8", 0),
    ],
)
def test_expressions(check, text, solution, expected):
    assert verdict(check, text, solution) == expected


def test_plain_numbers_never_start_a_child():
    check = FinalAnswer(Child("no.such.module:anywhere", 1.0))
    groups = [[Answer("#### 42"), Answer(r"\boxed{41}"), Answer("3" * 5000), Answer("")]]
    assert check.measure([user("?", solution="42")], groups).values == [[1, 0, 0, 0]]


@pytest.mark.slow
def test_an_expression_that_never_ends_is_killed_and_the_next_one_works():
    check = FinalAnswer(symbolic_child(cpu_seconds=1.0))
    assert verdict(check, r"\boxed{x+x}", "2x") == 1
    first, clock = check.child.pid, time.monotonic()
    scored = check.measure([user("?", solution="42")], [[Answer(TOWER), Answer("42"), Answer(TOWER)]])
    assert 0.9 < time.monotonic() - clock < 60
    assert (scored.values, scored.flags["timeouts"]) == ([[0, 1, 0]], [[1, 0, 1]])
    assert check.child.pid is None, "the same expression in a group hangs once"
    assert verdict(check, r"\boxed{x+x}", "2x") == 1
    assert check.child.pid not in (None, first)
    check.close()


def test_memory_is_limited():
    child = Child("builtins:bytearray", 20.0, memory=MEMORY_BYTES)
    try:
        assert child.call(1024)["type"] == "bytearray"
        with pytest.raises(ChildRaisedError, match="raised MemoryError"):
            child.call(2 * MEMORY_BYTES)
    finally:
        child.kill()


def test_two_hundred_answers_in_a_couple_of_seconds(check):
    answers = [Answer(rf"\boxed{{\frac{{{k}}}{{7}} + 1}}") for k in range(200)]
    verdict(check, r"\boxed{x+x}", "2x")
    clock = time.monotonic()
    scores = check.measure([user("?", solution="2")], [answers]).values[0]
    assert time.monotonic() - clock < 30  # 0.4 s on an idle core
    assert [k for k, score in enumerate(scores) if score] == [7]


def test_neither_the_check_nor_its_child_imports_torch():
    code = "import sys, tutelage.rewards.maths, tutelage.rewards.functions; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment())
    assert done.stdout.strip() == "False"
    probe = Child("builtins:eval", 20.0)
    try:
        modules = "[__import__('tutelage.rewards.symbolic').__name__ == '', 'torch' in __import__('sys').modules]"
        assert probe.call(modules) == [0.0, 0.0]
    finally:
        probe.kill()


def _environment():
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}


def test_the_plain_function_is_the_same_check():
    answers = [Answer("#### 42"), Answer("#### 41"), Answer(r"\boxed{6 \times 7}")]
    assert gsm8k(user("?", solution="42"), answers) == [1, 0, 1]


def test_gsm8k_model_solutions_agree_with_their_marks(shared_data):
    """5,276 real solutions of four models, marked right or wrong by GSM8K's authors."""
    known = {}
    for line in shared_data("gsm8k", "test.jsonl").read_text().splitlines():
        row = json.loads(line)
        known[row["question"]] = row["answer"]
    check, agree, total, right = FinalAnswer(), 0, 0, 0
    for line in shared_data("gsm8k", "example_model_solutions.jsonl").read_text().splitlines():
        row = json.loads(line)
        marked = [value for value in row.values() if isinstance(value, dict)]
        prompt = user(row["question"], solution=known[row["question"]])
        scores = check.measure([prompt], [[Answer(m["solution"]) for m in marked]]).values[0]
        agree += sum(score == float(m["is_correct"]) for score, m in zip(scores, marked, strict=True))
        total, right = total + len(marked), right + int(sum(scores))
    check.close()
    assert (agree, total, right) == (5276, 5276, 2001)
