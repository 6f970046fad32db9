"""Where the learner's time goes: every second between two readings is charged to exactly one phase."""

from __future__ import annotations

import time
from collections.abc import Callable

PHASES = {
    "wait": "slept, because the limiter allowed no batch or there were no rows",
    "ingest": "read the chunk log and took rows into the mirror",
    "sample": "chose rows and gathered them",
    "transfer": "handed the batches to the device",
    "compute": "forward, backward, Adam, target network (on a GPU: enqueued them)",
    "priorities": "fetched the TD errors (on a GPU: waited for it) and changed the priorities",
    "publish": "packed weights and handed weights and credit to the publisher",
    "trim": "trimmed the chunk log and described the run",
    "checkpoint": "took the state for a checkpoint, which a thread writes",
    "report": "put the metrics together (on a GPU: waited for it)",
    "outside": "not in the loop: evaluation's copies, the driver; in the inline mode the actors",
}
PHASE_KEY = "learner_{}_seconds"
"""What the seconds of a phase are called in rows of metrics.jsonl and in checkpoints."""


class Phases:
    """A lap clock. ``charge(phase)`` adds the time since the last call to that phase, so that the phases add up to the
    time since it was made and nothing is counted twice. A call costs about a sixth of a microsecond."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._last_s = clock, clock()
        self.seconds = dict.fromkeys(PHASES, 0.0)

    def charge(self, phase: str) -> None:
        """Adds the time since the last call to ``phase``."""
        now_s = self._clock()
        self.seconds[phase] += now_s - self._last_s
        self._last_s = now_s
