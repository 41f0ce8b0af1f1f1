"""Floors of a step by hand, and what becomes of a measurement that was disturbed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tutelage.models.floors import Network
from tutelage.models.hardware import Machine
from tutelage.training import limits
from tutelage.training.limits import Limit, Step, step_floors
from tutelage.training.work import Work

SLOW = Machine(1000.0, 100.0, "float32", 2, "cpu", "a slow machine", 10**9, "glibc")
POLICY = Network(body=90, head=10, trained=5, factor=4, weight_bytes=4, kv_bytes=8)
REWARD = Network(body=50, head=0, trained=0, factor=2, weight_bytes=4, kv_bytes=8)
PREPARED = {(1, False): 20}
UPDATED = {(1, True): 25}
"""The policy saw five tokens more than it needed."""


def a_step(**changes) -> Step:
    work = {
        "draw": Work(9.0),
        "sample": Work(4.0),
        "reward": Work(5.0, through={(2, False): 40}, own={(2, False): 30}),
        "prepare": Work(4.0, 20, 16, PREPARED),
        "update": Work(20.0, 20, 16, UPDATED),
        "optimizer": Work(1.4),
        **changes,
    }
    return Step(work, {1: POLICY, 2: REWARD}, [([4], [[3, 2]])], trained=5, updates=2)


def test_the_floors_of_a_step_by_hand():
    """reward: 2 x 50 x 30 / 1000; a reference pass: 2 (90 x 20 + 10 x 16) / 1000, an adapter's update twice that.

    Sampling: 2 x 90 x 4 / 1000 to read the prompt, then two steps of two rows and of one: 100 x 4 bytes of weights and 8 bytes
    a token looked back on, 4 + 4 and then 5, at 100 bytes/s. The optimiser moves 28 x 5 x 2 bytes.
    """
    found = step_floors(SLOW, a_step())
    assert found == {
        "reward": pytest.approx(3.0),
        "prepare": pytest.approx(3.92),
        "update": pytest.approx(7.84),
        "optimizer": pytest.approx(2.8),
        "sample": pytest.approx(0.72 + 4.64 + 4.40),
    }


def test_what_was_not_needed_or_not_seen_is_in_no_floor():
    """A padded update of 25 tokens needs 20; a value model that saw 12 of the rows' 20 did not do the work of 20."""
    both = Work(20.0, 20, 16, {(1, True): 25, (2, True): 12})
    value = replace(REWARD, factor=6)
    step = replace(a_step(update=both), networks={1: POLICY, 2: value})
    assert step_floors(SLOW, step)["update"] == pytest.approx(7.84 + 6 * 50 * 12 / 1000)


def test_an_unknown_network_and_a_narrower_one_have_no_floor():
    step = a_step()
    assert step_floors(SLOW, replace(step, networks={1: None, 2: None})) == {"optimizer": pytest.approx(2.8)}
    narrow = {1: replace(POLICY, weight_bytes=1), 2: REWARD}
    assert sorted(step_floors(SLOW, replace(step, networks=narrow))) == ["optimizer", "reward"]


def test_fractions_are_floors_over_seconds():
    """At twice the FLOP/s and a hundred times the bytes/s decoding multiplies: 0.36 s for the prompt, steps of 0.2 and 0.1 s."""
    found = Limit(replace(SLOW, flops=2000.0, bandwidth=1e4)).fractions(a_step(), whole=34.4)
    sampling = 0.36 + 0.2 + 0.1
    assert found["fraction_of_limit/sample"] == pytest.approx(sampling / 4)
    assert found["fraction_of_limit/update"] == pytest.approx(3.92 / 20)
    assert found["fraction_of_limit"] == pytest.approx((1.5 + 1.96 + 3.92 + 0.028 + sampling) / 34.4)
    assert "fraction_of_limit/draw" not in found


def test_a_phase_below_its_floor_has_the_machine_measured_again(monkeypatch):
    """Busy when it was measured: 1 s of work took half a second. The better F is kept, told, and used at once."""
    asked, told = [], []

    def again(dtype, device):
        asked.append(str(dtype))
        return replace(SLOW, flops=4000.0, bandwidth=90.0)

    monkeypatch.setattr(limits, "measure", again)
    limit = Limit(SLOW, told.append)
    fast = a_step(prepare=Work(2.0, 20, 16, PREPARED), optimizer=Work(3.0), sample=Work(20.0))
    found = limit.fractions(fast, whole=100.0)
    assert asked == ["torch.float32"]
    assert told == [replace(SLOW, flops=4000.0)] == [limit.machine]
    assert found["fraction_of_limit/prepare"] == pytest.approx(3.92 / 4 / 2.0)
    limit.fractions(fast, whole=100.0)
    assert len(asked) == 1, "all is below now"
    monkeypatch.setattr(limits, "PATIENCE", 0)
    limit.fractions(fast, whole=100.0)
    assert len(asked) == 2, "and after a while it is looked at again"
    assert len(told) == 1, "with nothing better found"


def test_a_step_without_work_has_no_fraction():
    assert Limit(SLOW).fractions(Step({"draw": Work(1.0)}, {1: POLICY}), whole=1.0) == {}
