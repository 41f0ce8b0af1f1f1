"""What the command settles before torch loads."""

from __future__ import annotations

import os

import pytest

from tutelage import cli


@pytest.mark.parametrize(
    ("given", "spins"),
    [
        ({}, cli.SPINS),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
    ids=["nothing said", "spins said", "a policy said"],
)
def test_threads_wait_as_the_user_says_or_briefly(monkeypatch, given, spins):
    monkeypatch.setattr(os, "environ", dict(given))
    monkeypatch.setattr("tutelage.memory.keep_pages", lambda: None)
    cli.settle_process()
    assert os.environ.get("GOMP_SPINCOUNT") == spins
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
