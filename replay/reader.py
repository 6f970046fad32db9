"""The reader: takes chunks from the log into the buffer and refuses bad ones. The ledger has the counts."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from replay.breakable import Breakable, breakable
from replay.buffer import ChunkSpan, ReplayBuffer
from replay.chunk import MAX_VERSION, BadChunk, Chunk, Codec, check_order
from replay.chunk_log.protocol import ChunkId, ChunkLog, Entry, may_follow
from replay.ledger import Gap, Ledger
from replay.quarantine import Quarantine
from replay.refill import refill
from replay.state import State, count

LOG = logging.getLogger("qherd.replay")
Array = npt.NDArray[Any]
PAGE_BYTES = 64 << 20


class Source(Protocol):
    """The part of a ``ChunkLog`` that a reader uses."""

    def read(self, cursors: Mapping[int, ChunkId], max_bytes: int) -> list[Entry]:
        """See ``ChunkLog.read``."""

    def trim(self, fence: int, oldest: Mapping[int, ChunkId]) -> None:
        """See ``ChunkLog.trim``."""

    def renew(self, fence: int, slot: int) -> None:
        """See ``ChunkLog.renew``."""


class Reader(Breakable):
    """Reads the chunks of known slots into a buffer."""

    def __init__(
        self, log: Source, codec: Codec, buffer: ReplayBuffer, quarantine: Path | None = None, fence: int = 0
    ) -> None:
        """``quarantine``: the folder for the first few bad chunks; None keeps none. ``fence``: the learner's, to trim
        with."""
        self._log, self._codec, self.buffer, self._fence = log, codec, buffer, fence
        self._quarantine = Quarantine(quarantine)
        self.ledger = Ledger(codec.max_rows)
        self.unread = set[int]()
        """Slots whose rows a refill could not read, since their server did not answer for too long."""
        self._backlog: deque[Entry] = deque()
        self._trimmed: dict[int, ChunkId] = {}
        self._exhausted = set[int]()
        self.newest_version = MAX_VERSION
        """The newest version of the weights that was published, where that is known."""

    def follow(self, slots: Iterable[int]) -> None:
        """Reads these slots too, each from its first chunk."""
        self.ledger.open(slots)

    def poll(self, max_bytes: int = PAGE_BYTES, budget_s: float | None = None) -> int:
        """Reads once and takes chunks in until ``budget_s`` is spent (the rest waits for the next poll).

        Returns the env steps inserted. At least one chunk is taken where there is one.
        """
        if not self._backlog:
            slots = self.ledger.slots
            cursors = {slot: account.cursor for slot, account in slots.items() if slot not in self._exhausted}
            self._backlog.extend(self._log.read(cursors, max_bytes))
        inserted = 0
        deadline = None if budget_s is None else time.perf_counter() + budget_s
        while self._backlog:
            inserted += self._ingest(self._backlog.popleft())
            if deadline is not None and time.perf_counter() > deadline:
                break
        return inserted

    def drain(self, page_bytes: int = PAGE_BYTES, max_rows: float = math.inf) -> None:
        """Takes in all that the log has, a page at a time, or about ``max_rows`` of it."""
        mirror = self.buffer.mirror
        seen, end = None, mirror.end + max_rows
        while mirror.end < end and seen != (seen := [account.cursor for account in self.ledger.slots.values()]):
            self.poll(page_bytes)

    @property
    def backlog_chunks(self) -> int:
        """Returns the chunks that were read and are yet to be taken in: how far the mirror lags."""
        return len(self._backlog)

    def trim(self, keep_rows: int) -> None:
        """Lets the log drop what the mirror no longer holds, and all but the newest ``keep_rows``."""
        held = self.buffer.trim(keep_rows)
        bounds = {
            slot: held.get(slot, ChunkId(account.cursor.incarnation, account.cursor.seq + 1))
            for slot, account in self.ledger.slots.items()
            if account.cursor > ChunkId()
        }
        changed = {slot: bound for slot, bound in bounds.items() if self._trimmed.get(slot) != bound}
        if changed:
            self._log.trim(self._fence, changed)
            self._trimmed.update(changed)
        for slot in tuple(self._exhausted):
            self._log.renew(self._fence, slot)
            self._exhausted.discard(slot)

    @property
    def exhausted(self) -> Set[int]:
        """Returns slots in whose stream is an id that no actor can have sent. The server takes no chunk after it, and
        the actor waits: the next ``trim`` begins the stream anew."""
        return self._exhausted

    def look_again(self) -> None:
        """Reads those slots again too: for a reader that does not trim."""
        self._exhausted.clear()

    @breakable
    def _ingest(self, entry: Entry) -> int:
        """Takes an entry into the buffer, or refuses it; returns the env steps inserted.

        The cursor moves first: what is refused is read only once. All checks come before the ledger and the buffer
        change, so that a chunk is taken whole or not at all.
        """
        account = self.ledger.slots[entry.slot]
        if entry.slot in self._exhausted:
            return 0  # it comes after the id that no actor can have sent, so no actor has sent it either
        if entry.id <= account.cursor:
            self.ledger.refuse(entry.slot, "duplicate")
            return 0
        if not may_follow(entry.id, account.cursor):  # the cursor stays: no honest id would be above it any more
            self._exhausted.add(entry.slot)
            self._refuse(entry, BadChunk("id", f"{entry.id} cannot come after {account.cursor}"))
            return 0
        account.cursor = entry.id
        try:
            chunk = self._codec.decode(entry.data, entry.slot, *entry.id)
            gap = self._check(chunk)
            follows = gap.chunks == 0 and entry.id.incarnation == account.taken.incarnation
            if follows:
                self._check_order(chunk)  # across the chunks' border, where neither alone shows a fault
        except BadChunk as error:
            account.refused_since += 1
            self._refuse(entry, error)
            return 0
        env_steps = chunk.env_steps
        self.ledger.record(chunk, gap, env_steps, len(entry.data))
        self.buffer.append(chunk, follows)
        return env_steps

    def _check(self, chunk: Chunk) -> Gap:
        """Returns what this incarnation sent before a chunk and was never taken. Raises BadChunk where the chunk does
        not fit the mirror, the weights or the chunk before it."""
        if chunk.rows > self.buffer.mirror.capacity_rows:
            raise BadChunk("size", f"{chunk.rows} rows, the mirror holds {self.buffer.mirror.capacity_rows}")
        if chunk.weight_version > self.newest_version:
            raise BadChunk("weights", f"version {chunk.weight_version}, the newest is {self.newest_version}")
        return self.ledger.gap_before(chunk)

    def _check_order(self, chunk: Chunk) -> None:
        """Raises BadChunk where the chunk's first rows cannot follow its lanes' newest rows."""
        last_flags = self.buffer.assembler.last_flags(chunk.slot)
        if last_flags is not None and len(last_flags) == chunk.lanes:
            check_order(np.stack((last_flags, chunk.flags[0])))

    def _refuse(self, entry: Entry, error: BadChunk) -> None:
        self.ledger.refuse(entry.slot, error.reason)
        times = self.ledger.totals.refused[error.reason]
        if times & (times - 1) == 0:  # the first, second, fourth, ...: a stranger with a password may send thousands
            LOG.warning("chunk %s of slot %d is refused: %s; %d for this reason", entry.id, entry.slot, error, times)
        self._quarantine.keep(entry, error.reason)

    def state(self) -> State:
        """See ``replay.state``: the ledger. What was read and not yet taken in is left out: it is read again."""
        return State({**self.ledger.values(), "quarantined": self._quarantine.kept}, {})

    def restore(self, state: State) -> None:
        """See ``replay.state``. The rows are the buffer's, which may ``refill``."""
        self.ledger.restore(state.values)
        self._quarantine.kept = count(state.values["quarantined"], "quarantined")

    def refill(self, log: ChunkLog, stored: Sequence[ChunkSpan]) -> tuple[Array, Array]:
        """See ``replay.refill``: returns which rows of the earlier mirror are which of this one."""
        old_rows, new_rows, self.unread = refill(log, self._codec, self.buffer, self.ledger.slots, stored)
        return old_rows, new_rows
