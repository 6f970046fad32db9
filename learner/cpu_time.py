"""CPU time and run-queue wait of the calling thread."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

SCHEDSTAT = Path("/proc/thread-self/schedstat")


class CpuTime(NamedTuple):
    """Seconds of a thread since it began: on a core, and ready to run while others had all cores (0 where the kernel
    does not tell). The rest of its life it slept or waited for something else than a core."""

    on_core_s: float
    starved_s: float

    @classmethod
    def now(cls) -> CpuTime:
        """Returns those of the calling thread."""
        try:
            starved_ns = int(SCHEDSTAT.read_text().split()[1])
        except (OSError, ValueError, IndexError):
            starved_ns = 0
        return cls(time.thread_time(), starved_ns / 1e9)
