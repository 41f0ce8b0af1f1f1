"""A term's short form and its mapping say the same."""

import pytest

from tutelage.config import build, config
from tutelage.rewards.terms import RewardTerm, RewardText, parse_term, term_text

FORMS = {
    "brevity": RewardTerm(reward="brevity"),
    "brevity=0.5": RewardTerm(reward="brevity", weight=0.5),
    "brevity=-1e-3": RewardTerm(reward="brevity", weight=-0.001),
    "my.mod:fn=2.0": RewardTerm(reward="my.mod:fn", weight=2.0),
    "runs/tox(label=toxic, of=answer)=-1.0": RewardTerm(reward="runs/tox", weight=-1.0, label="toxic", of="answer"),
    'a/b(label="very bad, (really)=1")': RewardTerm(reward="a/b", label="very bad, (really)=1"),
    "length_penalty(target=60, span=0.5)": RewardTerm(reward="length_penalty", settings={"target": 60, "span": 0.5}),
    "m:f(on_error=0, deadline=5, mode=fast, deep=true)=0.1": RewardTerm(
        reward="m:f", weight=0.1, on_error="0", deadline=5.0, settings={"mode": "fast", "deep": True}
    ),
    "runs/safe(output=probability, above=0.5)=2.0": RewardTerm(
        reward="runs/safe", weight=2.0, output="probability", above=0.5
    ),
    "brevity(half=20, above=-1)": RewardTerm(reward="brevity", above=-1.0, settings={"half": 20}),
    "runs/lr=0.1/reward_model": RewardTerm(reward="runs/lr=0.1/reward_model"),
    "runs/lr=0.1/reward_model=0.5": RewardTerm(reward="runs/lr=0.1/reward_model", weight=0.5),
}


@pytest.mark.parametrize("text", FORMS)
def test_short_form(text):
    assert parse_term(text) == FORMS[text]
    assert parse_term(term_text(FORMS[text])) == FORMS[text]


def test_a_directory_is_its_own_name_whatever_is_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rm=2").mkdir()
    assert parse_term("rm=2") == RewardTerm(reward="rm=2")
    assert parse_term("rm=2=0.5") == RewardTerm(reward="rm=2", weight=0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("brevity=much", "the weight behind the last `=` must be a finite number; got 'much'"),
        ("brevity=nan", "must be a finite number; got 'nan'"),
        ("m:f(deadline=soon)", "deadline must be a finite number; got 'soon'"),
        ("m:f(deadline=0)", "deadline"),
        ("m:f(on_error=maybe)", "on_error"),
        ("m:f(of=prompt)", "of: "),
        ("m:f(above=much)", "above must be a finite number; got 'much'"),
        ("m:f(output=odds)", "output: "),
        ("", "expected NAME"),
    ],
)
def test_a_bad_term_says_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=r"^reward") as error:
        parse_term(text)
    assert message in str(error.value)


@config
class Recipe:
    reward: tuple[RewardText, ...] = ()


def test_recipes_write_terms_as_text_or_as_mappings():
    data = {"reward": ["gsm8k", {"reward": "five_lines", "weight": 0.5, "settings": {"lines": 4}}]}
    assert build(Recipe, data, "recipe.yaml").reward == ("gsm8k", "five_lines(lines=4)=0.5")
    with pytest.raises(ValueError, match=r"unknown key `wieght`"):
        build(Recipe, {"reward": [{"reward": "gsm8k", "wieght": 1}]}, "recipe.yaml")
