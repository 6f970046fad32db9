"""The CPU time of a process and of all that it started."""

from __future__ import annotations

import os
from pathlib import Path

PROC = Path("/proc")


def tree_cpu_s(pid: int) -> float:
    """Returns the CPU seconds of a process, of those of its descendants that live and of those that have ended and
    were waited for; 0.0 where the process is gone or the system has no /proc."""
    process, ticks_per_s = PROC / str(pid), os.sysconf("SC_CLK_TCK")
    try:
        after_name = (process / "stat").read_text().rpartition(")")[2].split()
        spent_s = sum(map(int, after_name[11:15])) / ticks_per_s  # user, system, and both of children waited for
        tasks = [each.name for each in (process / "task").iterdir()]
    except (OSError, ValueError):
        return 0.0
    for task in tasks:
        try:
            children = (process / "task" / task / "children").read_text().split()
        except OSError:  # a thread that has ended, or a kernel without this file
            continue
        spent_s += sum(tree_cpu_s(int(child)) for child in children)
    return spent_s
