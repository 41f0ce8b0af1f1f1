"""A simulated annotator at the server: what it sends is in shown positions, and its faults are those of the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tutelage.feedback.client import Program, Votes
from tutelage.feedback.http import Http, UnreachableError
from tutelage.feedback.people import new_invite, owner
from tutelage.feedback.simulated import SimulatedAnnotator
from tutelage.feedback.simulated_person import SimulatedPerson
from tutelage.feedback.tokens import SCOPES, new_token


def length(prompt: Any, answer: Any) -> float:
    """Longer is better."""
    return float(len(answer.text))


@pytest.fixture
def hire(serving: Any) -> Any:
    """`hire(project, annotator)`: somebody who joined by a link."""

    def make(project: int, annotator: SimulatedAnnotator) -> SimulatedPerson:
        with serving.place.db.write() as c:
            link = f"{serving.url}/join/{new_invite(c, owner(c), 'labeller', project)}"
        return SimulatedPerson(link, annotator, length, np.random.default_rng(0))

    return make


@pytest.fixture
def program(serving: Any) -> Program:
    """A program with both scopes."""
    with serving.place.db.write() as c:
        return Program(serving.url, new_token(c, "test", SCOPES))


def test_ranks_come_back_in_the_order_that_was_sent(serving: Any, hire: Any, program: Program) -> None:
    number = program.project("ranks by length", "ranking", 1)
    texts = ["ccc", "a", "dddd", "bb"]
    program.add(number, [{"key": f"k{n}", "prompt": f"q{n}", "responses": texts} for n in range(6)])
    person = hire(number, SimulatedAnnotator("exact", temperature=1e-6))
    while person.judge_next(number):
        pass
    events = program.events(number, 0)
    assert len(events) == person.judged == 6
    assert len({tuple(e["permutation"]) for e in events}) > 1, "the order on the screen never changed"
    for event in events:
        by_text = {texts[i]: event["payload"]["ranks"][place] for place, i in enumerate(event["permutation"])}
        assert by_text == {"dddd": 1, "ccc": 2, "bb": 3, "a": 4}


def test_pairs_noise_and_side_bias_are_the_models(hire: Any, program: Program) -> None:
    """sigmoid(0.5 + 1) = 0.818 for the better one on the left, sigmoid(0.5 - 1) = 0.378 on the right; 4 standard errors."""
    number = program.project("biased pairs", "preference", 1)
    program.add(number, [{"key": f"k{n}", "prompt": "q", "responses": ["aa", "b"]} for n in range(1)])
    person = hire(number, SimulatedAnnotator("leaning", temperature=2.0, side_bias=1.0))
    shown = {"left": ["aa", "b"], "right": ["b", "aa"]}
    for side, expected in (("left", 0.818), ("right", 0.378)):
        item = {"kind": "preference", "prompt": [], "responses": [{"text": t} for t in shown[side]]}
        better = "first" if side == "left" else "second"
        share = np.mean([person.payload(item)["choice"] == better for _ in range(4000)])
        assert share == pytest.approx(expected, abs=4 * 0.5 / 4000**0.5)
    assert person.judge_next(number)
    votes = Votes()
    votes.feed(program.events(number, 0))
    assert [len(found) for found in votes.by_key().values()] == [1]


def test_a_used_invitation_and_a_wrong_token_are_refused(serving: Any, hire: Any) -> None:
    with pytest.raises(ValueError, match="does not work"):
        SimulatedPerson(f"{serving.url}/join/wrong", SimulatedAnnotator("x"), length, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"was refused \(401\)"):
        Program(serving.url, "tut_wrong").events(1, 0)


def test_a_server_that_is_not_there_and_addresses_that_would_leak_a_token() -> None:
    with pytest.raises(UnreachableError, match="does not answer"):
        Program("http://127.0.0.1:9", "t").events(1, 0)
    with pytest.raises(ValueError, match="https://NAME"):
        Program("http://example.org", "t")
    assert "secret" not in repr(Program("http://127.0.0.1:9", "secret"))
    assert Http("http://localhost:8000/join/x").url == "http://localhost:8000"
