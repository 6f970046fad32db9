"""The connection to a Redis or Valkey server: bounded waits, errors as the log's own, and the protocol's bytes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from replay.chunk_log.protocol import Full, LogError, Unavailable, UnusableServer
from replay.chunk_log.server_kind import (
    OTHER_WORDS_BYTES,
    SMALLEST_BOUND_BYTES,
    Bounds,
    bounds,
    check_kind,
    refuses_length,
    who_answers,
)
from replay.chunk_log.urls import UrlError, check_delimiters, no_url, public_url

TIMEOUT_S = 5.0
"""No call goes without progress for longer than this."""

_FINAL_TYPES = (redis.ResponseError, redis.exceptions.AuthenticationError, redis.InvalidResponse, UnicodeError)
"""Errors that stay: a missing right or key, a wrong password, another kind of server, a host name that is none."""
_PASSING_TYPES = (
    redis.exceptions.ReadOnlyError,
    redis.exceptions.BusyLoadingError,
    redis.exceptions.ClusterError,
    redis.exceptions.ExecAbortError,
)
_PASSING_CODE = re.compile(r"\b(NOREPLICAS|MISCONF|MASTERDOWN|BUSY|CLUSTERDOWN|TRYAGAIN|READONLY|LOADING)\b")
"""Error replies of a server in a state that passes; redis-py has a class for some and keeps the code of others."""
T = TypeVar("T")


class RedisClient:
    """A connection to one server. Not thread-safe: one object per thread."""

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S, *, keep: bool = False) -> None:
        """``keep``: the learner's, which the server is not to cut off where its clients hold too much memory: only it
        makes room."""
        self.url = public_url(url)
        # redis-py types every reply as a union of both protocols, hence Any
        self.redis: Any = _connect(url, timeout_s, keep)

    def check(self) -> None:
        """Raises UnusableServer where this server must not hold a run: see ``replay.chunk_log.server_kind``."""
        try:
            info = self.call(self.redis.info)
        except LogError as error:
            if kind := who_answers(self.redis.connection_pool):
                raise UnusableServer(f"{self.url}: {kind}") from error
            raise
        check_kind(self.url, info)

    def bounds(self) -> Bounds:
        """Returns the bytes that the server takes at the most, as far as this user may ask."""
        return self.call(lambda: bounds(self.redis))

    def check_length(self, nbytes: int) -> None:
        """Raises UnusableServer where the server refuses a value of this length. Asked up to three times, since a
        network that fails closes connections, too."""
        bound = ""
        for _ in range(3 if nbytes + OTHER_WORDS_BYTES > SMALLEST_BOUND_BYTES else 0):
            bound = refuses_length(self.redis, nbytes)
            if not bound:
                return
        if bound:
            raise UnusableServer(
                f"{self.url} refuses a value of {nbytes:,} bytes for its length: raise its {bound}, or send "
                "less (chunks: --actors.chunk_steps, --actors.lanes; weights: --learner.network.hidden)"
            )

    def close(self) -> None:
        """Gives up the connections."""
        self.redis.close()

    def exchange(self, request: list[bytes], replies: int) -> list[Any]:
        """Sends packed commands and returns their replies, error replies among them as exceptions.

        What redis-py's pipeline does, in half of its time: this is all that an actor asks of a server, and once per
        chunk. A connection with replies still on their way is closed, so that none of them answers a later call.
        """
        pool = self.redis.connection_pool
        connection = pool.get_connection()
        try:
            connection.send_packed_command(request)
            return [_reply(connection) for _ in range(replies)]
        except BaseException:
            connection.disconnect()  # a reply that comes later would be taken for the next call's
            raise
        finally:
            pool.release(connection)

    def call(self, ask: Callable[[], T], sends_bytes: int = 0) -> T:
        """Returns what ``ask`` does; its errors become the log's own. ``sends_bytes``: length of the value that it
        sends."""
        try:
            return ask()
        except (redis.RedisError, UnicodeError) as error:  # UnicodeError: a host name that is none
            # WatchError: what redis-py makes of a connection that ends between WATCH and EXEC
            if isinstance(error, (redis.ConnectionError, redis.WatchError)) or "bulk length" in str(error):
                self.check_length(sends_bytes)  # such a value would end every connection, for ever
            raise self.translate(error) from error

    def translate(self, error: Exception) -> LogError:
        """Returns redis-py's exception as one of the log's, with the server's public URL."""
        where = f"{self.url}: {error}"
        if isinstance(error, redis.WatchError):
            return Unavailable(f"{where} (another client wrote at the same time)")
        if isinstance(error, redis.exceptions.OutOfMemoryError):
            return Full(where)
        passing = isinstance(error, _PASSING_TYPES) or _PASSING_CODE.search(str(error))
        final = isinstance(error, _FINAL_TYPES) and not passing
        return UnusableServer(where) if final else Unavailable(where)


def command(*words: object) -> bytes:
    """Packs a command as the protocol (RESP) has it: an array of bulk strings."""
    return b"".join((b"*%d\r\n" % len(words), *map(bulk, words)))


def bulk(word: object) -> bytes:
    """Packs a word as a bulk string."""
    text = str(word).encode()
    return b"$%d\r\n%b\r\n" % (len(text), text)


def _reply(connection: Any) -> Any:
    """Returns the next reply, also an error reply; a broken connection raises."""
    try:
        return connection.read_response()
    except redis.ResponseError as error:
        return error


def _on_connect_kept(connection: Any) -> None:
    """Connects as usual, exempt from ``maxmemory-clients``; a server without it, or a user without the right (of an
    older ``qherd secrets``), answers with an error, which is ignored."""
    connection.on_connect()
    connection.send_command("CLIENT", "NO-EVICT", "ON", check_health=False)
    _reply(connection)


def _connect(url: str, timeout_s: float, keep: bool) -> Any:
    """Returns a client whose every wait is bounded and which retries nothing by itself."""
    check_delimiters(url)
    more = {"redis_connect_func": _on_connect_kept} if keep else {}
    try:
        client = redis.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            client_name="qherd",
            socket_read_size=1 << 20,
            **more,
        )
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # connects to nothing
    except TypeError as error:
        raise UrlError(
            f"{public_url(url)} has an option that redis-py does not know with this scheme: "
            f"{str(error).rpartition(' ')[2]} (those of TLS, ssl_..., want rediss://)"
        ) from None
    except ValueError:  # its text may hold a part of the password
        raise no_url(url) from None
    return client
