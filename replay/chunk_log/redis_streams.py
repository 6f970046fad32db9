"""Reading the streams of a run's slots on a Redis or Valkey server, about so many bytes at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from replay.chunk_log.protocol import ChunkId, Entry
from replay.chunk_log.redis_client import RedisClient

UNKNOWN_ENTRY_BYTES, LEAST_READ_BYTES = 1 << 20, 4 << 20
"""What an entry is taken for before the first one was read; and what one round trip may bring in any case."""


class StreamReader:
    """Reads several streams by turns. XREAD counts entries per stream: the biggest entry so far turns bytes into that
    count."""

    def __init__(self, client: RedisClient, key_of: Callable[[int], str]) -> None:
        """``key_of``: a slot's stream."""
        self._client, self._key_of = client, key_of
        self._biggest_entry_bytes = self._turn = 0

    def read(self, cursors: Mapping[int, ChunkId], max_bytes: int) -> list[Entry]:
        """See ``ChunkStream.read``."""
        slots = list(cursors)
        first = self._turn % max(1, len(slots))
        waiting = slots[first:] + slots[:first]
        entries: list[Entry] = []
        # Of more streams than one entry each would be too much of, only some are read at a time. The next call begins
        # where this one ended, so that each has its turn.
        while waiting and (not entries or sum(len(entry.data) for entry in entries) < max_bytes):
            biggest = self._biggest_entry_bytes or UNKNOWN_ENTRY_BYTES
            some = max(1, max(max_bytes, LEAST_READ_BYTES) // biggest)
            asked, waiting = waiting[:some], waiting[some:]
            count = max(1, max_bytes // (biggest * len(asked))) if self._biggest_entry_bytes else 1
            entries += self._read({slot: cursors[slot] for slot in asked}, count)
        if waiting:
            self._turn = slots.index(waiting[0])
        return entries

    def _read(self, cursors: Mapping[int, ChunkId], count: int) -> list[Entry]:
        """Returns at most ``count`` entries of each of these streams."""
        slots = {self._key_of(slot).encode(): slot for slot in cursors}
        streams: dict[Any, Any] = {key: str(cursors[slot]) for key, slot in slots.items()}
        reply = self._client.call(lambda: self._client.redis.xread(streams, count=count))
        entries = [
            Entry(slots[key], parse_id(entry_id), fields[1] if fields else b"")
            for key, stream in reply
            for entry_id, fields in stream
        ]
        self._biggest_entry_bytes = max([self._biggest_entry_bytes, *(len(entry.data) for entry in entries)])
        return entries


def parse_id(entry_id: bytes | str) -> ChunkId:
    """Returns the chunk id that an entry's id is."""
    text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    incarnation, _, seq = text.partition("-")
    return ChunkId(int(incarnation), int(seq))
