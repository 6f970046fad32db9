"""Ray actors on their way out: they flush, close their environments, and are killed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

LEAVE_S = 20.0
"""Seconds that a departing process may take to end its calls in flight, to flush and to close its environments."""


@dataclass
class _Departure:
    name: str
    handle: Any
    flush: Any  # None for one that failed: what it has in hand does not follow what it has sent
    close: Any
    until_s: float
    on_end: Callable[[], None]


class Departures:
    """Processes that are not asked for anything new. Waits for none of them, except in ``end``."""

    def __init__(self, notify: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._notify, self._clock = notify, clock
        self._departing: list[_Departure] = []

    def __len__(self) -> int:
        return len(self._departing)

    @property
    def flushes(self) -> list[Any]:
        """References to the flushes of those that flush."""
        return [each.flush for each in self._departing if each.flush is not None]

    def let_go(self, name: str, handle: Any, flush_s: float, on_end: Callable[[], None] = lambda: None) -> None:
        """Has a process flush within ``flush_s`` and close its environments; ``on_end()`` is called when ``reap`` has
        ended it."""
        flush = handle.flush.remote(flush_s)
        self._add(name, handle, flush, on_end)

    def close(self, name: str, handle: Any) -> None:
        """Has a process close its environments."""
        self._add(name, handle, None, lambda: None)

    def _add(self, name: str, handle: Any, flush: Any, on_end: Callable[[], None]) -> None:
        until_s = self._clock() + LEAVE_S
        self._departing.append(_Departure(name, handle, flush, handle.close.remote(), until_s, on_end))

    def end_failed(self, name: str, handle: Any, error: Exception) -> None:
        """Ends a process that failed: at once where it is gone or hangs; one that raised closes its environments
        first, since it lives."""
        if isinstance(error, ray.exceptions.RayTaskError):
            self.close(name, handle)
        else:
            kill(handle)

    def reap(self) -> None:
        """Ends those that are done, or had their time."""
        for each in tuple(self._departing):
            if ray.wait([each.close], timeout=0)[0] or self._clock() > each.until_s:
                self._departing.remove(each)
                if each.flush is not None:
                    kept = "" if _flushed(each.flush) else "; what it had in hand is lost"
                    self._notify(f"{each.name} has left{kept}")
                    each.on_end()
                self._report_close(each)
                ray.kill(each.handle)

    def end(self, seconds: float) -> None:
        """Ends all of them once their environments are closed, or after so many seconds."""
        closes = [each.close for each in self._departing]
        if closes:
            ray.wait(closes, num_returns=len(closes), timeout=max(0.0, seconds))
        for each in self._departing:
            self._report_close(each)
            ray.kill(each.handle)
        self._departing.clear()

    def _report_close(self, each: _Departure) -> None:
        """Reports environments that did not let themselves be closed."""
        if not ray.wait([each.close], timeout=0)[0]:
            self._notify(f"{each.name} had no time to close its environments")
            return
        with contextlib.suppress(ray.exceptions.RayError):
            for line in ray.get(each.close):
                self._notify(f"{each.name}: {line}")


def kill(handle: Any) -> None:
    """Kills a Ray actor, which may be dead."""
    with contextlib.suppress(ray.exceptions.RayError):
        ray.kill(handle)


def _flushed(flush: Any) -> bool:
    with contextlib.suppress(ray.exceptions.RayError):
        return bool(ray.wait([flush], timeout=0)[0] and ray.get(flush))
    return False
