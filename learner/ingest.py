"""The buffer's side of the learner: chunks come in under the limiter, and credit for more goes out to the actors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy.typing as npt

from learner.publisher import Publisher
from replay.buffer import ReplayBuffer
from replay.chunk import Codec
from replay.chunk_log.protocol import ChunkLog, LogError, tolerating_outages
from replay.config import ReplayConfig
from replay.credit import Lender
from replay.limiter import Limiter
from replay.reader import Reader

Array = npt.NDArray[Any]
LAPSE_CHECK_S = 0.25
"""Unused credit is looked for so often. A longer pause counts no more: it was this process that did not run."""


class Ingest:
    """Takes the chunks of a run's slots into the buffer, and lends the slots what the limiter has room for.

    ``outages`` counts the calls of the log, by all parts of this learner, that a server did not answer or not now.
    """

    def __init__(
        self,
        log: ChunkLog,
        publisher: Publisher,
        codec: Codec,
        buffer: ReplayBuffer,
        replay: ReplayConfig,
        *,
        batch: int,
        fence: int,
        quarantine: Path | None,
    ) -> None:
        self._log, self._publisher, self._batch = log, publisher, batch
        self.buffer = buffer
        self.reader = Reader(log, codec, buffer, quarantine, fence)
        self.ledger = self.reader.ledger
        most = replay.most_steps(batch)
        self.limiter = Limiter(replay.samples_per_insert, replay.min_rows, replay.capacity_rows, most)
        self.lender = Lender()
        self.expected: set[int] = set()
        self.outages = self._expected = 0
        self._last_lapse_s = -math.inf

    def expect(self, slots: Iterable[int], chunk_rows: int, left: Iterable[int]) -> None:
        """Reads and lends to these slots from now on; see ``LearnerLoop.expect``."""
        self.expected = set(slots)
        self.reader.follow([*self.expected, *left])
        self.limiter.fit(len(self.expected), chunk_rows)
        self.lender.fit(self.expected, chunk_rows, self.limiter.window_rows)

    def poll(self, budget_s: float | None) -> None:
        """Takes in what has arrived, for about ``budget_s`` (None: all of one read)."""
        with tolerating_outages(self.count_outage):
            self._count(self.reader.poll(budget_s=budget_s))

    def drain(self) -> None:
        """Takes in all that the log has, and ends the ledger's accounts of the actors that died."""
        before = self.ledger.totals.env_steps
        self.reader.drain()
        self._count(self.ledger.totals.env_steps - before)
        with tolerating_outages(self.count_outage):
            self.ledger.end_dead(self._log.last_id)

    def _count(self, env_steps: int) -> None:
        """Accounts for what the reader has taken in."""
        self.limiter.insert(env_steps, self.buffer.sampleable)
        for slot, account in self.ledger.slots.items():
            self.lender.acknowledge(slot, account.taken.incarnation, account.counters.rows)

    def count_outage(self, _: LogError) -> None:
        """Counts a call that a server did not answer: the learner trains on what the mirror has meanwhile."""
        self.outages += 1

    def allowed_updates(self, most: int) -> int:
        """Returns how many updates the limiter allows now, at most ``most``; where there are no actors, ``most``."""
        if not self.buffer.sampleable:
            return 0
        return self.limiter.allowed_batches(most) if self.expected else most

    def count_updates(self, updates: int) -> None:
        """Counts the samples of so many updates as taken: of sequences, which differ in length, as many steps as are to
        be expected, until ``count_steps`` is told."""
        self._expected = round(self._batch * self.buffer.mirror.steps_per_sample)
        self.limiter.samples += updates * self._expected

    def count_steps(self, updates: int, rows: Array) -> None:
        """Counts the steps that so many updates really train on, in the place of those expected. ``rows`` <int64>[M]:
        their samples."""
        self.limiter.samples += self.buffer.mirror.steps_of(rows) - updates * self._expected

    def lend(self, soon: bool) -> None:
        """Lends the actors what the limiter has room for, and publishes it; ``soon``: see ``Publisher.set``."""
        self.lender.lend(self.limiter.room_rows)
        self._publisher.set(self.lender.pack(), soon=soon)

    def lapse_if_due(self, now: float) -> None:
        """Takes unused credit back. Time in which a server was down, or chunks waited to be taken in, does not
        count."""
        passed = now - self._last_lapse_s
        if passed >= LAPSE_CHECK_S:
            self._last_lapse_s = now
            if not (self._publisher.servers_down or self.reader.backlog_chunks):
                self.lender.pass_time(min(passed, LAPSE_CHECK_S))
