"""The chunk log on Redis or Valkey (any server >= 7.0): one stream per slot, explicit ids, plain commands, no script.

The server itself refuses a duplicate (a retry after a time-out) and a zombie of an older incarnation, because XADD
takes an id only above the stream's last one, also after trimming has emptied the stream. See docs/data-path.md.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import redis

from replay.chunk_log.protocol import (
    CREDIT_MS,
    WEIGHTS_HEADER_BYTES,
    ChunkId,
    Entry,
    Fenced,
    MemoryUsage,
    Status,
    Unavailable,
    UnusableServer,
    WeightsHeader,
    append_error,
)
from replay.chunk_log.redis_client import TIMEOUT_S, RedisClient, bulk, command
from replay.chunk_log.redis_fence import Fence
from replay.chunk_log.redis_streams import StreamReader, parse_id
from replay.credit import CREDIT_BYTES, Credit

_STALE_ID = re.compile("equal or smaller than the target stream top item|stream has exhausted the last possible ID")
SCAN_COUNT = 1000
_COPY_BELOW_BYTES = 1 << 16
"""Smaller chunks are copied into one send; for bigger ones two more sends are cheaper than the copy."""


class RedisLog(RedisClient):
    """One run's ``ChunkLog`` on one server."""

    def __init__(
        self, url: str, run: str, max_chunks: int = 1 << 16, timeout_s: float = TIMEOUT_S, *, keep: bool = False
    ) -> None:
        """``max_chunks`` bounds each slot's stream as a backstop; the learner's trimming keeps it far below. ``keep``:
        see ``RedisClient``."""
        super().__init__(url, timeout_s, keep=keep)
        self.redis.set_response_callback("XREAD", lambda reply, **_: reply or [])
        self._max_chunks = max_chunks
        self._prefix = f"qherd:{run}:"
        self.credit_key = f"{self._prefix}credit"
        self.fence_key = f"{self._prefix}fence"
        self.weights_key = f"{self._prefix}weights"
        self.meta_key = f"{self._prefix}meta"
        self.about_key = f"{self._prefix}about"
        self._fence, self._streams = Fence(self, self.fence_key), StreamReader(self, self.chunks_key)
        self._ask_header = command("GETRANGE", self.weights_key, 0, WEIGHTS_HEADER_BYTES - 1)
        self._asks: dict[int, bytes] = {}

    def chunks_key(self, slot: int) -> str:
        """Returns the key of a slot's stream."""
        return f"{self._prefix}chunks:{slot}"

    def append(self, slot: int, chunk_id: ChunkId, data: bytes) -> Status:
        """See ``ChunkStream.append``: XADD and the status in one round trip."""
        words = (self.chunks_key(slot), "MAXLEN", "~", self._max_chunks, chunk_id, "c")
        xadd = b"".join((b"*8\r\n$4\r\nXADD\r\n", *map(bulk, words), b"$%d\r\n" % len(data)))
        pieces = [xadd, data, b"\r\n" + self._ask_status(slot)]
        if len(data) < _COPY_BELOW_BYTES:
            pieces = [b"".join(pieces)]
        added, *status = self.call(lambda: self.exchange(pieces, 3), len(data))
        # XADD refuses the id of a chunk that is stored already: what a retry after a time-out is to hear. Only the
        # stream's last id tells that from a newer incarnation's, and from a server that has lost the stream.
        if isinstance(added, redis.ResponseError) and _STALE_ID.search(str(added)):
            last = self.last_id(slot)
            if last > chunk_id:
                raise append_error(slot, chunk_id, last)
            if last < chunk_id:  # it has lost the stream between the two questions
                raise Unavailable(f"{self.url} refused {chunk_id} of slot {slot}, and has come back at {last}")
        elif isinstance(added, Exception):
            raise self.translate(added) from added
        return self._status(status)

    def status(self, slot: int) -> Status:
        """See ``Broadcast.status``."""
        return self._status(self.call(lambda: self.exchange([self._ask_status(slot)], 2)))

    def _ask_status(self, slot: int) -> bytes:
        """Returns the commands for the slot's own part of the credit, whatever the number of slots, and the header."""
        if (ask := self._asks.get(slot)) is None:  # packing it takes 5 µs, of some 200 that an append takes
            at = slot * CREDIT_BYTES
            ask = command("GETRANGE", self.credit_key, at, at + CREDIT_BYTES - 1) + self._ask_header
            self._asks[slot] = ask
        return ask

    def _status(self, replies: list[Any]) -> Status:
        for reply in replies:
            if isinstance(reply, Exception):
                raise self.translate(reply) from reply
        credit, header = replies
        return Status(Credit.unpack(credit), WeightsHeader.unpack(header))

    def fetch_weights(self) -> bytes | None:
        """See ``Broadcast.fetch_weights``."""
        weights: bytes | None = self.call(lambda: self.redis.get(self.weights_key))
        return weights

    def read(self, cursors: Mapping[int, ChunkId], max_bytes: int) -> list[Entry]:
        """See ``ChunkStream.read``."""
        return self._streams.read(cursors, max_bytes)

    def last_id(self, slot: int) -> ChunkId:
        """See ``ChunkStream.last_id``."""
        try:
            info = self.call(lambda: self.redis.xinfo_stream(self.chunks_key(slot)))
        except UnusableServer as error:
            if "no such key" in str(error):
                return ChunkId()
            raise
        return parse_id(info["last-generated-id"])

    def trim(self, fence: int, oldest: Mapping[int, ChunkId]) -> None:
        """See ``ChunkStream.trim``."""

        def write(pipe: Any) -> None:
            for slot, bound in oldest.items():
                pipe.xtrim(self.chunks_key(slot), minid=str(bound), approximate=False)

        self._fence.remove(fence, write)

    def renew(self, fence: int, slot: int) -> None:
        """See ``ChunkStream.renew``."""
        self._fence.remove(fence, lambda pipe: pipe.unlink(self.chunks_key(slot)))

    def strays(self, slots: Collection[int]) -> dict[str, int]:
        """See ``RunAdmin.strays``."""

        def ask() -> dict[str, int]:
            known = {self.chunks_key(slot).encode() for slot in slots}
            pattern = re.sub(r"([][*?^\\-])", r"\\\1", f"{self._prefix}chunks:") + "*"
            found = set(self.redis.scan_iter(match=pattern, count=SCAN_COUNT)) - known
            return {key.decode(errors="surrogateescape"): self.redis.xlen(key) for key in found}

        return self.call(ask)

    def remove_strays(self, fence: int, strays: Collection[str]) -> None:
        """See ``RunAdmin.remove_strays``."""
        keys = [key.encode(errors="surrogateescape") for key in strays]
        self._fence.remove(fence, lambda pipe: pipe.unlink(*keys))

    def memory(self) -> MemoryUsage | None:
        """See ``RunAdmin.memory``."""
        info = self.call(lambda: self.redis.info("memory"))
        return MemoryUsage(info["used_memory"], info["maxmemory"]) if info["maxmemory"] else None

    def claim(self, nonce: str) -> bool:
        """See ``RunAdmin.claim``."""

        def ask() -> bool:
            self.redis.set(self.meta_key, nonce, nx=True)
            held: bytes = self.redis.get(self.meta_key)
            return held == nonce.encode()

        return self.call(ask)

    def take_lease(self, fence: int) -> None:
        """See ``Broadcast.take_lease``."""
        self._fence.write(fence, lambda pipe: None)

    def publish(self, fence: int, credit: bytes, weights: bytes | None = None) -> None:
        """See ``Broadcast.publish``."""

        def write(pipe: Any) -> None:
            pipe.set(self.credit_key, credit, px=CREDIT_MS)
            if weights is not None:
                pipe.set(self.weights_key, weights)

        # An EXEC that was given up for lost may still come through, after newer weights of this same learner.
        keys = () if weights is None else (self.weights_key,)
        self._fence.write(fence, write, *keys, sends_bytes=len(weights or b""))

    def release_lease(self, fence: int) -> None:
        """See ``Broadcast.release_lease``."""
        try:
            self._fence.write(fence, lambda pipe: pipe.delete(self.credit_key))
        except Fenced:
            return

    def describe(self, fence: int, description: bytes) -> None:
        """See ``RunAdmin.describe``."""
        self._fence.write(fence, lambda pipe: pipe.set(self.about_key, description))

    def description(self) -> bytes | None:
        """See ``RunAdmin.description``."""
        description: bytes | None = self.call(lambda: self.redis.get(self.about_key))
        return description
