"""Environments that were made anew: counted all, reported as far as a terminal has room."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable


class Rebuilt:
    """Counts the environments that were made anew and says each, but no more than ``BURST`` of them a minute."""

    BURST, EVERY_S = 5, 60.0

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._said_s: deque[float] = deque(maxlen=self.BURST)
        self._unsaid = 0
        self.total = 0

    def note(self, who: str, lines: Iterable[str]) -> None:
        """Count what ``who`` tells of, each in one line, and say it where there is room."""
        for line in lines:
            self.total += 1
            if self._room():
                self._say_now(f"{who}: its environment was made anew: {line}")
            else:
                self._unsaid += 1

    def catch_up(self) -> None:
        """Say how many were not said, once there is room again."""
        if self._unsaid and self._room():
            self._say_now(f"{self._unsaid} more environments were made anew meanwhile")
            self._unsaid = 0

    def _say_now(self, line: str) -> None:
        self._said_s.append(self._clock())
        self._say(line)

    def _room(self) -> bool:
        return len(self._said_s) < self.BURST or self._clock() - self._said_s[0] > self.EVERY_S
