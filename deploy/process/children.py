"""Processes that end with the one that started them, however that ends; commands of qherd among them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence

from deploy.process.signals import INTERRUPTED

STOPPED = (INTERRUPTED, -signal.SIGTERM, 128 + signal.SIGTERM)
"""How a command of qherd ends that was asked to stop."""

# Runs between fork and exec, as a program of its own: Python code in a forked copy of a process with threads (Ray's)
# can deadlock. argv: the parent's pid, the signal, then the command. The parent may have died before prctl: hence the
# check. Of a parent under nohup a SIGHUP that is ignored is inherited.
_DIE_WITH_PARENT = """
import _signal, ctypes, os, sys
if int(sys.argv[2]) == _signal.SIGHUP:
    _signal.signal(_signal.SIGHUP, _signal.SIG_DFL)
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


def qherd_command(arguments: Sequence[str]) -> list[str]:
    """Returns ``qherd`` with these arguments, in a session of its own to be started in, to be asked to stop when this
    process ends: by SIGHUP, which never counts as the second signal. The kernel sends it again and again, when the
    thread that has started the command ends and whenever one does that has become its parent then."""
    # -P: not from the folder that this process was started in, whose modules may be called as qherd's are
    return dying_with_parent([sys.executable, "-P", "-m", "deploy.cli", *arguments], signal.SIGHUP)


def kill_group(leader: subprocess.Popen[bytes]) -> None:
    """Ends the process that leads a group, whatever it is at, and what it or its environment has forked."""
    if leader.returncode is not None:  # its id may be a stranger's by now, but not while its group has members
        try:
            os.kill(leader.pid, 0)
        except ProcessLookupError:
            pass
        except PermissionError:
            return
        else:
            return
    with contextlib.suppress(ProcessLookupError, PermissionError):  # the latter of zombies alone, on macOS
        os.killpg(leader.pid, signal.SIGKILL)


@contextlib.contextmanager
def handing_over(config: str) -> Iterator[tuple[list[str], int]]:
    """Yields the arguments by which ``qherd`` reads this YAML document, and the file descriptor to pass on to it: the
    file has no name, so that none is left of it however this process ends."""
    with tempfile.TemporaryFile() as file:
        file.write(config.encode())
        file.seek(0)
        yield ["--config", f"/dev/fd/{file.fileno()}"], file.fileno()
