"""Names become rewards; weights and parts; what is refused at the door."""

import sys

import pytest

from tutelage.records import Answer, user
from tutelage.rewards.combine import combine, resolve, resolve_judge
from tutelage.rewards.rules import REWARDS

PROMPTS = [user("6 x 7?", id="a", solution="42"), user("5 + 4?", id="b", solution="9")]
GROUPS = [[Answer("It is 42."), Answer("41", stop_reason="length")], [Answer("9"), Answer("")]]


def vowels(prompt, answers):
    return [float(sum(letter in "aeiou" for letter in answer.text.lower())) for answer in answers]


def explodes(prompt, answers):
    raise RuntimeError("boom")


def test_weighted_sum_by_hand():
    """sums 1, finished 0.5, vowels -0.1: "It is 42." 1 + 0.5 - 0.2; "41" 0; "9" 1.5; "" 0.5."""
    with combine(["sums", "finished=0.5", vowels]) as reward:
        total, parts = reward.score(PROMPTS, GROUPS)
        assert total == [[1 + 0.5 + 2, 0], [1.5, 0.5]]
        assert parts == {
            "sums": [[1, 0], [1, 0]],
            "finished": [[1, 0], [1, 1]],
            "vowels": [[2, 0], [0, 0]],
        }
        assert reward(PROMPTS, GROUPS) == total


def test_negative_weights_and_settings():
    total, parts = combine(["length_penalty(target=1, span=2)=2", "brevity=-1"]).score(PROMPTS, GROUPS)
    # words: 3 1 / 1 0
    assert parts["length_penalty"] == [[-1, 0], [0, 0]]
    assert total[0][0] == pytest.approx(-2 - 1 / (1 + 3 / 50))
    assert total[1] == pytest.approx([-1 / (1 + 1 / 50), 0])


def test_a_threshold_makes_a_yes_or_no():
    """Words 3 1 / 1 0: brevity .943 .980 / .980 0. Above .95 only the middle two; flags and the log stay the reward's."""
    total, parts = combine(["brevity(above=0.95)=2"]).score(PROMPTS, GROUPS)
    assert total == [[0, 2], [2, 0]]
    assert parts["brevity"] == [[0, 1], [1, 0]]
    assert combine(["finished(above=1)"]).score(PROMPTS, GROUPS)[0] == [[0, 0], [0, 0]], "equal is not above"
    gsm8k = combine(["gsm8k(above=0.5)"]).score(PROMPTS, GROUPS)
    assert gsm8k[0] == [[1, 0], [1, 0]]
    assert "gsm8k_timeouts" in gsm8k[1]


def test_groups_of_different_size_and_none():
    assert combine(["finished"]).score(PROMPTS, [[], GROUPS[0]])[0] == [[], [1, 0]]
    assert combine(["finished"]).score([], [])[0] == []


def test_equal_names_get_numbers_and_never_the_loops_own():
    def mean(prompt, answers):
        return [0.0] * len(answers)

    parts = combine(["brevity", "brevity(half=1)", mean]).score(PROMPTS, GROUPS)[1]
    assert list(parts) == ["brevity", "brevity_2", "mean_2"]


def test_errors_counted_only_where_asked_for():
    with pytest.raises(ValueError, match="reward explodes raised RuntimeError: boom on prompt 'a'"):
        combine([explodes]).score(PROMPTS, GROUPS)
    total, parts = combine(["finished", explodes], on_error="0").score(PROMPTS, GROUPS)
    assert total == [[1, 0], [1, 1]]
    assert parts["explodes_errors"] == [[1, 1], [1, 1]]


def test_an_import_path_with_weight_settings_and_its_own_error_rule(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def fn(prompt, answers, scale=1):\n"
        "    if prompt.id == 'b': raise KeyError('b')\n"
        "    return [scale * len(a.text) for a in answers]\n"
    )
    monkeypatch.chdir(tmp_path)
    with combine(["mine:fn(scale=2, on_error=0)=0.5"]) as reward:
        total, parts = reward.score(PROMPTS, GROUPS)
    assert total == [[9, 2], [0, 0]]
    assert parts == {"mine:fn": [[18, 4], [0, 0]], "mine:fn_errors": [[0, 0], [1, 1]]}
    assert "mine" not in sys.modules
    with (
        combine(["mine:fn(scale=2)"], on_error="error") as reward,
        pytest.raises(ValueError, match="raised KeyError: 'b'"),
    ):
        reward.score(PROMPTS, GROUPS)


def test_gsm8k_by_name_reports_timeouts():
    with combine(["gsm8k"]) as reward:
        total, parts = reward.score(PROMPTS, GROUPS)
    assert total == [[1, 0], [1, 0]]
    assert parts["gsm8k_timeouts"] == [[0, 0], [0, 0]]


def test_missing_solutions_are_found_before_training():
    reward = combine(["finished", "sums"])
    reward.check(PROMPTS)
    with pytest.raises(ValueError, match="reward sums compares with a known solution and prompt 'c' has none"):
        reward.check([*PROMPTS, user("?", id="c")])
    combine(["finished"]).check([user("?")])


def test_a_judge_is_one_reward():
    assert resolve_judge("sums=-1")(PROMPTS, GROUPS) == [[-1, 0], [-1, 0]]
    assert resolve("sums=-1").measure(PROMPTS, GROUPS).values == [[1, 0], [1, 0]]


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([], "no reward given; known: brevity, "),
        (["brevty"], "reward: unknown name 'brevty'; known: brevity, "),
        (["brevity(halve=2)"], "reward brevity: cannot take halve=2; settings (numbers above 0): half"),
        (["five_lines(lines=0)"], "reward five_lines: cannot take lines=0"),
        (["brevity(half=long)"], "reward brevity: cannot take half='long'"),
        (["finished(half=2)"], "reward finished: cannot take half=2; settings (numbers above 0): none"),
        (["brevity(label=good)"], "reward brevity: `label` has no meaning for it; got 'good'"),
        (["brevity(output=probability)"], "reward brevity: `output` has no meaning for it; got 'probability'"),
        (["gsm8k(x=1)"], "reward gsm8k: `settings` has no meaning for it"),
        (["no.mod:fn"], "reward no.mod:fn: cannot be used: importing it raised ModuleNotFoundError"),
        (["no/such/model"], "no such directory: no/such/model"),
        (["builtin:nothing"], "builtin:nothing"),
        ([{"reward": "brevity", "wait": 1}], "unknown key `wait`"),
    ],
)
def test_refused_at_the_door(terms, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is compared below, as it is)
        combine(terms)
    assert message in str(error.value)


def test_an_unknown_name_lists_all_known_ones():
    with pytest.raises(ValueError, match="unknown name") as error:
        resolve("nothing")
    assert all(name in str(error.value) for name in REWARDS)
