"""The fence on a Redis or Valkey server: a learner's writes go through only where no newer learner has begun."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis

from replay.chunk_log.protocol import MAX_FENCE, Fenced, Full, UnusableServer
from replay.chunk_log.redis_client import RedisClient

Write = Callable[[Any], Any]
"""Queues commands on a pipeline of redis-py's."""


class Fence:
    """The fence of one run on one server. The key keeps the newest learner's number for ever."""

    def __init__(self, client: RedisClient, key: str) -> None:
        self._client, self._key = client, key

    def write(self, fence: int, write: Write, *unless_changed: str, sends_bytes: int = 0) -> None:
        """Does ``write`` and makes ``fence`` the newest, in one MULTI.

        Raises:
            Fenced: a newer fence was recorded before.
            Unavailable: somebody changed the fence or one of the keys ``unless_changed`` meanwhile, too.
        """
        self._client.call(lambda: self._transact(fence, write, *unless_changed), sends_bytes)

    def remove(self, fence: int, write: Write) -> None:
        """Does ``write``, which only removes, unless a newer fence took the lease.

        A server that is full refuses every command within MULTI. There the fence is asked for first: a learner that is
        frozen just between the two, while another takes over, removes a little that is not its own any more.
        """
        try:
            self._client.call(lambda: self._transact(fence, write, record=False))
        except Full:
            self._client.call(lambda: self._remove_plainly(fence, write))

    def _remove_plainly(self, fence: int, write: Write) -> None:
        self._check(fence, self._client.redis.get(self._key))
        pipe = self._client.redis.pipeline(transaction=False)
        write(pipe)
        pipe.execute()

    def _transact(self, fence: int, write: Write, *unless_changed: str, record: bool = True) -> None:
        client = self._client.redis
        pipe: Any
        with _Transaction(client.connection_pool, client.response_callbacks, True, None) as pipe:
            # Whoever changes a watched key from here on makes EXEC fail, a newer learner by recording its fence.
            pipe.watch(self._key, *unless_changed)
            newest = self._check(fence, pipe.get(self._key))
            pipe.multi()
            if record and newest < fence:  # written again it would fail the learner's other connection, which watches
                pipe.set(self._key, fence)
            write(pipe)
            pipe.execute()

    def _check(self, fence: int, value: bytes | None) -> int:
        """Returns the newest fence that the server has.

        Raises:
            Fenced: it is newer than ``fence``.
            UnusableServer: no learner has written what is there.
        """
        if value is None:
            return 0
        if not value.isdigit() or len(value) > len(str(MAX_FENCE)) or int(value) > MAX_FENCE:
            raise UnusableServer(
                f"{self._client.url}: the key {self._key} holds {value[:40]!r}, which is no learner's fence (0 to "
                f"{MAX_FENCE}): somebody else writes to this run's keys; remove that key"
            )
        if int(value) > fence:
            raise Fenced(f"fence {int(value)} has taken over from {fence}")
        return int(value)


class _Transaction(redis.client.Pipeline):
    """Hangs up where it ends between WATCH and EXEC. redis-py's own says UNWATCH then, on a new connection where the
    old one has failed, and on another: a server that freezes within a publish would be waited for four times."""

    def reset(self) -> None:  # type: ignore[override]
        """See ``redis.client.Pipeline``."""
        connection: Any = self.connection
        if self.watching and connection is not None:
            connection.disconnect()
            self.watching = False
        super().reset()
