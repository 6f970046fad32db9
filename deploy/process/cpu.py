"""Since when a process is at work, and the CPU time of it and of all that it started."""

from __future__ import annotations

import os
import time
from pathlib import Path

PROC = Path("/proc")


def tree_cpu_s(pid: int) -> float:
    """Returns the CPU seconds of a process, of those of its descendants that live and of those that have ended and
    were waited for; 0.0 where the process is gone or the system has no /proc."""
    process, ticks_per_s = PROC / str(pid), os.sysconf("SC_CLK_TCK")
    try:
        after_name = (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    spent_s = sum(map(int, after_name[11:15])) / ticks_per_s  # user, system, and both of children waited for
    return spent_s + sum(map(tree_cpu_s, children_of(pid)))


def started_s() -> float:
    """Returns when this process was started, in seconds of ``time.monotonic()``; now, where the system has no /proc.

    Where a script has become this process by exec, that is the script's start.
    """
    try:
        after_name = (PROC / "self" / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.monotonic()
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(after_name[19]) / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - max(0.0, age_s)


def children_of(pid: int) -> list[int]:
    """Returns the process ids of a process's living children; none where it is gone or the system has no /proc."""
    found: list[int] = []
    try:
        tasks = list((PROC / str(pid) / "task").iterdir())
    except OSError:
        return found
    for task in tasks:
        try:
            found += map(int, (task / "children").read_text().split())
        except OSError:  # a thread that has ended, or a kernel without this file
            continue
    return found
