"""Publishes weights and credit under the learner's fence, on every server, and keeps both alive while it is busy."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Sequence

from replay.chunk_log.protocol import ChunkLog, LogError, Unavailable, WeightsHeader, tolerating_outages

LOG = logging.getLogger("qherd.learner")
REFRESH_S = 0.5
"""The credit is refreshed this often; it lapses by itself after 5 s, the fence never."""

CREDIT_EVERY_S = 0.1
"""Changes of the credit are written no more often than this while the learner has work. Each costs it 1 to 2 ms of a
core, cold caches included: written in every cycle they were 7 % of its updates (docs/performance.md)."""

CREDIT_SOON_S = 0.02
"""And no more often than this while it waits for rows."""

STOP_S = 2.0
"""The end waits this long for a server that does not answer: its credit lapses by itself."""


class Publisher:
    """The one writer of credit, fence and weights: copies for every server, so that an actor talks to one server only.

    Without ``start`` each ``set`` writes at once, in the caller: the inline mode. After ``start`` a thread per server
    writes, at each change and every REFRESH_S, and keeps only the newest weights: a slow or frozen server makes neither
    the learner nor the other servers wait. It also tells the learner which servers answer
    (``replay.chunk_log.sharded_log.ServerHealth``).
    """

    def __init__(self, log: ChunkLog, fence: int, others: Sequence[ChunkLog] = ()) -> None:
        """``log`` (a connection of its own) is the first server's: it alone admits a learner, ``others`` may be down.

        Raises Fenced where any server knows a newer fence, and what the first server answers instead of admitting.
        """
        log.take_lease(fence)
        self._writers = [_Writer(each, fence) for each in (log, *others)]
        for writer, other in zip(self._writers[1:], others, strict=True):
            with tolerating_outages(writer.count_failure):
                other.take_lease(fence)

    def start(self) -> None:
        """Writes from threads from now on."""
        for writer in self._writers:
            writer.start()

    def set(self, credit: bytes, weights: bytes | None = None, *, soon: bool = False) -> None:
        """Sets what is to be published; ``soon``, or with weights, within CREDIT_SOON_S.

        Raises what made the publisher give up: Fenced or UnusableServer, by whichever server."""
        for writer in self._writers:
            writer.set(credit, weights, soon or weights is not None)

    def stop(self) -> None:
        """Takes the credit back, gives the lease up and ends the threads; within STOP_S, whatever the servers do."""
        for writer in self._writers:
            writer.end()
        deadline_s = time.monotonic() + STOP_S
        for writer in self._writers:
            writer.join(deadline_s)

    @property
    def published(self) -> int:
        """Returns how many versions reached a server."""
        return max(writer.published for writer in self._writers)

    @property
    def published_bytes(self) -> int:
        """Returns the bytes of weights sent, over all servers."""
        return sum(writer.published_bytes for writer in self._writers)

    @property
    def unavailable(self) -> int:
        """Returns how many calls a server did not answer, or not now."""
        return sum(writer.unavailable for writer in self._writers)

    @property
    def servers_down(self) -> int:
        """Returns how many servers did not answer the newest call."""
        return sum(writer.down for writer in self._writers)

    def is_up(self, shard: int) -> bool:
        """Returns whether a server answered its newest call; its thread calls it at least every REFRESH_S."""
        return not self._writers[shard].down

    def report_failure(self, shard: int, error: LogError) -> None:
        """Counts a failed call by another connection to the same server, whose thread then finds out how it is."""
        self._writers[shard].count_failure(error)


class _Writer:
    """Credit, fence and weights on one server."""

    def __init__(self, log: ChunkLog, fence: int) -> None:
        self._log, self._fence = log, fence
        self._state = threading.Condition()
        self._credit: bytes | None = None  # as an earlier learner left it: the first setting is written in any case
        self._newest: bytes | None = None
        self._sent: bytes | None = None
        self._changed = self._soon = self._stopped = False
        self._wrote_s = 0.0
        self._failure: LogError | None = None
        self._thread: threading.Thread | None = None
        self.down = False
        self.published = 0
        self.published_bytes = 0
        self.unavailable = 0

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="qherd-publisher", daemon=True)
        self._thread.start()

    def set(self, credit: bytes, weights: bytes | None, soon: bool) -> None:
        with self._state:
            if self._failure is not None:
                raise self._failure
            waits = self._changed and not self._soon
            self._soon = soon or (self._soon and self._changed)
            if credit == self._credit and weights is None and not (soon and waits):
                return
            self._credit = credit
            self._newest = weights or self._newest
            self._changed = True
            self._state.notify()
        if self._thread is None:
            self._write()

    def end(self) -> None:
        """Has the thread give the lease up and end."""
        with self._state:
            self._stopped = True
            self._state.notify()
        if self._thread is None:
            self._release()

    def join(self, deadline_s: float) -> None:
        if self._thread is not None:
            self._thread.join(max(0.0, deadline_s - time.monotonic()))

    def count_failure(self, error: LogError) -> None:
        """Counts a call that failed for now. A full server is up: it has to be read and trimmed."""
        with self._state:
            down = isinstance(error, Unavailable)
            if down and not self.down:
                LOG.warning("a server does not answer: %s", error)
            self.unavailable += 1
            self.down = down

    def _run(self) -> None:
        while True:
            with self._state:
                self._state.wait_for(lambda: self._changed or self._stopped, timeout=REFRESH_S)
                while not self._stopped and (pause_s := self._pause_s()) > 0:
                    self._state.wait(pause_s)
                stopped = self._stopped
            if stopped:
                self._release()
                return
            try:
                self._write()
            except LogError as error:
                with self._state:
                    self._failure = error
                return

    def _pause_s(self) -> float:
        """Returns the seconds until the newest state may be written."""
        return self._wrote_s + (CREDIT_SOON_S if self._soon else CREDIT_EVERY_S) - time.monotonic()

    def _write(self) -> None:
        """Publishes the newest state; a server that is down is tried again at the next refresh, with the newest one."""
        # Taken before the call, and the lock is free during it: what is set meanwhile is a change of its own, which is
        # written next. Only this thread touches ``_sent``.
        with self._state:
            credit, newest = self._credit or b"", self._newest
            self._changed, self._wrote_s = False, time.monotonic()
        with tolerating_outages(self.count_failure):
            due = None if self._holds(newest) else newest
            self._log.publish(self._fence, credit, due)
            with self._state:
                if self.down:
                    LOG.info("a server answers again")
                self.down = False
            if due is not None:
                self.published += due is not self._sent  # else the same weights once more, for a server that lost them
                self.published_bytes += len(due)
                self._sent = due
                LOG.debug("published weights, %d bytes", len(due))

    def _holds(self, weights: bytes | None) -> bool:
        """Returns whether the server has these weights still: one that restarted has none, or older ones from its file,
        and redis-py reconnects to it without an error."""
        if weights is None:
            return True
        return weights is self._sent and self._log.status(0).weights == WeightsHeader.unpack(weights)

    def _release(self) -> None:
        with contextlib.suppress(LogError):  # it lapses by itself
            self._log.release_lease(self._fence)
            with self._state:
                self.down = False
