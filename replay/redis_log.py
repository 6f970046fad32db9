"""The chunk log on Redis or Valkey (any server >= 7.0): one stream per slot, explicit ids, plain commands, no script.

The server itself refuses a duplicate (a retry after a time-out) and a zombie of an older incarnation, because XADD
takes an id only above the stream's last one, also after trimming has emptied the stream. See docs/data-path.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from replay.credit import CREDIT_BYTES, Credit
from replay.log import (
    CREDIT_MS,
    MOST_FENCE,
    WEIGHTS_HEADER_BYTES,
    ChunkId,
    Entry,
    Fenced,
    Full,
    LogError,
    Memory,
    Refused,
    Status,
    Unavailable,
    WeightsHeader,
    refused_append,
)
from replay.server_kind import (
    OTHER_WORDS_BYTES,
    SMALLEST_BOUND_BYTES,
    Bounds,
    bounds,
    check_kind,
    refuses_length,
    who_answers,
)

TIMEOUT_S = 5.0
"""No call goes without progress for longer than this."""

_STALE_ID = re.compile("equal or smaller than the target stream top item|stream has exhausted the last possible ID")
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
UNKNOWN_ENTRY_BYTES, LEAST_READ_BYTES = 1 << 20, 4 << 20
"""What an entry is taken for before the first one was read; and what one round trip may bring in any case."""
SCAN_COUNT = 1000
_COPY_BELOW_BYTES = 1 << 16
"""Smaller chunks are copied into one send; for bigger ones two more sends are cheaper than the copy."""
T = TypeVar("T")
_SHOWN_OPTIONS = r"db|username|protocol|client_name|ssl_(?!password)\w+"
_SHOWN_URL = re.compile(
    r"(rediss?|unix|https?)://([\w.%+~-]*(:\*\*\*)?@)?(\[[0-9a-fA-F:.%]+\]|[\w.-]*)(:\d+)?(/[^?@#\s]*)?(\?[^@#\s]*)?"
)
"""What is left of a URL once its password is masked; anything else may have parts of it in the wrong place."""


def public_url(url: str) -> str:
    """``url`` without its password, for messages and files, also where the password has characters that split a URL."""
    masked = re.sub(rf"([?&](?!(?:{_SHOWN_OPTIONS})=)[^=&]*=)[^&]*", r"\1***", url)
    masked = re.sub(r"^(\w+://[^:/@]*):.*@", r"\1:***@", masked)
    before, _, after = url.partition("?")
    # with an @ on both sides of a ? nobody knows which of them ends the password
    if _SHOWN_URL.fullmatch(masked) and not ("@" in before and "@" in after):
        return masked
    scheme = re.match(r"(rediss?|unix)://", url)
    return f"{scheme[0] if scheme else ''}***"


class UrlError(Refused, ValueError):
    """A URL that names no server; the text shows what of it cannot be a password."""


class RedisLog:
    """One run's log on one server. Not thread-safe: one object per thread."""

    def __init__(
        self, url: str, run: str, max_chunks: int = 1 << 16, timeout_s: float = TIMEOUT_S, *, keep: bool = False
    ) -> None:
        """``max_chunks`` bounds each slot's stream as a backstop; the learner's trimming keeps it far below. ``keep``:
        the learner's, which the server is not to cut off where its clients hold too much memory: only it makes room."""
        self.url = public_url(url)
        # redis-py types every reply as a union of both protocols, hence Any
        self._client: Any = _connect(url, timeout_s, keep)
        self._client.set_response_callback("XREAD", lambda reply, **_: reply or [])
        self._max_chunks = max_chunks
        self._biggest_entry_bytes = self._turn = 0
        self._prefix = f"qherd:{run}:"
        self.credit_key = f"{self._prefix}credit"
        self.fence_key = f"{self._prefix}fence"
        self.weights_key = f"{self._prefix}weights"
        self.meta_key = f"{self._prefix}meta"
        self.about_key = f"{self._prefix}about"
        self._ask_header = _command("GETRANGE", self.weights_key, 0, WEIGHTS_HEADER_BYTES - 1)
        self._asks: dict[int, bytes] = {}

    def check(self) -> None:
        """Raises Refused where this server must not hold a run: see ``replay.server_kind``."""
        try:
            info = self._call(self._client.info)
        except LogError as error:
            if kind := who_answers(self._client.connection_pool):
                raise Refused(f"{self.url}: {kind}") from error
            raise
        check_kind(self.url, info)

    def bounds(self) -> Bounds:
        """Bytes that the server takes at the most, as far as it tells."""
        return self._call(lambda: bounds(self._client))

    def check_length(self, nbytes: int) -> None:
        """Raises Refused where the server refuses a value of this length. Asked up to three times, since a network that
        fails closes connections, too."""
        bound = ""
        for _ in range(3 if nbytes + OTHER_WORDS_BYTES > SMALLEST_BOUND_BYTES else 0):
            bound = refuses_length(self._client, nbytes)
            if not bound:
                return
        if bound:
            raise Refused(
                f"{self.url} refuses a value of {nbytes:,} bytes for its length: raise its {bound}, or send "
                "less (chunks: --actors.chunk_steps, --actors.lanes; weights: --learner.network.hidden)"
            )

    def chunks_key(self, slot: int) -> str:
        """The stream of a slot."""
        return f"{self._prefix}chunks:{slot}"

    def append(self, slot: int, chunk_id: ChunkId, data: bytes) -> Status:
        words = (self.chunks_key(slot), "MAXLEN", "~", self._max_chunks, chunk_id, "c")
        xadd = b"".join((b"*8\r\n$4\r\nXADD\r\n", *map(_bulk, words), b"$%d\r\n" % len(data)))
        pieces = [xadd, data, b"\r\n" + self._ask_status(slot)]
        if len(data) < _COPY_BELOW_BYTES:
            pieces = [b"".join(pieces)]
        added, *status = self._call(lambda: self._exchange(pieces, 3), len(data))
        if isinstance(added, redis.ResponseError) and _STALE_ID.search(str(added)):
            last = self.last_id(slot)
            if last > chunk_id:
                raise refused_append(slot, chunk_id, last)
            if last < chunk_id:  # it has lost the stream between the two questions
                raise Unavailable(f"{self.url} refused {chunk_id} of slot {slot}, and has come back at {last}")
        elif isinstance(added, Exception):
            raise self._translate(added) from added
        return self._status(status)

    def status(self, slot: int) -> Status:
        return self._status(self._call(lambda: self._exchange([self._ask_status(slot)], 2)))

    def _ask_status(self, slot: int) -> bytes:
        """The slot's own part of the credit, whatever the number of slots, and the weights header."""
        if (ask := self._asks.get(slot)) is None:  # packing it takes 5 µs, of some 200 that an append takes
            at = slot * CREDIT_BYTES
            ask = _command("GETRANGE", self.credit_key, at, at + CREDIT_BYTES - 1) + self._ask_header
            self._asks[slot] = ask
        return ask

    def _exchange(self, request: list[bytes], replies: int) -> list[Any]:
        """Send packed commands and read their replies, error replies among them as exceptions.

        What redis-py's pipeline does, in half of its time: this is all that an actor asks of a server, and once per
        chunk. A connection with replies still on their way is closed, so that none of them answers a later call.
        """
        pool = self._client.connection_pool
        connection = pool.get_connection()
        try:
            connection.send_packed_command(request)
            return [_reply(connection) for _ in range(replies)]
        except BaseException:
            connection.disconnect()
            raise
        finally:
            pool.release(connection)

    def _status(self, replies: list[Any]) -> Status:
        for reply in replies:
            if isinstance(reply, Exception):
                raise self._translate(reply) from reply
        credit, header = replies
        return Status(Credit.unpack(credit), WeightsHeader.unpack(header))

    def fetch_weights(self) -> bytes | None:
        weights: bytes | None = self._call(lambda: self._client.get(self.weights_key))
        return weights

    def read(self, cursors: Mapping[int, ChunkId], max_bytes: int) -> list[Entry]:
        """See ``ChunkLog``. XREAD counts entries per stream: the biggest entry so far turns bytes into a count. Of more
        streams than one entry each would be too much of, some are asked at a time, in turns."""
        slots = list(cursors)
        first = self._turn % max(1, len(slots))
        waiting = slots[first:] + slots[:first]
        entries: list[Entry] = []
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
        """At most ``count`` entries of each of these streams."""
        slots = {self.chunks_key(slot).encode(): slot for slot in cursors}
        streams: dict[Any, Any] = {key: str(cursors[slot]) for key, slot in slots.items()}
        reply = self._call(lambda: self._client.xread(streams, count=count))
        entries = [
            Entry(slots[key], parse_id(entry_id), fields[1] if fields else b"")
            for key, stream in reply
            for entry_id, fields in stream
        ]
        self._biggest_entry_bytes = max([self._biggest_entry_bytes, *(len(entry.data) for entry in entries)])
        return entries

    def last_id(self, slot: int) -> ChunkId:
        try:
            info = self._call(lambda: self._client.xinfo_stream(self.chunks_key(slot)))
        except Refused as error:
            if "no such key" in str(error):
                return ChunkId()
            raise
        return parse_id(info["last-generated-id"])

    def trim(self, fence: int, oldest: Mapping[int, ChunkId]) -> None:
        def write(pipe: Any) -> None:
            for slot, bound in oldest.items():
                pipe.xtrim(self.chunks_key(slot), minid=str(bound), approximate=False)

        self._make_room(fence, write)

    def renew(self, fence: int, slot: int) -> None:
        self._make_room(fence, lambda pipe: pipe.unlink(self.chunks_key(slot)))

    def _make_room(self, fence: int, write: Callable[[Any], Any]) -> None:
        """Do ``write``, which only removes, unless a newer fence took the lease.

        A server that is full refuses every command within MULTI. There the fence is asked for first: a learner that is
        frozen just between the two, while another takes over, removes a little that is not its own any more.
        """

        def plainly() -> None:
            newest = self._fence_of(self._client.get(self.fence_key))
            if newest > fence:
                raise Fenced(f"fence {newest} has taken over from {fence}")
            pipe = self._client.pipeline(transaction=False)
            write(pipe)
            pipe.execute()

        try:
            self._call(lambda: self._fenced(fence, write, note=False))
        except Full:
            self._call(plainly)

    def strays(self, slots: Collection[int]) -> dict[str, int]:
        def ask() -> dict[str, int]:
            known = {self.chunks_key(slot).encode() for slot in slots}
            pattern = re.sub(r"([][*?^\\-])", r"\\\1", f"{self._prefix}chunks:") + "*"
            found = set(self._client.scan_iter(match=pattern, count=SCAN_COUNT)) - known
            return {key.decode(errors="surrogateescape"): self._client.xlen(key) for key in found}

        return self._call(ask)

    def remove_strays(self, fence: int, strays: Collection[str]) -> None:
        keys = [key.encode(errors="surrogateescape") for key in strays]
        self._make_room(fence, lambda pipe: pipe.unlink(*keys))

    def memory(self) -> Memory | None:
        info = self._call(lambda: self._client.info("memory"))
        return Memory(info["used_memory"], info["maxmemory"]) if info["maxmemory"] else None

    def claim(self, nonce: str) -> bool:
        def ask() -> bool:
            self._client.set(self.meta_key, nonce, nx=True)
            held: bytes = self._client.get(self.meta_key)
            return held == nonce.encode()

        return self._call(ask)

    def take_lease(self, fence: int) -> None:
        self._call(lambda: self._fenced(fence, lambda pipe: None))

    def publish(self, fence: int, credit: bytes, weights: bytes | None = None) -> None:
        def write(pipe: Any) -> None:
            pipe.set(self.credit_key, credit, px=CREDIT_MS)
            if weights is not None:
                pipe.set(self.weights_key, weights)

        # An EXEC that was given up for lost may still come through, after newer weights of this same learner.
        keys = () if weights is None else (self.weights_key,)
        self._call(lambda: self._fenced(fence, write, *keys), len(weights or b""))

    def release_lease(self, fence: int) -> None:
        try:
            self._call(lambda: self._fenced(fence, lambda pipe: pipe.delete(self.credit_key)))
        except Fenced:
            return

    def describe(self, fence: int, description: bytes) -> None:
        self._call(lambda: self._fenced(fence, lambda pipe: pipe.set(self.about_key, description)))

    def description(self) -> bytes | None:
        description: bytes | None = self._call(lambda: self._client.get(self.about_key))
        return description

    def _fenced(self, fence: int, write: Callable[[Any], Any], *unless_changed: str, note: bool = True) -> None:
        """Do ``write`` and, with ``note``, note ``fence`` as the newest, in one MULTI, if no newer fence was noted
        before, and nobody changes the keys ``unless_changed`` meanwhile.

        A fence that stands already is not written again: that would fail the learner's other connection, which watches.
        """
        pipe: Any
        with _Transaction(self._client.connection_pool, self._client.response_callbacks, True, None) as pipe:
            pipe.watch(self.fence_key, *unless_changed)
            newest = self._fence_of(pipe.get(self.fence_key))
            if newest > fence:
                raise Fenced(f"fence {newest} has taken over from {fence}")
            pipe.multi()
            if note and newest < fence:
                pipe.set(self.fence_key, fence)
            write(pipe)
            pipe.execute()

    def _fence_of(self, value: bytes | None) -> int:
        """Returns the fence that a server has. Raises Refused for what no learner has written there."""
        if value is None:
            return 0
        if not value.isdigit() or len(value) > len(str(MOST_FENCE)) or int(value) > MOST_FENCE:
            raise Refused(
                f"{self.url}: the key {self.fence_key} holds {value[:40]!r}, which is no learner's fence (0 to "
                f"{MOST_FENCE}): somebody else writes to this run's keys; remove that key"
            )
        return int(value)

    def close(self) -> None:
        self._client.close()

    def _call(self, ask: Callable[[], T], sends_bytes: int = 0) -> T:
        """What ``ask`` returns; ``sends_bytes``: the length of the value that it sends."""
        try:
            return ask()
        except (redis.RedisError, UnicodeError) as error:  # UnicodeError: a host name that is none
            # WatchError: what redis-py makes of a connection that ends between WATCH and EXEC
            if isinstance(error, (redis.ConnectionError, redis.WatchError)) or "bulk length" in str(error):
                self.check_length(sends_bytes)  # such a value would end every connection, for ever
            raise self._translate(error) from error

    def _translate(self, error: Exception) -> LogError:
        """redis-py's exception as one of the log's, with the server's public URL."""
        where = f"{self.url}: {error}"
        if isinstance(error, redis.WatchError):
            return Unavailable(f"{where} (another client wrote at the same time)")
        if isinstance(error, redis.exceptions.OutOfMemoryError):
            return Full(where)
        passing = isinstance(error, _PASSING_TYPES) or _PASSING_CODE.search(str(error))
        final = isinstance(error, _FINAL_TYPES) and not passing
        return Refused(where) if final else Unavailable(where)


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


def _command(*words: object) -> bytes:
    """A command as the protocol (RESP) has it: an array of bulk strings."""
    return b"".join((b"*%d\r\n" % len(words), *map(_bulk, words)))


def _bulk(word: object) -> bytes:
    text = str(word).encode()
    return b"$%d\r\n%b\r\n" % (len(text), text)


def _reply(connection: Any) -> Any:
    """The next reply; an error reply is returned, a broken connection raises."""
    try:
        return connection.read_response()
    except redis.ResponseError as error:
        return error


def _on_connect_kept(connection: Any) -> None:
    """As every connection, and exempt from ``maxmemory-clients``; a server without it, or a user without the right (of
    an older ``qherd secrets``), answers with an error, which is passed over."""
    connection.on_connect()
    connection.send_command("CLIENT", "NO-EVICT", "ON", check_health=False)
    _reply(connection)


def parse_id(entry_id: bytes | str) -> ChunkId:
    text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    incarnation, _, seq = text.partition("-")
    return ChunkId(int(incarnation), int(seq))


def _connect(url: str, timeout_s: float, keep: bool) -> Any:
    """A client whose every wait is bounded and which retries nothing by itself."""
    _check_delimiters(url)
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
        raise _no_url(url) from None
    return client


def _check_delimiters(url: str) -> None:
    """Raises UrlError where a password that was not percent-encoded has split the URL: what comes before would be asked
    for, and shown, as host and port."""
    place, query, options = url.partition("://")[2].partition("?")
    path = re.split(r"[/#]", place, maxsplit=1)[1:]
    if "#" in place or "@" in "".join(path) or (query and "@" in options and "password=" not in options):
        raise _no_url(url)


def _no_url(url: str) -> UrlError:
    return UrlError(
        f"{public_url(url)} is no Redis URL: it wants redis://, rediss:// or unix://, a numeric port, and special "
        "characters of the password percent-encoded"
    )
