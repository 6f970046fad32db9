"""What the learner does for the log beside reading it: bounds it, tidies it, and describes the run to others."""

from __future__ import annotations

import math
import time

from learner.horizon import horizon_at, longest_n_step
from learner.ingest import Ingest
from learner.journal import Journal
from learner.learner import Learner
from replay.chunk_log.protocol import ChunkLog, LogError, MemoryUsage, tolerating_outages
from replay.config import ReplayConfig
from replay.description import RunDescription, SequencesDescription, SlotDescription
from replay.limiter import CHUNKS_EACH

TRIM_EVERY_S, TRIM_SHARE = 1.0, 16
"""The log is trimmed so often, and whenever this part of the capacity has come in anew."""
DESCRIBE_EVERY_S = 1.0
STRAYS_EVERY_S = 10.0
"""Between two looks for streams that are no slot's. One that is there twice is removed: a new slot's actor may send
before the learner expects it."""


class LogUpkeep:
    """Trims the log, removes streams that are no slot's, and rewrites the run's description and the journal.

    ``log_full`` counts the trims for which the server was nearly full; ``memory`` is what the last one found.
    """

    def __init__(
        self,
        log: ChunkLog,
        ingest: Ingest,
        learner: Learner,
        notices: list[str],
        *,
        fence: int,
        replay: ReplayConfig,
        journal: Journal | None,
    ) -> None:
        self._log, self._ingest, self._learner, self._notices = log, ingest, learner, notices
        self._fence, self._journal = fence, journal
        self._rows_in_log = self._keep_rows = replay.rows_in_log
        self._sequences = SequencesDescription.model_validate(replay.sequences.model_dump())
        self._trimmed_end = self.log_full = 0
        self._last_trim_s = self._last_describe_s = -math.inf
        self._last_strays_s, self._strays = time.perf_counter(), set[str]()
        self.memory: MemoryUsage | None = None

    def work_if_due(self, now: float) -> bool:
        """Trims and tidies the log where it is time to; returns whether it was."""
        ingest, end = self._ingest, self._ingest.buffer.mirror.end
        chunk_each = ingest.limiter.window_rows // CHUNKS_EACH  # a short log is not trimmed at every chunk
        turned = end - self._trimmed_end > max(self._keep_rows // TRIM_SHARE, chunk_each)
        if now - self._last_trim_s < TRIM_EVERY_S and not turned:
            return False
        self._last_trim_s, self._trimmed_end = now, end
        with tolerating_outages(ingest.count_outage):
            self._trim()
            self._remove_strays(now)
            if now - self._last_describe_s >= DESCRIBE_EVERY_S:
                self._last_describe_s = now
                self.describe()
                if self._journal is not None:  # for the learner that resumes where this one was killed
                    self._journal.write(ingest.ledger.readings())
        return True

    def _trim(self) -> None:
        """Lets the log drop what is not needed, and begins streams anew that no actor could append to."""
        self.memory = self._log.memory()
        if self.memory is not None:
            self._fit_into(self.memory)
        for slot in self._ingest.reader.exhausted:
            self._notices.append(
                f"the stream of slot {slot} has an id that no actor can have sent, after which no chunk is taken: "
                "it begins anew, without the rows that a restarted learner would have read there; somebody else has an "
                "actor's password (qherd secrets makes new ones)"
            )
        self._ingest.reader.trim(self._keep_rows)

    def _fit_into(self, memory: MemoryUsage) -> None:
        """Bounds the log by the server's memory. Where the server is nearly full the bound falls by a quarter: a full
        server refuses all writes, and only the learner can make room. Below an eighth of the server other things fill
        it: rows that are yet to be read, or another run's. Where there is room again, beyond twice the margin, the
        bound rises by half of it."""
        buffer = self._ingest.buffer
        row_bytes = buffer.mirror.schema.row_bytes
        margin = min(max(memory.bound // 10, 2 * self._ingest.limiter.window_rows * row_bytes), memory.bound // 2)
        if memory.used > memory.bound - margin:
            self.log_full += 1
            fewer = min(self._keep_rows, buffer.log_rows) * 3 // 4
            self._keep_rows = min(self._keep_rows, max(fewer, memory.bound // 8 // row_bytes))
        else:
            room = max(0, memory.bound - 2 * margin - memory.used) // row_bytes
            more = min(self._rows_in_log, buffer.log_rows + room // 2)
            self._keep_rows = max(self._keep_rows, more)

    def _remove_strays(self, now: float) -> None:
        """Removes what was sent to slots that the run does not have: nobody would ever trim it."""
        if now - self._last_strays_s < STRAYS_EVERY_S:
            return
        self._last_strays_s = now
        found = self._log.strays(self._ingest.ledger.slots)
        again = self._strays & found.keys()
        self._strays = found.keys() - again
        if again:
            self._log.remove_strays(self._fence, again)
            entries = sum(found[key] for key in again)
            self._ingest.ledger.count_strays(entries)
            self._notices.append(
                f"{entries} chunks in {len(again)} streams that are no slot's of this run were removed, such as "
                f"{min(again)[:80]!r}: somebody else has an actor's password (qherd secrets makes new ones)"
            )

    def describe(self) -> None:
        """Writes the run's description to the log. A refusal stops nothing: a newer fence stops the publisher."""
        try:
            self._log.describe(self._fence, self._description().pack())
        except LogError as error:
            self._ingest.count_outage(error)

    def _description(self) -> RunDescription:
        config, ledger, mirror = self._learner.config, self._ingest.ledger, self._ingest.buffer.mirror
        horizon = horizon_at(config, self._learner.updates)
        return RunDescription(
            row_schema=mirror.schema,
            n_step=horizon.n,
            gamma=horizon.gamma,
            longest_n_step=longest_n_step(config) if config.anneal.updates else None,
            reward_scale=config.reward_scale,
            reward_clip=config.reward_clip,
            value_rescale=config.value_rescale,
            sequences=self._sequences,
            capacity_rows=mirror.capacity_rows,
            env_steps=ledger.totals.env_steps,
            updates=self._learner.updates,
            slots={slot: SlotDescription.of(account) for slot, account in ledger.slots.items()},
        )
