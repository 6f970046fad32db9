"""Processes that end with the one that started them, however that ends."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

# Runs between fork and exec, as a program of its own: Python code in a forked copy of a process with threads (Ray's)
# can deadlock. argv: the parent's pid, the signal, then the command. The parent may have died before prctl: hence the
# check.
_DIE_WITH_PARENT = """
import ctypes, os, sys
PR_SET_PDEATHSIG = 1
if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(sys.argv[2]), 0, 0, 0):
    sys.exit("prctl(PR_SET_PDEATHSIG): " + os.strerror(ctypes.get_errno()))
if os.getppid() != int(sys.argv[1]):
    sys.exit("the process that started this one is gone")
os.execv(sys.argv[3], sys.argv[3:])
"""


def dying_with_parent(command: Sequence[str], with_signal: signal.Signals) -> list[str]:
    """Returns a command that does the same as ``command``, and gets the signal from the kernel when the *thread* that
    starts it ends; elsewhere than on Linux ``command`` itself."""
    if sys.platform != "linux":
        return list(command)
    # -I -S: no site-packages, no PYTHON* variables, so that it takes 20 ms.
    wrapper = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), str(int(with_signal))]
    return [*wrapper, *command]
