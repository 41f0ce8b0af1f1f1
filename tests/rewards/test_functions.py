"""A user's own reward function: raises, hangs, dies, returns nonsense; and what one may do."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tutelage.records import Answer, Message, Prompt, user
from tutelage.rewards.base import RewardError
from tutelage.rewards.functions import CalledReward, ImportedReward
from tutelage.rewards.sandbox import Child, ChildHungError

MODULE = """
import os, sys, time
calls = []

def words(prompt, answers, scale=1.0):
    print("a print does not disturb the pipe")
    return [scale * len(answer.text.split()) for answer in answers]

def raises(prompt, answers): return [1 / 0 for _ in answers]
def hangs(prompt, answers): time.sleep(60)
def spins(prompt, answers): 9 ** 9 ** 9
def exits(prompt, answers): sys.exit(3)
def crashes(prompt, answers): os.kill(os.getpid(), 11)
def nan(prompt, answers): return [0.0, float("nan")]
def infinite(prompt, answers): return [0.0, float("inf")]
def short(prompt, answers): return [1.0]
def number(prompt, answers): return 1.0
def nothing(prompt, answers): pass
def text(prompt, answers): return ["good"] * len(answers)
def array(prompt, answers):
    import numpy
    return numpy.array([1.0, 2.0])
def numpy_floats(prompt, answers):
    import numpy
    return [numpy.float32(0.5), True]
def remembers(prompt, answers):
    calls.append(prompt.id)
    return [float(len(calls))] * len(answers)
def sometimes(prompt, answers):
    if prompt.id == "p2": os._exit(1)
    return [1.0] * len(answers)
def tells(prompt, answers):
    said = (prompt.messages[0].content, prompt.solution, answers[0].tokens, answers[0].stop_reason)
    return [float(said == ("", "é", (1, 2), "length")), float(answers[1] == type(answers[1])("b"))]
def slow(prompt, answers):
    if prompt.id == "slow": time.sleep(1.5)
    return [7.0 if prompt.id == "slow" else 1.0] * len(answers)
not_a_function = 3
"""
PROMPT, ANSWERS = user("hello", id="p1"), [Answer("one two"), Answer("three")]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """`my_rewards` in the current directory, nowhere else."""
    (tmp_path / "my_rewards.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def reward(module):
    """Makes rewards and ends their children."""
    made = []

    def make(name, **options):
        made.append(ImportedReward.of(f"my_rewards:{name}", **{"deadline": 20.0, **options}))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_function_of_the_current_directory_without_importing_it_here(reward, capfd):
    assert reward("words")(PROMPT, ANSWERS) == [2, 1]
    assert reward("words", settings={"scale": 0.5})(PROMPT, ANSWERS) == [1, 0.5]
    assert "my_rewards" not in sys.modules
    assert capfd.readouterr() == ("", "a print does not disturb the pipe\n" * 2)


def test_records_arrive_whole(reward):
    prompt = Prompt((Message("user", ""), Message("assistant", "")), id="p", solution="é")
    answers = [Answer("a", (1, 2), (-0.5, -0.5), "length"), Answer("b")]
    assert reward("tells")(prompt, answers) == [1, 1]


def test_one_child_serves_all_calls(reward):
    scored = reward("remembers").measure([PROMPT] * 3, [ANSWERS] * 3)
    assert scored.values == [[1, 1], [2, 2], [3, 3]]
    assert scored.flags == {}


BAD = {
    "raises": r"raised ZeroDivisionError: division by zero \(my_rewards.py:9\) on prompt 'p1'",
    "exits": r"raised SystemExit: 3",
    "crashes": r"ended its process .* on prompt 'p1'",
    "nan": r"must return finite numbers; got nan for answer 1 on prompt 'p1'",
    "infinite": r"must return finite numbers; got inf for answer 1 on prompt 'p1'",
    "short": r"must return 2 numbers for 2 answers; got 1 on prompt 'p1'",
    "number": r"must return a list of floats, one an answer; got float 1.0 on prompt 'p1'",
    "nothing": r"must return a list of floats, one an answer; got NoneType None",
    "text": r"must return finite numbers; got 'good' for answer 0",
    "array": r"must return a list of floats, one an answer; got ndarray array\(\[1., 2.\]\)",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_reward_is_an_error_that_says_which_and_where(reward, name):
    with pytest.raises(ValueError, match=f"^reward my_rewards:{name} {BAD[name]}"):
        reward(name).measure([PROMPT], [ANSWERS])


def test_a_failing_prompt_scores_zero_and_is_counted_where_that_was_asked_for(reward):
    prompts = [user("x", id=f"p{i}") for i in (1, 2, 3)]
    scored = reward("sometimes", on_error="0").measure(prompts, [ANSWERS, ANSWERS[:1], ANSWERS])
    assert scored.values == [[1, 1], [0], [1, 1]]
    assert scored.flags == {"errors": [[0, 0], [1], [0, 0]]}
    with pytest.raises(RewardError, match="on prompt 'p2'"):
        reward("sometimes").measure(prompts, [ANSWERS, ANSWERS[:1], ANSWERS])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hangs", "spins"])
def test_a_hang_ends_at_the_deadline(reward, name):
    """`spins` holds the interpreter's lock: only a kill from outside ends it."""
    slow = reward(name, deadline=0.5, on_error="0")
    pid = _pid(slow.child)
    clock = time.monotonic()
    assert slow.measure([PROMPT], [ANSWERS]).values == [[0, 0]]
    assert 0.5 <= time.monotonic() - clock < 30
    assert not _alive(pid)
    with pytest.raises(ValueError, match=f"reward my_rewards:{name} did not answer within 0.5 s on prompt 'p1'"):
        reward(name, deadline=0.5).measure([PROMPT], [ANSWERS])


def test_numbers_of_any_kind_become_floats(reward):
    scores = reward("numpy_floats")(PROMPT, ANSWERS)
    assert scores == [0.5, 1.0]
    assert {type(s) for s in scores} == {float}


@pytest.mark.parametrize(
    ("path", "settings", "message"),
    [
        ("my_rewards:missing", {}, "AttributeError: module 'my_rewards' has no attribute 'missing'"),
        ("no_module:f", {}, "ModuleNotFoundError: No module named 'no_module'"),
        ("my_rewards:not_a_function", {}, "TypeError: my_rewards:not_a_function is a int, not a function"),
        ("my_rewards:words", {"scael": 1}, "TypeError: got an unexpected keyword argument 'scael'"),
        ("broken:f", {}, r"SyntaxError: .*broken.py, line 1"),
    ],
)
def test_what_cannot_be_called_is_refused_at_once(module, path, settings, message):
    Path("broken.py").write_text("def f(:\n")
    with pytest.raises(ValueError, match=f"^reward {path}: cannot be used: importing it raised {message}"):
        ImportedReward.of(path, settings)


def test_a_late_reply_cannot_answer_the_next_call(module):
    child = Child("my_rewards:slow", 0.2, here=True)
    with pytest.raises(ChildHungError):
        child.call(user("x", id="slow"), ANSWERS[:1])
    child.deadline = 20.0
    assert child.call(user("x", id="quick"), ANSWERS[:1]) == [1.0]
    child.kill()


@pytest.mark.slow
def test_a_child_does_not_outlive_a_killed_parent(module, tmp_path):
    """SIGKILL of the parent in the middle of a call that holds the lock: the kernel's alarm ends the child."""
    script = (
        "import sys\nfrom tutelage.rewards.functions import ImportedReward\nfrom tutelage.records import user, Answer\n"
        "reward = ImportedReward.of('my_rewards:spins', deadline=2.0)\n"
        "print(reward.child.pid, flush=True)\nreward(user('x'), [Answer('a')])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.3)
    parent.kill()
    parent.wait()
    assert _alive(pid)
    deadline = time.monotonic() + 30
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(pid)


def _pid(child):
    child.start()
    return child.pid


def _alive(pid):
    """Whether the process runs; one that ended and waits for its parent to notice does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return not Path("/proc/self").exists()
    return state not in "ZX"


def test_a_function_given_in_python_has_the_same_checks():
    def ratio(prompt, answers):
        return [1 / len(answer.text) for answer in answers]

    reward = CalledReward(ratio, "ratio")
    assert reward.measure([PROMPT], [[Answer("ab")]]).values == [[0.5]]
    with pytest.raises(ValueError, match="reward ratio raised ZeroDivisionError: division by zero on prompt 'p1'"):
        reward.measure([PROMPT], [[Answer("")]])
    with pytest.raises(ValueError, match="reward short must return 2 numbers"):
        CalledReward(lambda prompt, answers: [1.0], "short").measure([PROMPT], [ANSWERS])
    assert CalledReward(ratio, "ratio", "0").measure([PROMPT], [[Answer("")]]).values == [[0]]
