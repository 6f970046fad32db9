"""What this thread has had of a core, and how long it has waited for one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

SCHEDSTAT = Path("/proc/thread-self/schedstat")


class CpuTime(NamedTuple):
    """Seconds of a thread since it began: on a core, and ready to run while others had all cores (0 where the kernel
    does not say). The rest of its life it slept or waited for something else than a core."""

    on_core_s: float
    starved_s: float

    @classmethod
    def now(cls) -> CpuTime:
        """Of the calling thread."""
        try:
            starved_ns = int(SCHEDSTAT.read_text().split()[1])
        except (OSError, ValueError, IndexError):
            starved_ns = 0
        return cls(time.thread_time(), starved_ns / 1e9)
