"""One run's chunk log over several servers: each slot's stream is on one of them, all else is a copy on each.

What is global stays global, since only streams are spread: there is one mirror and one sampler, in the learner, and
they take the chunks of all servers. See docs/data-path.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from replay.chunk_log.protocol import ChunkId, ChunkLog, Entry, LogError, Memory, Status, Unavailable, unless_away

PAUSE_S = 10.0
"""How long a server that did not answer is left alone by those who have nobody to ask how it is."""

T = TypeVar("T")


def shard_of(slot: int, servers: int) -> int:
    """The server of a slot: slot modulo servers. Stable (a slot's number and the list of servers decide, no table and
    no history), and even, where a hash puts two of few slots on one server and none on another."""
    return slot % servers


class Health(Protocol):
    """Who knows which servers answer, so that one that does not is not waited for again and again."""

    def answers(self, shard: int) -> bool:
        """Whether to ask this server."""

    def failed(self, shard: int, error: LogError) -> None:
        """A call of this server has failed for now."""


class Pauses:
    """Leaves a server alone for PAUSE_S after a call that failed: the health of those who have nobody to ask."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until_s: dict[int, float] = {}

    def answers(self, shard: int) -> bool:
        """See ``Health``."""
        return self._clock() >= self._until_s.get(shard, 0.0)

    def failed(self, shard: int, error: LogError) -> None:
        """See ``Health``."""
        self._until_s[shard] = self._clock() + PAUSE_S


class ShardedLog:
    """A ``ChunkLog`` over one log per server, in the order of ``redis.urls``. Not thread-safe, as they are not.

    The learner's calls pass over a server that does not answer: its slots wait, the others go on, and ``health`` is
    told. The first server alone decides who is the learner.
    """

    def __init__(self, logs: Sequence[ChunkLog], health: Health | None = None) -> None:
        self._logs = tuple(logs)
        self._health: Health = health or Pauses()
        self._owed: list[dict[int, ChunkId]] = [{} for _ in self._logs]

    def append(self, slot: int, chunk_id: ChunkId, data: bytes) -> Status:
        return self._logs[self._shard(slot)].append(slot, chunk_id, data)

    def status(self, slot: int) -> Status:
        return self._logs[self._shard(slot)].status(slot)

    def fetch_weights(self) -> bytes | None:
        return self._ask_any(lambda log: log.fetch_weights())

    def read(self, cursors: Mapping[int, ChunkId], max_bytes: int) -> list[Entry]:
        """See ``ChunkLog``: server by server, each with an equal part of ``max_bytes``. Raises no temporary error."""
        parts: list[dict[int, ChunkId]] = [{} for _ in self._logs]
        for slot, cursor in cursors.items():
            parts[self._shard(slot)][slot] = cursor
        asked = [shard for shard, part in enumerate(parts) if part and self._health.answers(shard)]
        entries: list[Entry] = []
        for shard in asked:
            with self._unless_away(shard):
                entries += self._logs[shard].read(parts[shard], max(1, max_bytes // len(asked)))
        return entries

    def last_id(self, slot: int) -> ChunkId:
        """See ``ChunkLog``. Raises Unavailable at once for a server that does not answer its other callers."""
        shard = self._shard(slot)
        if not self._health.answers(shard):
            raise Unavailable(f"server {shard + 1} of {len(self._logs)}, which has slot {slot}, does not answer")
        try:
            return self._logs[shard].last_id(slot)
        except LogError as error:
            if error.temporary:
                self._health.failed(shard, error)
            raise

    def trim(self, fence: int, oldest: Mapping[int, ChunkId]) -> None:
        """See ``ChunkLog``. What a server that is away was to drop, it drops when it is back. Raises no temporary
        error."""
        for slot, bound in oldest.items():
            self._owed[self._shard(slot)][slot] = bound
        for shard, owed in enumerate(self._owed):
            if owed and self._health.answers(shard):
                with self._unless_away(shard):
                    self._logs[shard].trim(fence, owed)
                    owed.clear()

    def renew(self, fence: int, slot: int) -> None:
        self._logs[self._shard(slot)].renew(fence, slot)

    def strays(self, slots: Collection[int]) -> dict[str, int]:
        """See ``ChunkLog``: by server and key, since a slot's stream may be on a server that is not its own, too.
        Raises no temporary error."""
        found: dict[str, int] = {}
        for shard, log in enumerate(self._logs):
            if self._health.answers(shard):
                with self._unless_away(shard):
                    strays = log.strays([slot for slot in slots if self._shard(slot) == shard])
                    found |= {f"{shard} {key}": entries for key, entries in strays.items()}
        return found

    def remove_strays(self, fence: int, strays: Collection[str]) -> None:
        """See ``ChunkLog``. Raises no temporary error."""
        parts = [each.split(" ", 1) for each in strays]
        for shard, log in enumerate(self._logs):
            keys = [key for of, key in parts if int(of) == shard]
            if keys:
                with self._unless_away(shard):
                    log.remove_strays(fence, keys)

    def memory(self) -> Memory | None:
        """See ``ChunkLog``: of the server that is fullest, since it is the first that would refuse. Raises no temporary
        error."""
        found: list[Memory] = []
        for shard, log in enumerate(self._logs):
            if self._health.answers(shard):
                with self._unless_away(shard):
                    found += [memory] if (memory := log.memory()) else []
        return max(found, key=lambda memory: memory.used / memory.bound, default=None)

    def describe(self, fence: int, description: bytes) -> None:
        """See ``ChunkLog``: a copy on every server. Raises no temporary error."""
        for shard, log in enumerate(self._logs):
            if self._health.answers(shard):
                with self._unless_away(shard):
                    log.describe(fence, description)

    def description(self) -> bytes | None:
        return self._ask_any(lambda log: log.description())

    def claim(self, nonce: str) -> bool:
        """See ``ChunkLog``: on every server in turn, up to the first that another run holds."""
        return all(log.claim(nonce) for log in self._logs)

    def take_lease(self, fence: int) -> None:
        """See ``ChunkLog``: the first server admits or does not, the others may be away."""
        self._tell_all(lambda log: log.take_lease(fence))

    def publish(self, fence: int, credit: bytes, weights: bytes | None = None) -> None:
        """See ``ChunkLog``: all or nothing on each server, and nothing anywhere where the first one refuses."""
        self._tell_all(lambda log: log.publish(fence, credit, weights))

    def release_lease(self, fence: int) -> None:
        """See ``ChunkLog``. Where a server is away the credit lapses by itself."""
        for shard, log in enumerate(self._logs):
            with self._unless_away(shard):
                log.release_lease(fence)

    def close(self) -> None:
        for log in self._logs:
            log.close()

    def _shard(self, slot: int) -> int:
        return shard_of(slot, len(self._logs))

    def _unless_away(self, shard: int) -> AbstractContextManager[None]:
        return unless_away(lambda error: self._health.failed(shard, error))

    def _ask_any(self, ask: Callable[[ChunkLog], T]) -> T:
        """The answer of the first server that gives one: each has a copy."""
        for shard, log in enumerate(self._logs[:-1]):
            with self._unless_away(shard):
                return ask(log)
        return ask(self._logs[-1])

    def _tell_all(self, tell: Callable[[ChunkLog], None]) -> None:
        """The first server first: where it does not agree, the others are not told."""
        first, *others = self._logs
        tell(first)
        for shard, log in enumerate(others, start=1):
            with self._unless_away(shard):
                tell(log)
