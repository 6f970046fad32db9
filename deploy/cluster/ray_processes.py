"""The processes of a Ray that this machine's driver started, after that has been shut down.

A worker looks once a second whether its raylet lives, later on a busy machine, and ends where it does not. A raylet
that has not ended its workers within a second of SIGTERM is killed: they then outlive the driver.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

GRACE_S, KILLED_S, LOOK_S = 2.0, 1.0, 0.05
"""Seconds in which processes may end by themselves, which ends what their environments have started, too; in which the
kernel ends those that are killed; and between two looks."""


def end_processes(token: str, folder: Path, grace_s: float = GRACE_S) -> None:
    """Waits until all processes of the Ray with this token and folder have ended; kills those that are there after
    ``grace_s``. Does nothing where the system has no /proc."""
    if not (left := _wait(token, folder, grace_s)):
        return
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _wait(token, folder, KILLED_S)


def _wait(token: str, folder: Path, seconds: float) -> list[int]:
    """Returns which processes are there after so many seconds; at once where there are none."""
    end = time.monotonic() + seconds
    while (left := list(_processes(token, folder))) and time.monotonic() < end:
        time.sleep(LOOK_S)
    return left


def _processes(token: str, folder: Path) -> Iterator[int]:
    """Yields the process ids of Ray's own, not of what others started, that have the token among their variables or a
    log open in the folder: the title that a process gives itself may lie where its variables were."""
    variable, logs = f"RAY_AUTH_TOKEN={token}".encode(), f"{folder.resolve()}{os.sep}"
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            command = (entry / "cmdline").read_bytes()
            if not (command.startswith(b"ray::") or os.fsencode(folder) in command):  # a worker's title; its arguments
                continue
            if variable in (entry / "environ").read_bytes().split(b"\0") or _opens_below(entry, logs):
                yield int(entry.name)


def _opens_below(process: Path, folder: str) -> bool:
    """Returns whether a process has a file open whose path, without links, begins so."""
    for opened in (process / "fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if str(opened.readlink()).startswith(folder):
                return True
    return False
