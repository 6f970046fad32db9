"""The refill: a learner that starts again without its rows reads from the log what that still has of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from heapq import merge
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replay.buffer import ChunkSpan, ReplayBuffer
from replay.chunk import BadChunk, Chunk, Codec
from replay.chunk_log.protocol import ChunkId, ChunkLog, Entry, LogError
from replay.ledger import FIRST_ID, SlotAccount

Array = npt.NDArray[Any]
REFILL_BYTES = 64 << 20
"""Of all slots' pages together that are in memory at a time."""
REFILL_WAIT_S = 60.0
"""How long a refill waits for servers that do not answer. A learner without a sign of life for 120 s counts as hung."""


class Refilled(NamedTuple):
    """Rows ``old_rows`` <int64>[M] of the earlier mirror are ``new_rows`` <int64>[M] of this one; ``unread``: slots
    whose rows could not be read, since their server did not answer for too long."""

    old_rows: Array
    new_rows: Array
    unread: set[int]


def refill(
    log: ChunkLog, codec: Codec, buffer: ReplayBuffer, slots: Mapping[int, SlotAccount], stored: Sequence[ChunkSpan]
) -> Refilled:
    """Takes in again those of the ``stored`` chunks that the log still has up to the slots' cursors.

    What was refused when it first came is not taken, also where only its order told. Nothing is counted a second time.
    """
    pages = _Pages(log, codec, {(each.slot, each.id): each for each in stored}, len(slots))
    old_rows, new_rows = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    newest: dict[int, ChunkId] = {}
    # Slots are merged by the weights that their chunks were acted with, and so about as they came in before: the order
    # of arrival decides which rows the ring keeps.
    chunks = (pages.chunks(slot, account.cursor) for slot, account in slots.items())
    for chunk in merge(*chunks, key=lambda each: (each.weight_version, each.seq)):
        chunk_id, before = ChunkId.of(chunk), newest.get(chunk.slot, FIRST_ID)
        buffer.append(chunk, follows=chunk_id == (before.incarnation, before.seq + 1))
        newest[chunk.slot] = chunk_id
        old = pages.wanted[chunk.slot, chunk_id]
        if old.end - old.start == chunk.rows:
            old_rows.append(np.arange(old.start, old.end))
            new_rows.append(np.arange(buffer.mirror.end - chunk.rows, buffer.mirror.end))
    for slot, chunk_id in newest.items():
        if chunk_id != slots[slot].taken:
            buffer.assembler.break_lanes(slot)  # the log's end is missing: what comes next does not follow
    before_refill, after_refill = np.concatenate(old_rows), np.concatenate(new_rows)
    alive = after_refill >= buffer.mirror.start
    return Refilled(before_refill[alive], after_refill[alive], pages.unread)


class _Pages:
    """Reads the ``wanted`` chunks of a log again, a page of each slot in memory at a time."""

    def __init__(
        self, log: ChunkLog, codec: Codec, wanted: Mapping[tuple[int, ChunkId], ChunkSpan], slots: int
    ) -> None:
        self._log, self._codec, self.wanted = log, codec, wanted
        self._page_bytes = REFILL_BYTES // max(1, slots)
        self._until_s = time.monotonic() + REFILL_WAIT_S
        self.unread = set[int]()

    def chunks(self, slot: int, upto: ChunkId) -> Iterator[Chunk]:
        """Yields a slot's wanted chunks up to an id, from the oldest that the log has."""
        cursor = FIRST_ID
        while entries := self._page(slot, cursor):
            for entry in entries:
                if entry.id > upto:
                    return
                if (slot, entry.id) not in self.wanted:
                    continue
                with contextlib.suppress(BadChunk):  # spoilt since
                    yield self._codec.decode(entry.data, entry.slot, *entry.id)
            cursor = entries[-1].id

    def _page(self, slot: int, cursor: ChunkId) -> list[Entry]:
        """Returns some entries after a cursor; none only where the log has no more. A server that does not answer is
        waited for, since what is not read now is trimmed later; at last its slot is ``unread``. Raises Unavailable
        where no server answers."""
        while True:
            try:
                entries = self._log.read({slot: cursor}, self._page_bytes)
                if not entries:  # of several servers also where the slot's does not answer: last_id raises then
                    self._log.last_id(slot)
                    entries = self._log.read({slot: cursor}, self._page_bytes)
                return entries
            except LogError as error:
                if not error.temporary:
                    raise
                if time.monotonic() > self._until_s:
                    self._log.description()
                    self.unread.add(slot)
                    return []
            time.sleep(0.2)
