"""Environments that were made anew: counted all, reported as far as a terminal has room."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable


class RebuildNotices:
    """Counts environments that were made anew and reports each, but no more than ``BURST`` of them a minute."""

    BURST, EVERY_S = 5, 60.0

    def __init__(self, notify: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._notify, self._clock = notify, clock
        self._reported_s: deque[float] = deque(maxlen=self.BURST)
        self._unreported = 0
        self.total = 0

    def record(self, who: str, lines: Iterable[str]) -> None:
        """Counts environments of ``who``, a line for each, and reports those that there is room for."""
        for line in lines:
            self.total += 1
            if self._has_room():
                self._report(f"{who}: its environment was made anew: {line}")
            else:
                self._unreported += 1

    def catch_up(self) -> None:
        """Reports how many were not reported, once there is room again."""
        if self._unreported and self._has_room():
            self._report(f"{self._unreported} more environments were made anew meanwhile")
            self._unreported = 0

    def _report(self, line: str) -> None:
        self._reported_s.append(self._clock())
        self._notify(line)

    def _has_room(self) -> bool:
        return len(self._reported_s) < self.BURST or self._clock() - self._reported_s[0] > self.EVERY_S
