"""One lifecycle for everything that a run keeps at work: actors, the evaluator, the learner and the replay server.

Free of Ray and of any knowledge of what is started.
"""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from actors.supervision.restarts import BACKOFF_S, NotNowError, cause
from replay.errors import QherdError

TICK_S = 2.0
"""The most that one pause between two counts adds to the silence. Where the pause was longer, this process was the one
that did not run (a stopped or a frozen machine), and what it supervises may be well."""

H = TypeVar("H")


class LifecycleState(enum.Enum):
    """Where something supervised stands; its value is a few words for users."""

    NEW = "is about to start"
    STARTING = "has not answered yet"
    RUNNING = "runs"
    WAITING_TO_RESTART = "waits for its restart"
    GIVEN_UP = "is not started any more"
    RELEASED = "was ended"


_WAITING = {LifecycleState.NEW, LifecycleState.WAITING_TO_RESTART}


class HangError(QherdError, RuntimeError):
    """Something that does not answer."""

    exit_code = 1


class Supervised(Generic[H]):
    """Starts something, counts its silence, and starts it again after a pause where it died.

    ========================  ===========================================  ==================
    state                     event                                        next state
    ========================  ===========================================  ==================
    NEW                       ``start``, or ``start_if_due``               STARTING
    NEW                       ``adopt``                                    RUNNING
    WAITING_TO_RESTART        ``start_if_due`` after the pause             STARTING
    NEW, WAITING_TO_RESTART   the start raises NotNowError                 the same, for BACKOFF_S
    STARTING, RUNNING         ``replied``                                  RUNNING
    STARTING, RUNNING         ``died``                                     WAITING_TO_RESTART
    STARTING, RUNNING         ``died``, beyond the budget of restarts      GIVEN_UP
    STARTING, RUNNING         ``release``                                  RELEASED
    ========================  ===========================================  ==================
    """

    def __init__(
        self,
        start: Callable[[], H],
        pause_s: Callable[[Exception], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``start()`` returns a handle of what it has started. ``pause_s(error)`` counts a death; it returns the
        seconds until the restart, infinity for none, or raises CrashLoopError."""
        self._start, self._pause_s, self._clock = start, pause_s, clock
        self.state = LifecycleState.NEW
        self.handle: H | None = None
        """None while there is no process."""
        self.death: str | None = None
        """The cause of the newest death, in one line."""
        self.silent_s = 0.0
        """Seconds since the start or the newest reply, as far as this process was there to count them."""
        self._counted_at_s = self._last_reply_s = self._due_s = clock()

    @property
    def starting(self) -> bool:
        """Whether it was started and has not replied yet."""
        return self.state is LifecycleState.STARTING

    @property
    def running(self) -> bool:
        """Whether it has replied since its start."""
        return self.state is LifecycleState.RUNNING

    @property
    def has_process(self) -> bool:
        """Whether it was started and has not died since, as far as is known."""
        return self.starting or self.running

    def start(self) -> H:
        """Starts it now.

        Raises:
            NotNowError: it cannot be started yet. Whatever else the start raises passes, too.
        """
        self.handle = handle = self._start()
        self.state = LifecycleState.STARTING
        self.reset_silence()
        return handle

    def adopt(self, handle: H) -> None:
        """Takes over what was started, and has replied, already."""
        self.handle = handle
        self.replied()

    def start_if_due(self) -> bool:
        """Starts it where it has no process and its pause is over. Returns whether it was started."""
        if self.state not in _WAITING or self._clock() < self._due_s:
            return False
        try:
            self.start()
        except NotNowError:
            self._due_s = self._clock() + BACKOFF_S
            return False
        return True

    @property
    def due_in_s(self) -> float:
        """Seconds until ``start_if_due`` may start it; 0 where it may now."""
        return max(0.0, self._due_s - self._clock())

    def replied(self) -> None:
        """Counts a sign of life."""
        self.state = LifecycleState.RUNNING
        self._last_reply_s = self._clock()
        self.reset_silence()

    def reset_silence(self) -> None:
        """Counts its silence from now on: it was just started, has replied, or cannot reply for lack of resources."""
        self.silent_s, self._counted_at_s = 0.0, self._clock()

    def count_silence(self) -> None:
        """Adds the time since the last count to its silence; to be called at least every TICK_S."""
        now_s = self._clock()
        self.silent_s += min(now_s - self._counted_at_s, TICK_S)
        self._counted_at_s = now_s

    def died(self, error: Exception) -> float:
        """Counts its death and lets go of its handle, which is the caller's to end. Returns the seconds until the
        restart, infinity for none.

        Raises:
            CrashLoopError: it died more often than its budget allows.
        """
        self.state, self.handle, self.death = LifecycleState.GIVEN_UP, None, cause(error)
        pause_s = self._pause_s(error)
        self._due_s = self._clock() + pause_s
        if math.isfinite(pause_s):
            self.state = LifecycleState.WAITING_TO_RESTART
        return pause_s

    def release(self) -> H | None:
        """Returns the handle, if there is one, for the caller to end, and starts nothing any more."""
        handle, self.handle, self.state = self.handle, None, LifecycleState.RELEASED
        return handle

    def status_line(self) -> str:
        """Returns what it was last known to do, in a few words."""
        if not self.has_process:
            return f"died ({self.death})" if self.death else self.state.value
        if self.starting:
            return self.state.value
        before = f", died before ({self.death})" if self.death else ""
        return f"last answered {self._clock() - self._last_reply_s:.0f} s ago{before}"
