"""Keeps a run's one learner at work: two slices in flight, a new one from the newest checkpoint where it died."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import ray

from actors.supervision.calls import Calls
from actors.supervision.departures import kill
from actors.supervision.restarts import Restarts, cause
from actors.supervision.supervised import Supervised
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


class LearnerSupervisor:
    """The run's learner. ``start()`` starts one under the next fence and returns its handle."""

    def __init__(self, start: Callable[[], Any], restarts: Restarts, notify: Notify) -> None:
        self.restarts, self._notify = restarts, notify
        self._process: Supervised[Any] = Supervised(start, restarts.died, restarts.clock)
        self._calls = Calls()
        self._driver_row: Mapping[str, float] = {}
        self._died: Mapping[int, Mapping[int, int]] = {}
        self._begin(self._process.start())

    def _begin(self, handle: Any) -> None:
        """Calls a learner that was just started."""
        self._calls.drop()
        self._resumed: Any = handle.resumed.remote()
        """The call that returns where it goes on from; None once its result is taken."""
        self._train(handle)

    def _train(self, handle: Any) -> None:
        self._calls.refill(lambda: handle.train.remote(SLICE_S, self._driver_row, self._died))

    @property
    def handle(self) -> Any:
        """The learner; None while there is none, as far as is known."""
        return self._process.handle

    @property
    def has_process(self) -> bool:
        """Whether there is a learner, as far as is known."""
        return self._process.has_process

    @property
    def starting(self) -> bool:
        """Whether it was started and has not replied yet."""
        return self._process.starting

    def reset_silence(self) -> None:
        """Counts its silence from now on: the cluster has no room for it yet."""
        self._process.reset_silence()

    def candidate(self) -> Any:
        """Returns a reference to the averaged policy, packed."""
        return self.handle.candidate.remote()

    def wait_until_resumed(self, waits: Callable[[], bool]) -> Resumed | None:
        """Waits for the learner of a resumed run; time in which ``waits()`` does not count. Returns where it goes on
        from.

        Raises:
            RunFailedError: it cannot go on, or does not reply.
        """
        process = self._process
        while not ray.wait([self._resumed], timeout=SLICE_S)[0] and process.silent_s < READY_S:
            process.count_silence()
            if waits():
                process.reset_silence()
        try:
            resumed: Resumed | None = ray.get(self._resumed, timeout=0.0)
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
            raise RunFailedError(f"the learner failed: {cause(error)}", str(error)) from None
        self._resumed = None
        process.replied()
        return resumed

    def tick(
        self, driver_row: Mapping[str, float], died: Mapping[int, Mapping[int, int]]
    ) -> tuple[Report, Resumed | None] | None:
        """Waits up to a slice for a report; the first one of a learner that was started again comes with where it goes
        on from. ``driver_row``: the driver's metrics by key, for /metrics; ``died``: see ``Ledger.record_deaths``.

        Raises:
            RunFailedError: it failed of what another learner would meet, too.
            CrashLoopError: it died more often than its budget allows.
        """
        self._driver_row, self._died = driver_row, died
        if self.handle is None:
            self._restart_when_due()
            return None
        try:
            report: Report | None = next(self._calls.results(1, SLICE_S), None)
            resumed = ray.get(self._resumed) if report is not None and self._resumed is not None else None
        except ray.exceptions.RayError as error:
            if _is_final(error):
                raise RunFailedError(f"the learner failed: {cause(error)}", str(error)) from None
            self._handle_death(error)
            return None
        if report is None:
            self._check_silence()
            return None
        self._resumed = None
        self._process.replied()
        self._train(self.handle)
        return report, resumed

    def _check_silence(self) -> None:
        self._process.count_silence()
        if self._process.silent_s > READY_S:
            self._handle_death(RuntimeError(f"it has not answered for {READY_S:.0f} s"))

    def _handle_death(self, error: Exception) -> None:
        kill(self.handle)
        wait_s = self._process.died(error)
        died = f"the learner died ({self._process.death})"
        self._notify(f"{died}; it restarts from its newest checkpoint in {wait_s:.1f} s")

    def _restart_when_due(self) -> None:
        """Waits up to a slice for the restart, as for a report."""
        if (wait_s := self._process.due_in_s) > 0:
            time.sleep(min(SLICE_S, wait_s))
        elif self._process.start_if_due():
            self._begin(self.handle)


def _is_final(error: Exception) -> bool:
    """Returns whether another learner would end like this. Of an error in a constructor Ray keeps the text only."""
    if isinstance(getattr(error, "cause", None), FINAL):
        return True
    last = (str(error).strip().splitlines() or [""])[-1]
    names = tuple(f"{kind.__module__}.{kind.__qualname__}: " for kind in FINAL)
    return bool(getattr(error, "actor_init_failed", False)) and last.startswith(names)
