"""A run's keys seen from outside the run: what is stored in them, and their removal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from replay.chunk import BadChunk, Chunk, Codec
from replay.chunk_log.redis_log import RedisLog
from replay.chunk_log.redis_streams import parse_id

SCAN_COUNT = 1000
UNLINK_KEYS = 100
"""Keys of one UNLINK: the server answers others in between."""


class StreamContents(NamedTuple):
    """What a slot's stream holds. ``rows`` and ``newest`` are None where a chunk they rest on cannot be read."""

    chunks: int
    rows: int | None
    bytes: int
    newest: Chunk | None


class RunInspector(RedisLog):
    """One run's keys on one server, for whoever looks after them."""

    def alive(self) -> bool:
        """Returns whether the run's learner has renewed the credit within the last seconds."""
        return self.call(lambda: self.redis.get(self.credit_key)) is not None

    def ping(self) -> None:
        """Makes one round trip, which every role may."""
        self.call(self.redis.ping)

    def cpu_seconds(self) -> float:
        """Returns the CPU seconds that the server has taken. Raises UnusableServer where this user may not ask."""
        info = self.call(lambda: self.redis.info("cpu"))
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])

    def nonce(self) -> str | None:
        """Returns what the run's name is claimed with; see ``RunAdmin.claim``."""
        held: bytes | None = self.call(lambda: self.redis.get(self.meta_key))
        return None if held is None else held.decode(errors="replace")

    def stored(self, slot: int, codec: Codec) -> StreamContents:
        """Returns what a slot's stream holds.

        Rows are not counted as they are stored and trimmed: the headers tell. In each incarnation, rows stored =
        cumulative rows of its last chunk - those of its first + the first's own.
        """
        key = self.chunks_key(slot)
        chunks: int = self.call(lambda: self.redis.xlen(key))
        memory: int | None = self.call(lambda: self.redis.memory_usage(key))
        rows: int | None = 0
        newest, incarnation = None, 0
        while oldest := self._first_from(key, incarnation):
            incarnation = parse_id(oldest[0][0]).incarnation
            latest = self._last_of(key, incarnation) or oldest  # trimmed meanwhile
            first, newest = _decoded(oldest, slot, codec), _decoded(latest, slot, codec)
            if rows is not None and first is not None and newest is not None:
                rows += newest.counters.rows - first.counters.rows + first.rows
            else:
                rows = None
            incarnation += 1
        return StreamContents(chunks, rows, memory or 0, newest)

    def newest(self, slot: int, codec: Codec) -> Chunk | None:
        """Returns the last chunk of a slot's stream; None where there is none that can be read."""
        return _decoded(self.call(lambda: self.redis.xrevrange(self.chunks_key(slot), count=1)), slot, codec)

    def _first_from(self, key: str, incarnation: int) -> list[Any]:
        """Returns the first entry of a stream from this incarnation on, if any."""
        entries: list[Any] = self.call(lambda: self.redis.xrange(key, incarnation, "+", 1))
        return entries

    def _last_of(self, key: str, incarnation: int) -> list[Any]:
        """Returns the last entry of this incarnation, if any."""
        entries: list[Any] = self.call(lambda: self.redis.xrevrange(key, incarnation, incarnation, 1))
        return entries

    def runs(self) -> list[str]:
        """Returns the names of all runs that have keys on this server."""
        found = self.call(lambda: set(self._scan("qherd:*:*")))
        return sorted({key.decode(errors="replace").split(":")[1] for key in found})

    def keys(self) -> list[bytes]:
        """Returns all keys of this run and of no other, the one that claims its name last."""
        pattern = re.sub(r"([][*?^\\-])", r"\\\1", self._prefix) + "*"
        prefix, meta = self._prefix.encode(), self.meta_key.encode()
        found = self.call(lambda: {key for key in self._scan(pattern) if key.startswith(prefix)})
        return sorted(found, key=lambda key: (key == meta, key))

    def memory_bytes(self, keys: Iterable[bytes]) -> int:
        """Returns the bytes that these keys take on the server."""

        def ask() -> list[Any]:
            pipe = self.redis.pipeline(transaction=False)
            for key in keys:
                pipe.memory_usage(key)
            replies: list[Any] = pipe.execute()
            return replies

        return sum(reply or 0 for reply in self.call(ask))

    def remove(self, keys: list[bytes]) -> int:
        """Removes these keys, in their order; returns how many there still were."""
        removed = 0
        for start in range(0, len(keys), UNLINK_KEYS):
            removed += self._unlink(keys[start : start + UNLINK_KEYS])
        return removed

    def _unlink(self, batch: list[bytes]) -> int:
        count: int = self.call(lambda: self.redis.unlink(*batch))
        return count

    def _scan(self, pattern: str) -> Iterator[bytes]:
        yield from self.redis.scan_iter(match=pattern, count=SCAN_COUNT)


def _decoded(entries: list[Any], slot: int, codec: Codec) -> Chunk | None:
    """Returns the first of the entries, as a chunk."""
    for entry_id, fields in entries:
        try:
            return codec.decode(next(iter(fields.values()), b""), slot, *parse_id(entry_id))
        except BadChunk:
            return None
    return None
