"""Evaluations that fail: tried again within a budget, then seldom. A run does not end by them."""

from __future__ import annotations

import math
from collections.abc import Callable

from actors.supervision.restarts import BUDGET_WINDOW_S, CrashLoopError, Restarts, cause
from replay.errors import QherdError

HANGS = 2
"""Evaluations in a row that take longer than ``eval.timeout_s``, after which no further one is tried."""


class EvaluationHangs(QherdError, RuntimeError):
    """An evaluation that has taken longer than it may."""

    exit_code = 1


class Setbacks:
    """Counts evaluations that failed, and decides when the next one may be tried."""

    def __init__(self, restarts: Restarts, notify: Callable[[str], None]) -> None:
        self.restarts, self._notify = restarts, notify
        self._hung = 0
        self.failing = ""
        """Why nothing can be evaluated, from the time that the budget is used up to the next result."""

    def died(self, error: Exception) -> float:
        """Counts a failure and reports it. Returns the seconds to wait before the next try, infinity after the last."""
        self._hung = self._hung + 1 if isinstance(error, EvaluationHangs) else 0
        if self._hung >= HANGS:
            self.restarts.total += 1
            self.failing = f"{error}, {self._hung} times in a row"
            self._notify(f"{self.failing}: the run goes on and is not evaluated any more")
            return math.inf
        try:
            wait_s = self.restarts.died(error)
        except CrashLoopError as crash_loop:
            self.restarts.total += 1
            self.failing = str(crash_loop)
            self._notify(f"{crash_loop}; the run goes on, and is evaluated again in {BUDGET_WINDOW_S / 60:.0f} minutes")
            return BUDGET_WINDOW_S
        self._notify(f"the evaluator died ({cause(error)}); it restarts in {wait_s:.1f} s")
        return wait_s

    def succeeded(self) -> None:
        """Forgets the failures so far: there is a result again."""
        self._hung, self.failing = 0, ""
