"""One slot's actor as the driver sees it: its lifecycle, its calls in flight, and what its heartbeats have counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors.config import ActorConfig
from actors.heartbeat import Heartbeat, Work
from actors.supervision.calls import Calls
from actors.supervision.rebuilds import RebuildNotices
from actors.supervision.restarts import Restarts
from actors.supervision.supervised import HangError, Supervised
from replay.chunk import Counters

COLLECT_S = 0.5
"""Seconds of one call. The flush at the end waits for those in flight; the driver may be late by as much."""
START_S = 300.0
"""Seconds that an actor may take to answer for the first time: a cluster may have to find a node for it first."""
MAKE_S = 60.0
"""Seconds more for each of its environments, which simulators may take to start."""
LOG_S = 20.0
"""Seconds that one ``collect`` may spend on the log beyond its own: four calls that time out after 5 s each."""


class ActorSlot:
    """A slot's actor. Counters, incarnation and work are those of the present incarnation's newest heartbeat."""

    def __init__(self, index: int, start: Callable[[], Any], restarts: Restarts) -> None:
        self.index, self.name, self.restarts = index, f"actor {index}", restarts
        self.process: Supervised[Any] = Supervised(start, restarts.died, restarts.clock)
        self.rescale_call: Any = None
        """The call that moves its lanes to their places on the ladder of another number of slots."""
        self.calls = Calls()
        self.begin()

    def begin(self) -> None:
        """Forgets the incarnation before, and calls the one that was just started, if one was."""
        self.calls.drop()
        self.rescale_call = None
        self.counters, self.incarnation, self.work = Counters(), 0, Work()
        self.collect()

    def collect(self) -> None:
        """Keeps calls of ``collect`` in flight."""
        if (handle := self.process.handle) is not None:
            self.calls.refill(lambda: handle.collect.remote(COLLECT_S))

    def rescale(self, slots: int) -> None:
        """Has the actor's lanes move to their places on the ladder of so many slots, once per incarnation."""
        if self.rescale_call is None and self.process.handle is not None:
            self.rescale_call = self.process.handle.set_slot_count.remote(slots)

    def take_heartbeats(self, rebuilt: RebuildNotices) -> None:
        """Takes the heartbeats that are there; passes the environments that were made anew to ``rebuilt``.

        Raises:
            ray.exceptions.RayError: the actor raised, or is dead.
        """
        for result in self.calls.results():
            heartbeat: Heartbeat = result
            self.process.replied()
            self.counters, self.incarnation, self.work = heartbeat.counters, heartbeat.incarnation, heartbeat.work
            rebuilt.record(self.name, heartbeat.rebuilt)

    def check_silence(self, config: ActorConfig, env_id: str) -> None:
        """Counts the actor's silence.

        Raises:
            HangError: all that a ``collect`` may wait for is over; one that waits for credit or a server answers in
                time. A ``collect`` may begin a chunk just before its own time is over.
        """
        process = self.process
        process.count_silence()
        limit_s = COLLECT_S + config.flush_s + LOG_S + config.step_timeout_s
        if process.starting:
            limit_s += START_S + MAKE_S * config.lanes
        if process.silent_s > limit_s:
            last = "never heard of" if process.starting else f"last heard of at env step {self.counters.env_steps}"
            raise HangError(
                f"no answer for {process.silent_s:.0f} s: {env_id} hangs in a step or computes for longer than "
                f"actors.step_timeout_s ({config.step_timeout_s:g} s); raise that option if its steps take that "
                f"long; {last}"
            )

    def status_line(self) -> str:
        """Returns what the actor was last known to do, in a few words."""
        return f"{self.name} {self.process.status_line()}"
