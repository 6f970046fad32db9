"""Keeps a run's one learner at work: two slices in flight, a new one from the newest checkpoint where it died."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import ray

from actors.restarts import BACKOFF_S, NotNowError, Restarts, cause
from deploy.config.errors import RunFailedError
from deploy.sessions.base import Notify
from learner.checkpoint import CheckpointError
from learner.report import Diverged, Report, Resumed
from replay.chunk_log.protocol import Fenced, UnusableServer
from replay.identity import WrongCodeError
from replay.storage import CannotFit

SLICE_S = 0.25
"""Seconds of one call of the learner."""
READY_S = 120.0
"""Seconds after which a learner that has not answered counts as hung."""
FINAL = (Diverged, Fenced, UnusableServer, CannotFit, CheckpointError, WrongCodeError)
"""What another learner would meet, too."""


class LearnerSeat:
    """``start()`` starts a learner under the next fence and returns its handle."""

    def __init__(self, start: Callable[[], Any], restarts: Restarts, notify: Notify) -> None:
        self._start, self.restarts, self._notify = start, restarts, notify
        self._slices: deque[Any] = deque()
        self._restart_at_s: float | None = None
        self._driver_row: Mapping[str, float] = {}
        self._died: Mapping[int, Mapping[int, int]] = {}
        self._sit_down()

    def _sit_down(self) -> None:
        self.handle = self._start()
        self._resumed = self.handle.resumed.remote()
        self._slices.clear()
        self._ask()

    def _ask(self) -> None:
        while len(self._slices) < 2:  # so that the learner never waits for the driver
            self._slices.append(self.handle.train.remote(SLICE_S, self._driver_row, self._died))
        self._heard_s = time.monotonic()

    @property
    def works(self) -> bool:
        """Whether there is a learner, as far as is known."""
        return self._restart_at_s is None

    @property
    def heard(self) -> bool:
        """Whether the present learner has answered."""
        return self._resumed is None

    def excuse(self) -> None:
        """It cannot answer yet: the cluster has no room for it."""
        self._heard_s = time.monotonic()

    def candidate(self) -> Any:
        """A reference to the averaged policy, packed."""
        return self.handle.candidate.remote()

    def started(self, excused: Callable[[], bool]) -> Resumed | None:
        """Wait for the learner of a resumed run, longer while it is ``excused``; where it goes on from. Raises
        RunFailedError where it cannot."""
        while not ray.wait([self._resumed], timeout=SLICE_S)[0] and time.monotonic() - self._heard_s < READY_S:
            if excused():
                self.excuse()
        try:
            resumed: Resumed | None = ray.get(self._resumed, timeout=0.0)
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
            raise RunFailedError(f"the learner failed: {cause(error)}", str(error)) from None
        self._resumed = None
        return resumed

    def tick(
        self, driver_row: Mapping[str, float], died: Mapping[int, Mapping[int, int]]
    ) -> tuple[Report, Resumed | None] | None:
        """Wait up to a slice for a report; with the first one of a learner that was started anew comes where it went on
        from. ``driver_row``: the driver's metrics by key, for /metrics; ``died``: see ``Ledger.record_deaths``.

        Raises RunFailedError for what another learner would meet, too, and CrashLoopError beyond the budget.
        """
        self._driver_row, self._died = driver_row, died
        if self._restart_at_s is not None:
            self._restart_when_due(self._restart_at_s)
            return None
        done, _ = ray.wait([self._slices[0]], timeout=SLICE_S)
        if not done:
            if time.monotonic() - self._heard_s > READY_S:
                self._bury(RuntimeError(f"it has not answered for {READY_S:.0f} s"))
            return None
        try:
            report: Report = ray.get(self._slices.popleft())
            resumed = ray.get(self._resumed) if self._resumed is not None else None
        except ray.exceptions.RayError as error:
            if _final(error):
                raise RunFailedError(f"the learner failed: {cause(error)}", str(error)) from None
            self._bury(error)
            return None
        self._resumed = None
        self._ask()
        return report, resumed

    def _bury(self, error: Exception) -> None:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(self.handle)
        wait_s = self.restarts.died(error)
        self._restart_at_s = time.monotonic() + wait_s
        self._notify(f"the learner died ({cause(error)}); it restarts from its newest checkpoint in {wait_s:.1f} s")

    def _restart_when_due(self, due_s: float) -> None:
        if time.monotonic() < due_s:
            time.sleep(min(SLICE_S, max(0.0, due_s - time.monotonic())))
            return
        try:
            self._sit_down()
            self._restart_at_s = None
        except NotNowError:
            self._restart_at_s = time.monotonic() + BACKOFF_S


def _final(error: Exception) -> bool:
    """Whether another learner would end like this. Of an error in a constructor Ray keeps the text only."""
    if isinstance(getattr(error, "cause", None), FINAL):
        return True
    last = (str(error).strip().splitlines() or [""])[-1]
    names = tuple(f"{kind.__module__}.{kind.__qualname__}: " for kind in FINAL)
    return bool(getattr(error, "actor_init_failed", False)) and last.startswith(names)
