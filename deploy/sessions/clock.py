"""How long a run has taken, and how fast it is."""

from __future__ import annotations

import math
import os
import time
from collections import deque

from deploy.process.cpu import tree_cpu_s

CPU_EVERY_S = 5.0
"""Seconds between two looks at the CPU time: with Ray's processes one takes 5 ms."""


class Clock:
    """What a run has taken, what it took before it was resumed included; its starts end when learner and an actor have
    answered."""

    def __init__(
        self, wall_s: float = 0.0, start_s: float = 0.0, cpu_s: float = 0.0, *, since_s: float | None = None
    ) -> None:
        """Counts from ``since_s`` on, in seconds of ``time.monotonic()`` (None: now), and the CPU time from the start
        of this process. The other arguments: those of the run that is resumed."""
        self._started_s, self._begun_s = time.monotonic() if since_s is None else since_s, math.inf
        self._wall_before_s, self._start_before_s, self._cpu_before_s = wall_s, start_s, cpu_s
        self._cpu_s, self._cpu_looked_s = 0.0, -math.inf

    def begin(self) -> None:
        """Ends the start, if it has not ended."""
        self._begun_s = min(self._begun_s, time.monotonic())

    @property
    def wall_s(self) -> float:
        """All of it."""
        return self._wall_before_s + time.monotonic() - self._started_s

    @property
    def cpu_s(self) -> float:
        """The CPU seconds of this process and all its descendants, at most ``CPU_EVERY_S`` old."""
        if time.monotonic() - self._cpu_looked_s >= CPU_EVERY_S:
            self.count_cpu()
        return self._cpu_before_s + self._cpu_s

    def count_cpu(self) -> None:
        """Makes ``cpu_s`` as it is now."""
        # never less than before: a process that ends before its parent waits for it is in neither's time
        self._cpu_s, self._cpu_looked_s = max(self._cpu_s, tree_cpu_s(os.getpid())), time.monotonic()

    @property
    def start_s(self) -> float:
        """Its starts."""
        return self._start_before_s + min(self._begun_s, time.monotonic()) - self._started_s

    @property
    def trained_s(self) -> float:
        """What the budget of seconds counts."""
        return self.wall_s - self.start_s


class Rates:
    """Env steps and updates per second, as their mean over the last seconds: the newest quarter second has many of
    either or none."""

    OVER_S = 5.0

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float, float]] = deque()

    def update(self, now_s: float, env_steps: int, updates: int) -> dict[str, float]:
        """Returns the rates, by key, given the newest counts; empty where there are none of two moments yet."""
        newest = (now_s, env_steps, updates)
        if self._seen and newest[1:] < self._seen[-1][1:]:  # a learner that went back to its checkpoint
            self._seen.clear()
        self._seen.append(newest)
        while len(self._seen) > 2 and self._seen[1][0] <= now_s - self.OVER_S:
            self._seen.popleft()
        passed_s, more_env_steps, more_updates = (new - old for new, old in zip(newest, self._seen[0], strict=True))
        if passed_s <= 0:
            return {}
        return {"env_steps_per_second": more_env_steps / passed_s, "updates_per_second": more_updates / passed_s}
