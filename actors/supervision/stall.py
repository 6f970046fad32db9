"""Notices a run into which nothing comes any more, though every process of it answers."""

from __future__ import annotations

import time
from collections.abc import Callable

from replay.metrics import LimiterMetrics, ReplayMetrics


class StallDetector:
    """Notices when no env step comes in any more: an environment that hangs would have the run wait for ever."""

    def __init__(self, most_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_s, self._clock = most_s, clock
        self._env_steps: int | None = None
        self._since_s = 0.0

    def stalled(self, replay: ReplayMetrics, limiter: LimiterMetrics) -> bool:
        """Returns whether the learner's metrics have shown no new env step for too long. Time without credit, or with a
        server down, does not count: actors have to wait then."""
        waiting = not limiter.credit_rows or replay.servers_down
        if replay.env_steps != self._env_steps or waiting:
            self._env_steps, self._since_s = replay.env_steps, self._clock()
        return self._clock() - self._since_s > self._most_s

    def reset(self) -> None:
        """Counts from now on: the learner is another one, or what the actors need is not there yet."""
        self._since_s = self._clock()
