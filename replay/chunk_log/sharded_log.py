"""One run's chunk log over several servers: each slot's stream is on one of them, all else is a copy on each.

What is global stays global, since only streams are spread: there is one mirror and one sampler, in the learner, and
they take the chunks of all servers. See docs/data-path.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from replay.chunk_log.protocol import (
    ChunkId,
    ChunkLog,
    Entry,
    LogError,
    MemoryUsage,
    Status,
    Unavailable,
    tolerating_outages,
)

PAUSE_S = 10.0
"""How long a server that did not answer is left alone in processes without a publisher."""

T = TypeVar("T")


def shard_of(slot: int, servers: int) -> int:
    """Returns the server of a slot: slot modulo servers. Stable (a slot's number and the list of servers decide, no
    table and no history), and even, where a hash puts two of few slots on one server and none on another."""
    return slot % servers


class ServerHealth(Protocol):
    """Tells which servers answer, so that one that does not is not waited for again and again."""

    def is_up(self, shard: int) -> bool:
        """Returns whether to ask this server."""

    def report_failure(self, shard: int, error: LogError) -> None:
        """Takes the temporary error of a call to this server."""


class Pauses:
    """Leaves a server alone for PAUSE_S after a call that failed: for processes without a publisher."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until_s: dict[int, float] = {}

    def is_up(self, shard: int) -> bool:
        """See ``ServerHealth``."""
        return self._clock() >= self._until_s.get(shard, 0.0)

    def report_failure(self, shard: int, error: LogError) -> None:
        """See ``ServerHealth``."""
        self._until_s[shard] = self._clock() + PAUSE_S


class ShardedLog:
    """A ``ChunkLog`` over one log per server, in the order of ``redis.urls``. Not thread-safe, as they are not.

    The learner's calls skip a server that does not answer and report it to ``health``: only its slots wait. The first
    server alone decides who is the learner.
    """

    def __init__(self, logs: Sequence[ChunkLog], health: ServerHealth | None = None) -> None:
        self._logs = tuple(logs)
        self._health: ServerHealth = health or Pauses()
        self._pending_trims: list[dict[int, ChunkId]] = [{} for _ in self._logs]

    def append(self, slot: int, chunk_id: ChunkId, data: bytes) -> Status:
        return self._logs[self._shard(slot)].append(slot, chunk_id, data)

    def status(self, slot: int) -> Status:
        return self._logs[self._shard(slot)].status(slot)

    def fetch_weights(self) -> bytes | None:
        return self._from_any(lambda log: log.fetch_weights())

    def read(self, cursors: Mapping[int, ChunkId], max_bytes: int) -> list[Entry]:
        """See ``ChunkLog``: server by server, each with an equal part of ``max_bytes``. Raises no temporary error."""
        parts: list[dict[int, ChunkId]] = [{} for _ in self._logs]
        for slot, cursor in cursors.items():
            parts[self._shard(slot)][slot] = cursor
        asked = [shard for shard, part in enumerate(parts) if part and self._health.is_up(shard)]
        entries: list[Entry] = []
        for shard in asked:
            with self._tolerating_outage(shard):
                entries += self._logs[shard].read(parts[shard], max(1, max_bytes // len(asked)))
        return entries

    def last_id(self, slot: int) -> ChunkId:
        """See ``ChunkLog``. Raises Unavailable at once for a server that does not answer its other callers."""
        shard = self._shard(slot)
        if not self._health.is_up(shard):
            raise Unavailable(f"server {shard + 1} of {len(self._logs)}, which has slot {slot}, does not answer")
        try:
            return self._logs[shard].last_id(slot)
        except LogError as error:
            if error.temporary:
                self._health.report_failure(shard, error)
            raise

    def trim(self, fence: int, oldest: Mapping[int, ChunkId]) -> None:
        """See ``ChunkLog``. What a server that is down was to drop, it drops when it is up again. Raises no temporary
        error."""
        for slot, bound in oldest.items():
            self._pending_trims[self._shard(slot)][slot] = bound
        for shard, pending in enumerate(self._pending_trims):
            if pending and self._health.is_up(shard):
                with self._tolerating_outage(shard):
                    self._logs[shard].trim(fence, pending)
                    pending.clear()

    def renew(self, fence: int, slot: int) -> None:
        self._logs[self._shard(slot)].renew(fence, slot)

    def strays(self, slots: Collection[int]) -> dict[str, int]:
        """See ``ChunkLog``: by server and key, since a slot's stream may be on a server that is not its own, too.
        Raises no temporary error."""
        found: dict[str, int] = {}
        for shard, log in enumerate(self._logs):
            if self._health.is_up(shard):
                with self._tolerating_outage(shard):
                    strays = log.strays([slot for slot in slots if self._shard(slot) == shard])
                    found |= {f"{shard} {key}": entries for key, entries in strays.items()}
        return found

    def remove_strays(self, fence: int, strays: Collection[str]) -> None:
        """See ``ChunkLog``. Raises no temporary error."""
        parts = [each.split(" ", 1) for each in strays]
        for shard, log in enumerate(self._logs):
            keys = [key for of, key in parts if int(of) == shard]
            if keys:
                with self._tolerating_outage(shard):
                    log.remove_strays(fence, keys)

    def memory(self) -> MemoryUsage | None:
        """See ``ChunkLog``: of the server that is fullest, since it is the first that would refuse. Raises no temporary
        error."""
        found: list[MemoryUsage] = []
        for shard, log in enumerate(self._logs):
            if self._health.is_up(shard):
                with self._tolerating_outage(shard):
                    found += [memory] if (memory := log.memory()) else []
        return max(found, key=lambda memory: memory.used / memory.bound, default=None)

    def describe(self, fence: int, description: bytes) -> None:
        """See ``ChunkLog``: a copy on every server. Raises no temporary error."""
        for shard, log in enumerate(self._logs):
            if self._health.is_up(shard):
                with self._tolerating_outage(shard):
                    log.describe(fence, description)

    def description(self) -> bytes | None:
        return self._from_any(lambda log: log.description())

    def claim(self, nonce: str) -> bool:
        """See ``ChunkLog``: on every server in turn, up to the first that another run holds."""
        return all(log.claim(nonce) for log in self._logs)

    def take_lease(self, fence: int) -> None:
        """See ``ChunkLog``: the first server admits or does not, the others may be down."""
        self._on_all(lambda log: log.take_lease(fence))

    def publish(self, fence: int, credit: bytes, weights: bytes | None = None) -> None:
        """See ``ChunkLog``: all or nothing on each server, and nothing anywhere where the first one refuses."""
        self._on_all(lambda log: log.publish(fence, credit, weights))

    def release_lease(self, fence: int) -> None:
        """See ``ChunkLog``. Where a server is down the credit lapses by itself."""
        for shard, log in enumerate(self._logs):
            with self._tolerating_outage(shard):
                log.release_lease(fence)

    def close(self) -> None:
        for log in self._logs:
            log.close()

    def _shard(self, slot: int) -> int:
        return shard_of(slot, len(self._logs))

    def _tolerating_outage(self, shard: int) -> AbstractContextManager[None]:
        return tolerating_outages(lambda error: self._health.report_failure(shard, error))

    def _from_any(self, ask: Callable[[ChunkLog], T]) -> T:
        """Returns the answer of the first server that gives one: each has a copy."""
        for shard, log in enumerate(self._logs[:-1]):
            with self._tolerating_outage(shard):
                return ask(log)
        return ask(self._logs[-1])

    def _on_all(self, call: Callable[[ChunkLog], None]) -> None:
        """Calls the first server first: where that raises, the others are not called."""
        first, *others = self._logs
        call(first)
        for shard, log in enumerate(others, start=1):
            with self._tolerating_outage(shard):
                call(log)
