"""Keeps the slots' actors at work: two calls in flight each, restarts within a budget, an orderly end.

Ray restarts nothing here (max_restarts=0): a restarted actor needs a new incarnation, which only the run directory
hands out.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable
from functools import reduce
from typing import Any

import ray

from actors.config import ActorConfig
from actors.envs import REPORT_EVERY_S
from actors.heartbeat import Work
from actors.supervision.actor_slot import ActorSlot
from actors.supervision.departures import LEAVE_S, Departures, kill
from actors.supervision.rebuilds import RebuildNotices
from actors.supervision.restarts import Restarts, jitter
from actors.supervision.supervised import HangError

KEPT_DEAD = 8
"""Dead incarnations of a slot whose rows are known: a learner that comes back later than these counts none of them."""


class ActorSupervisor:
    """The actors of all slots. ``start(slot)`` starts a slot's actor under a new incarnation and returns its handle."""

    def __init__(
        self,
        start: Callable[[int], Any],
        config: ActorConfig,
        env_id: str,
        notify: Callable[[str], None],
        jitter: Callable[[], float] = jitter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start, self._config, self._env_id, self._notify = start, config, env_id, notify
        self._jitter, self._clock = jitter, clock
        self._rebuilt, self._departures = RebuildNotices(notify, clock), Departures(notify, clock)
        self._past_work, self._past_deaths, self._past_restarts = Work(), Counter[str](), 0
        self.died: dict[int, dict[int, int]] = {}
        """By slot and incarnation: the rows that the newest of those that died had made, by their last heartbeats."""
        self._notified_starting_s = 0.0
        self._scaled = False
        self._slots: list[ActorSlot] = []
        for index in range(config.count):
            slot = self._new_slot(index)
            slot.process.start()
            slot.begin()

    def _new_slot(self, index: int) -> ActorSlot:
        restarts = Restarts(f"actor {index}", self._config.restarts, self._clock, self._jitter)
        slot = ActorSlot(index, functools.partial(self._start, index), restarts)
        self._slots.append(slot)
        return slot

    @property
    def alive(self) -> int:
        """Actors that have answered and did not die since."""
        return sum(slot.process.running for slot in self._slots)

    @property
    def starting(self) -> int:
        """Actors that were started and have not answered yet."""
        return sum(slot.process.starting for slot in self._slots)

    @property
    def restarts(self) -> int:
        """Restarts so far, over all slots."""
        return sum((slot.restarts.total for slot in self._slots), self._past_restarts)

    @property
    def restart_reasons(self) -> Counter[str]:
        """Deaths so far by the name of the error's type, over all slots."""
        return sum((slot.restarts.reasons for slot in self._slots), self._past_deaths)

    @property
    def rebuilds(self) -> int:
        """Environments that raised and were made anew so far, over all slots."""
        return self._rebuilt.total

    @property
    def work(self) -> Work:
        """Where the actors' time went so far, over all slots and incarnations."""
        return reduce(Work.plus, (slot.work for slot in self._slots), self._past_work)

    def status_line(self) -> str:
        """Returns what each actor was last known to do, in one line."""
        return "; ".join(slot.status_line() for slot in self._slots)

    def reset_silence(self) -> None:
        """Counts the silence of those that have not answered from now on: the cluster has no room for them yet."""
        for slot in self._slots:
            if slot.process.starting:
                slot.process.reset_silence()

    def tick(self) -> None:
        """Takes the answers that are there, calls again, restarts who died or hangs. Does not wait.

        Raises:
            CrashLoopError: an actor died more often than ``actors.restarts`` allows.
        """
        self._rebuilt.catch_up()
        self._notify_starting()
        self._departures.reap()
        for slot in self._slots:
            if slot.process.start_if_due():
                self._past_work = self._past_work.plus(slot.work)
                slot.begin()
            elif slot.process.has_process:
                self._keep_at_work(slot)

    def _keep_at_work(self, slot: ActorSlot) -> None:
        try:
            slot.take_heartbeats(self._rebuilt)
            slot.check_silence(self._config, self._env_id)
        except (ray.exceptions.RayError, HangError) as error:
            self._record_death(slot)
            self._departures.end_failed(slot.name, slot.process.handle, error)
            wait_s = slot.process.died(error)
            self._notify(f"{slot.name} died ({slot.process.death}); it restarts in {wait_s:.1f} s")
            return
        slot.collect()
        if self._scaled:
            slot.rescale(len(self._slots))

    def _record_death(self, slot: ActorSlot) -> None:
        if slot.incarnation:  # it has answered
            rows = self.died.setdefault(slot.index, {})
            rows[slot.incarnation] = slot.counters.rows
            for old in sorted(rows)[:-KEPT_DEAD]:
                del rows[old]

    def _notify_starting(self) -> None:
        """Reports now and then which actors are still making their environments."""
        starting = [slot for slot in self._slots if slot.process.starting]
        waited_s = max((slot.process.silent_s for slot in starting), default=0.0)
        self._notified_starting_s = min(self._notified_starting_s, waited_s)  # others are starting now
        if waited_s > self._notified_starting_s + REPORT_EVERY_S:
            self._notified_starting_s = waited_s
            named = ", ".join(str(slot.index) for slot in starting[:8]) + (", ..." if len(starting) > 8 else "")
            self._notify(
                f"actors {named} are still making their {self._config.lanes} environments each, for "
                f"{waited_s:.0f} s now"
            )

    # -- another number of slots

    def scale(self, count: int) -> None:
        """Sets the number of slots. Actors of further slots start, those of surplus slots flush and end, all lanes move
        to their places on the new ladder: ``tick`` does it, ``ladder_if_scaled`` shows when it is done."""
        self._scaled = True
        while len(self._slots) > count:
            self._let_go(self._slots.pop())
        for slot in self._slots:
            slot.rescale_call = None
        for index in range(len(self._slots), count):
            self._new_slot(index)

    def _let_go(self, slot: ActorSlot) -> None:
        self._past_work = self._past_work.plus(slot.work)
        self._past_restarts += slot.restarts.total
        self._past_deaths += slot.restarts.reasons
        if (handle := slot.process.release()) is not None:
            record = functools.partial(self._record_death, slot)  # not before it has flushed
            self._departures.let_go(slot.name, handle, LEAVE_S / 2, record)

    def ladder_if_scaled(self) -> dict[int, tuple[float, ...]] | None:
        """Returns the epsilon that each slot's lanes anneal to, as their actors have answered; None until all have, and
        those that leave have left."""
        calls = [slot.rescale_call for slot in self._slots]
        if (
            self._departures
            or any(call is None for call in calls)
            or ray.wait(calls, num_returns=len(calls), timeout=0)[1]
        ):
            return None
        try:
            return dict(enumerate(ray.get(call) for call in calls))
        except ray.exceptions.RayError:  # an actor died meanwhile: it is called again when it is back
            return None

    # -- the end

    def stop(self, deadline_s: float) -> None:
        """Flushes all actors within one deadline, and has them close their environments; ``end`` waits for that."""
        for slot in self._slots:
            if slot.process.has_process:
                self._departures.let_go(slot.name, slot.process.release(), deadline_s / 2)
        if flushes := self._departures.flushes:
            ray.wait(flushes, num_returns=len(flushes), timeout=deadline_s)

    def end(self, seconds: float) -> None:
        """Ends all actors once their environments are closed, or after so many seconds."""
        self._departures.end(seconds)
        for slot in self._slots:
            if (handle := slot.process.release()) is not None:  # ``stop`` was cut short
                kill(handle)
