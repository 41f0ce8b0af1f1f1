"""Whether this processor has Intel's matrix unit (AMX), and the system lends it."""

from __future__ import annotations

import ctypes
import sys
from importlib import import_module

ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18
"""Of Linux on x86-64: the call, its request, and which of the processor's units is asked for (Documentation/arch/x86/xstate.rst)."""


def refused() -> str:
    """Why it cannot be used; empty where it can, from now on by every thread of this process."""
    if not import_module("llvmlite.binding").get_host_cpu_features().get("amx-bf16"):
        return "this processor has no AMX"
    if sys.platform != "linux":
        return f"AMX is asked for on Linux only; this is {sys.platform}"
    if ctypes.CDLL(None).syscall(ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA):
        return "the system does not lend AMX to this process"
    return ""
