"""A budget of restarts: how often something may die, how long to wait before it comes back, and what it died of.

Free of Ray, which what runs in one process does not import.
"""

from __future__ import annotations

import random
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from replay.errors import QherdError
from replay.state import count, counts, number

BUDGET_WINDOW_S = 600.0
BACKOFF_S, MAX_BACKOFF_S = 0.5, 15.0
_GUESSES = " Some common causes include"
"""Begins the page of generic causes that Ray appends to the error of a dead worker: cut off."""


class CrashLoopError(QherdError, RuntimeError):
    """Something died more often than its budget allows; the text has its last error, ``details`` its traceback."""

    exit_code = 1

    def __init__(self, message: str, details: str) -> None:
        super().__init__(message)
        self.details = details


class NotNowError(RuntimeError):
    """A start that has to be tried again later: its number cannot be had or written down yet."""


def jitter() -> float:
    """Returns a factor for a wait: what died together (of a server that is down) should not all come back at once."""
    return random.uniform(0.5, 1.5)


@dataclass
class Restarts:
    """A budget of restarts within ``BUDGET_WINDOW_S``, and when the next may happen."""

    name: str
    budget: int
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = jitter
    allowed_by: str = "actors.restarts"
    """What the budget is set by: of an error's text."""
    deaths: deque[float] = field(default_factory=deque)
    total: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Deaths by the name of the exception's type."""

    def died(self, error: Exception) -> float:
        """Counts a death. Returns the seconds to wait before the restart.

        The n-th death within the window waits ``BACKOFF_S * 2^(n-1)``, at most MAX_BACKOFF_S, times the jitter.

        Raises:
            CrashLoopError: there were more deaths within the window than the budget allows.
        """
        now = self.clock()
        self.deaths.append(now)
        while self.deaths[0] < now - BUDGET_WINDOW_S:
            self.deaths.popleft()
        self.reasons[type(_root_cause(error)).__name__] += 1
        if len(self.deaths) > self.budget:
            raise CrashLoopError(
                f"{self.name} died {len(self.deaths)} times within {BUDGET_WINDOW_S:.0f} s ({self.allowed_by} allows "
                f"{self.budget}); the last time of {cause(error)}",
                str(error),
            )
        self.total += 1
        return float(min(MAX_BACKOFF_S, BACKOFF_S * 2 ** (len(self.deaths) - 1)) * self.jitter())

    def state(self) -> dict[str, Any]:
        """Returns what has been spent, for JSON: deaths as their ages, since another process has another clock."""
        now = self.clock()
        return {"ages_s": [now - died for died in self.deaths], "total": self.total, "reasons": dict(self.reasons)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over what another has spent."""
        now = self.clock()
        self.deaths = deque(now - number(age, "ages_s", 0) for age in state["ages_s"])
        self.total, self.reasons = count(state["total"], "total"), Counter(counts(state["reasons"], "reasons"))


def cause(error: Exception) -> str:
    """Returns the innermost reason of an error, which may be Ray's wrapping of another process's, in one line."""
    inner = _root_cause(error)
    lines = str(inner).partition(_GUESSES)[0].strip().splitlines() or [type(inner).__name__]
    return f"{type(inner).__name__}: {lines[-1] if _is_ray_error(inner) else lines[0]}"


def _root_cause(error: Exception) -> Exception:
    """Returns the error that was raised in an actor, inside Ray's RayTaskError."""
    inner = getattr(error, "cause", None)
    return inner if isinstance(inner, Exception) else error


def _is_ray_error(error: Exception) -> bool:
    """Returns whether this is a RayError, whose last line is the most specific, without importing Ray."""
    return any(base.__module__ == "ray.exceptions" for base in type(error).__mro__)
