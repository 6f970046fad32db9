"""The chunk log in memory: the twin of the one on a server, for the inline mode and for tests."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from replay.chunk_log.protocol import ChunkId, Entry, Fenced, MemoryUsage, Status, WeightsHeader, append_error
from replay.credit import CREDIT_BYTES, Credit
from replay.state import State, count


class MemoryLog:
    """The in-process twin, for the inline mode and for tests: same contract, no server, no clock."""

    def __init__(self, max_chunks: int = 1 << 16) -> None:
        self._chunks: dict[int, dict[ChunkId, bytes]] = {}
        self._last: dict[int, ChunkId] = {}
        self._max_chunks = max_chunks
        self._weights: bytes | None = None
        self._credit = b""
        self._nonce: str | None = None
        self._fence = 0
        self._description: bytes | None = None

    def state(self) -> State:
        """Returns all of it, as bytes; chunks that were trimmed are not in it."""
        stored = {"weights": self._weights, "description": self._description, "credit": self._credit or None} | {
            f"chunk.{slot}.{chunk_id}": data
            for slot, chunks in self._chunks.items()
            for chunk_id, data in chunks.items()
        }
        return State(
            {
                "last": [[slot, *chunk_id] for slot, chunk_id in self._last.items()],
                "nonce": self._nonce,
                "fence": self._fence,
            },
            {name: np.frombuffer(data, np.uint8) for name, data in stored.items() if data is not None},
        )

    def restore(self, state: State) -> None:
        """Continues from there."""
        values, arrays = state
        stored = {name: array.tobytes() for name, array in arrays.items()}
        self._weights, self._description = stored.pop("weights", None), stored.pop("description", None)
        self._credit = stored.pop("credit", b"")
        last = [[count(each, "last") for each in row] for row in values["last"]]
        self._last = {slot: ChunkId(incarnation, seq) for slot, incarnation, seq in last}
        self._nonce, self._fence = values["nonce"], count(values["fence"], "fence")
        self._chunks = {}
        names = (name.split(".") for name in stored)
        ids = sorted((int(slot), ChunkId(*map(int, each.split("-")))) for _, slot, each in names)
        for slot, chunk_id in ids:  # in their order, which is how they are read and dropped
            self._chunks.setdefault(slot, {})[chunk_id] = stored[f"chunk.{slot}.{chunk_id}"]

    def append(self, slot: int, chunk_id: ChunkId, data: bytes) -> Status:
        last = self.last_id(slot)
        if chunk_id < last:
            raise append_error(slot, chunk_id, last)
        if chunk_id > last:
            chunks = self._chunks.setdefault(slot, {})
            chunks[chunk_id] = data
            self._last[slot] = chunk_id
            if len(chunks) > self._max_chunks:
                del chunks[next(iter(chunks))]
        return self.status(slot)

    def status(self, slot: int) -> Status:
        own = self._credit[slot * CREDIT_BYTES : (slot + 1) * CREDIT_BYTES]
        return Status(Credit.unpack(own), WeightsHeader.unpack(self._weights or b""))

    def fetch_weights(self) -> bytes | None:
        return self._weights

    def read(self, cursors: Mapping[int, ChunkId], max_bytes: int) -> list[Entry]:
        entries = []
        for slot, cursor in cursors.items():
            for chunk_id, data in self._chunks.get(slot, {}).items():
                if chunk_id > cursor and max_bytes > 0:
                    entries.append(Entry(slot, chunk_id, data))
                    max_bytes -= len(data)
        return entries

    def last_id(self, slot: int) -> ChunkId:
        return self._last.get(slot, ChunkId())

    def trim(self, fence: int, oldest: Mapping[int, ChunkId]) -> None:
        self._check_fence(fence)
        for slot, bound in oldest.items():
            chunks = self._chunks.get(slot, {})
            for chunk_id in [chunk_id for chunk_id in chunks if chunk_id < bound]:
                del chunks[chunk_id]

    def renew(self, fence: int, slot: int) -> None:
        self._check_fence(fence)
        self._chunks.pop(slot, None)
        self._last.pop(slot, None)

    def strays(self, slots: Collection[int]) -> dict[str, int]:
        return {str(slot): len(chunks) for slot, chunks in self._chunks.items() if slot not in slots}

    def remove_strays(self, fence: int, strays: Collection[str]) -> None:
        for slot in map(int, strays):
            self.renew(fence, slot)

    def memory(self) -> MemoryUsage | None:
        return None

    def claim(self, nonce: str) -> bool:
        self._nonce = self._nonce or nonce
        return self._nonce == nonce

    def take_lease(self, fence: int) -> None:
        self._check_fence(fence)
        self._fence = fence

    def _check_fence(self, fence: int) -> None:
        if fence < self._fence:
            raise Fenced(f"fence {fence} is older than {self._fence}, which took the lease")

    def publish(self, fence: int, credit: bytes, weights: bytes | None = None) -> None:
        self.take_lease(fence)
        self._credit = credit
        self._weights = weights or self._weights

    def release_lease(self, fence: int) -> None:
        if fence == self._fence:
            self._credit = b""

    def describe(self, fence: int, description: bytes) -> None:
        self.take_lease(fence)
        self._description = description

    def description(self) -> bytes | None:
        return self._description

    def close(self) -> None:
        pass
