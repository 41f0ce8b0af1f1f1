"""How this process takes memory from the system and gives it back (glibc's allocator; elsewhere nothing is done)."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from dataclasses import dataclass
from typing import Any

NOTE = "TUTELAGE_ALLOCATOR"
"""Environment variable that says how the allocator was set up."""
GROWN = 1.25
"""How much more than needed is kept: giving back costs the next step a second or two."""
MMAP_MAX, TRIM_THRESHOLD, TOP_PAD = -4, -1, -2
"""Options of mallopt(3)."""


def keep_pages() -> None:
    """From now on freed memory stays with the process. To be called before torch loads.

    Training allocates the same large buffers again and again; glibc gives each back to the system and faults it in anew,
    which measured 10 to 15 % of a training step on a CPU.
    """
    set_option = _glibc("mallopt")
    if set_option is None:
        return
    done = [set_option(MMAP_MAX, 0), set_option(TRIM_THRESHOLD, 2**31 - 1), set_option(TOP_PAD, 256 << 20)]
    os.environ[NOTE] = "glibc, freed pages kept" if all(done) else "glibc"


def release() -> None:
    """What nobody uses goes back to the system: after a stage, for the next one's buffers have other sizes.

    Three stages in one process had grown to 8.1 GB where the largest alone takes 5.9.
    """
    gc.collect()
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(ctypes.c_size_t(0))


@dataclass
class Tidy:
    """Called after each step: gives kept pages back where they are more than a step was seen to need.

    Steps of other lengths leave holes that no later buffer fits into: 60 steps of IPO on dialogues had grown from 3.0 to
    6.8 GB. The step after a release shows what is needed; its pages are faulted in anew, once.
    """

    needed: int = 0
    """Bytes: the most that the process held after a step that began with nothing to spare."""
    fresh: bool = True
    """Whether the step that ends now began so."""

    def __call__(self) -> None:
        """A step is over."""
        held = resident()
        if self.fresh:
            self.needed, self.fresh = max(self.needed, held), False
        elif held > GROWN * self.needed:
            release()
            self.fresh = True


def resident() -> int:
    """Bytes of this process in memory; 0 where the system is not Linux."""
    try:
        with open("/proc/self/statm", encoding="ascii") as pages:
            return int(pages.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _glibc(name: str) -> Any:
    """A function of the C library, None where that is not glibc."""
    if sys.platform != "linux":
        return None
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):
        return None
