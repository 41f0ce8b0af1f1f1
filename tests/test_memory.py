"""Freed memory stays with a process that asked for it, until it is released."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import os
from tutelage.memory import NOTE, keep_pages, release

def held():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

keep_pages()
start = held()
blocks = [bytearray(b"x") * (48 << 20) for _ in range(5)]
full = held()
del blocks
kept = held()
release()
print(os.environ[NOTE], start, full, kept, held(), sep="|")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only glibc's allocator is set up")
def test_freed_pages_are_kept_until_they_are_released():
    """Five blocks of 48 MiB: freed they stay (240 MiB more than at the start), released they are gone."""
    said = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    note, *sizes = said.strip().split("|")
    start, full, kept, after = map(float, sizes)
    assert note == "glibc, freed pages kept"
    assert full - start > 230
    assert kept - start > 230
    assert after - start < 60


STEPS = """
from tutelage.memory import Tidy, keep_pages, resident

def step(mib):
    blocks = [bytearray(b"x") * (mib << 20) for _ in range(5)]
    del blocks
    tidy()
    return resident() / 2**20

keep_pages()
tidy, start = Tidy(), resident() / 2**20
print(*(step(mib) - start for mib in (20, 20, 60, 60, 60)))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only glibc's allocator is set up")
def test_what_a_step_needs_is_kept_and_more_is_given_back():
    """Steps of 100, 100, 300, 300 and 300 MiB: the third outgrows what the first needed, the fourth shows the new need."""
    said = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True).stdout
    first, second, third, fourth, fifth = map(float, said.split())
    assert 90 < first < 250
    assert 90 < second < 250
    assert third < 90
    assert fourth > 290
    assert fifth > 290
