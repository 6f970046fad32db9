"""One contract suite for every chunk log (replay/chunk_log), then what only a real server can do to RedisLog."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import redis
from lending import NONE, PLENTY, plenty
from proxy import Proxy
from waiting import frozen, until

from deploy.server.acl import acl_rules
from deploy.server.embedded import EmbeddedServer
from replay.chunk_log import Role, open_log, redis_client
from replay.chunk_log.memory_log import MemoryLog
from replay.chunk_log.protocol import (
    CREDIT_MS,
    FENCE_SHIFT,
    ChunkId,
    ChunkLog,
    Entry,
    Fenced,
    Full,
    LogError,
    Unavailable,
    UnusableServer,
    WeightsHeader,
)
from replay.chunk_log.redis_log import RedisLog
from replay.chunk_log.sharded_log import ShardedLog
from replay.chunk_log.urls import public_url
from replay.credit import CREDIT_BYTES

Connect = Callable[[], ChunkLog]
PAGE = 64 << 20
DEADLINE_S = 10.0
FIRST = ChunkId(1, 1)


def weights(fence: int, n: int, size: int = 100) -> bytes:
    """A published value: header, then ``size`` bytes."""
    return WeightsHeader((fence << FENCE_SHIFT) | n, n, 10 * n, 7).pack() + bytes([n]) * size


def read_all(log: ChunkLog, slot: int = 0) -> list[Entry]:
    """All of one slot, page by page."""
    found: list[Entry] = []
    while page := log.read({slot: found[-1].id if found else ChunkId()}, PAGE):
        found += page
    return found


class LogContract:
    """What every implementation promises. ``connect`` opens one more handle on the same log."""

    @pytest.fixture
    def log(self, connect: Connect) -> ChunkLog:
        """One handle."""
        return connect()

    def test_chunks_come_back_as_they_were_stored(self, log: ChunkLog) -> None:
        """Any bytes, in each slot's order, under their own ids."""
        data = [bytes(range(256)) * 4, b"\x00", b"\r\n$-1\r\n", os.urandom(1 << 20)]
        for seq, chunk in enumerate(data, start=1):
            log.append(3, ChunkId(1, seq), chunk)
        assert read_all(log, 3) == [Entry(3, ChunkId(1, seq), chunk) for seq, chunk in enumerate(data, start=1)]

    def test_repeated_id_is_stored_once(self, log: ChunkLog) -> None:
        """A retry after a time-out is no error and stores nothing."""
        for _ in range(3):
            log.append(0, FIRST, b"once")
        assert read_all(log) == [Entry(0, FIRST, b"once")]

    def test_repeat_of_the_last_id_is_stored_also_behind_a_trim(self, log: ChunkLog) -> None:
        """The learner may have read and trimmed the chunk before the actor's retry: no error, and not stored."""
        log.append(0, FIRST, b"once")
        log.trim(1, {0: ChunkId(1, 2)})
        log.append(0, FIRST, b"once")
        assert read_all(log) == []

    @pytest.mark.parametrize("zombie", [ChunkId(1, 9), ChunkId(1, 10), ChunkId(2, 1)])
    @pytest.mark.parametrize("trimmed", [False, True])
    def test_older_id_is_fenced(self, log: ChunkLog, zombie: ChunkId, trimmed: bool) -> None:
        """A zombie of an older incarnation, or an older chunk, is refused for ever, also by an emptied stream."""
        log.append(0, ChunkId(1, 9), b"old")
        log.append(0, ChunkId(2, 2), b"new")
        if trimmed:
            log.trim(1, {0: ChunkId(2, 3)})
        with pytest.raises(Fenced):
            log.append(0, zombie, b"zombie")
        assert [entry.data for entry in read_all(log)] == ([] if trimmed else [b"old", b"new"])

    def test_ids_are_ordered_as_numbers(self, log: ChunkLog) -> None:
        """10 comes behind 9, and incarnations before seqs; gaps are allowed; big numbers fit."""
        ids = [ChunkId(1, 9), ChunkId(1, 10), ChunkId(2, 1), ChunkId(10, 1), ChunkId(1 << 40, 1 << 50)]
        for chunk_id in ids:
            log.append(0, chunk_id, b"x")
        assert [entry.id for entry in read_all(log)] == ids

    def test_any_order_of_ids_stores_the_running_maxima(self, log: ChunkLog) -> None:
        """300 random ids: above the last is stored, equal is done already, below is fenced."""
        rng = np.random.default_rng(1)
        last, stored = ChunkId(), []
        for number in range(300):
            chunk_id = ChunkId(int(rng.integers(1, 2 + number // 10)), int(rng.integers(1, 6)))
            if chunk_id < last:
                with pytest.raises(Fenced):
                    log.append(0, chunk_id, b"%d" % number)
                continue
            log.append(0, chunk_id, b"%d" % number)
            if chunk_id > last:
                stored.append(Entry(0, chunk_id, b"%d" % number))
                last = chunk_id
        assert read_all(log) == stored
        assert log.last_id(0) == last

    @pytest.mark.parametrize("number", [(1 << 63) - 1, 1 << 63, (1 << 64) - 1])
    @pytest.mark.parametrize("field", ["incarnation", "seq", "both"])
    def test_a_stream_at_an_id_beyond_all_is_waited_for_and_begun_anew(
        self, log: ChunkLog, number: int, field: str
    ) -> None:
        """Whoever may append can leave its actor no id. That is no fence: the actor keeps its chunk until the learner
        has begun the stream anew, and other slots see nothing of it."""
        log.append(0, FIRST, b"honest")
        log.append(1, FIRST, b"other")
        numbers = {"incarnation": (number, 1), "seq": (1, number), "both": (number, number)}
        log.append(0, ChunkId(*numbers[field]), b"stranger")
        for _ in range(2):
            with pytest.raises(Unavailable, match="none of its actors can have sent"):
                log.append(0, ChunkId(1, 2), b"next")
        assert log.last_id(0) == ChunkId(*numbers[field])
        log.renew(1, 0)
        assert read_all(log) == []
        assert log.last_id(0) == ChunkId()
        log.append(0, ChunkId(1, 2), b"next")
        assert read_all(log) == [Entry(0, ChunkId(1, 2), b"next")]
        assert read_all(log, 1) == [Entry(1, FIRST, b"other")]

    def test_streams_of_no_slot_are_found_and_removed(self, log: ChunkLog) -> None:
        """What nobody follows nobody trims. The slots' own streams stay, also those that were trimmed to empty."""
        for slot in (0, 1, 7, 1 << 31):
            log.append(slot, FIRST, b"x")
            log.append(slot, ChunkId(1, 2), b"x")
        log.trim(1, {1: ChunkId(1, 3)})
        strays = log.strays([0, 1, 2])
        assert sorted(strays.values()) == [2, 2]
        log.remove_strays(1, strays)
        assert log.strays([0, 1, 2]) == {}
        assert log.read(dict.fromkeys((7, 1 << 31), ChunkId()), PAGE) == []
        assert len(read_all(log)) == 2
        assert log.last_id(1) == ChunkId(1, 2)

    def test_an_older_learner_neither_trims_nor_renews(self, connect: Connect) -> None:
        """One that thaws would drop what its successor is about to read."""
        older, newer = connect(), connect()
        older.take_lease(1)
        newer.take_lease(2)
        newer.append(0, FIRST, b"x")
        with pytest.raises(Fenced):
            older.trim(1, {0: ChunkId(1, 2)})
        with pytest.raises(Fenced):
            older.renew(1, 0)
        with pytest.raises(Fenced):
            older.remove_strays(1, older.strays([]))
        assert read_all(newer) == [Entry(0, FIRST, b"x")]
        newer.trim(2, {0: ChunkId(1, 2)})
        assert read_all(newer) == []

    def test_a_read_of_many_slots_brings_a_page_and_not_a_chunk_of_each(self, log: ChunkLog) -> None:
        """Big chunks of many slots: each read brings about its bytes, whatever was read before; each slot has its turn,
        also where others never end."""
        slots, nbytes = 40, 1 << 20
        for slot in range(slots):
            log.append(slot, FIRST, bytes(nbytes))
        cursors, most = dict.fromkeys(range(slots), ChunkId()), 0
        for _ in range(2 * slots):
            entries = log.read(cursors, 4 * nbytes)
            most = max(most, len(entries))
            for entry in entries:
                cursors[entry.slot] = entry.id
                log.append(0, ChunkId(1, cursors[0].seq + 1), bytes(nbytes))
        assert set(cursors) == {slot for slot, cursor in cursors.items() if cursor >= FIRST}
        assert most <= 16

    def test_slots_are_apart(self, log: ChunkLog) -> None:
        """An id of one slot says nothing about another's."""
        log.append(0, ChunkId(5, 5), b"a")
        log.append(1, FIRST, b"b")
        assert [entry.data for entry in read_all(log, 1)] == [b"b"]
        assert sorted(log.read({0: ChunkId(), 1: ChunkId()}, PAGE)) == [
            Entry(0, ChunkId(5, 5), b"a"),
            Entry(1, FIRST, b"b"),
        ]

    def test_last_id_outlives_the_chunks(self, log: ChunkLog) -> None:
        """The zero id for a slot that never wrote; the last one also when it is trimmed."""
        assert log.last_id(0) == ChunkId()
        log.append(0, ChunkId(3, 4), b"x")
        assert log.last_id(0) == ChunkId(3, 4)
        log.trim(1, {0: ChunkId(3, 5)})
        assert log.last_id(0) == ChunkId(3, 4)

    def test_read_starts_behind_the_cursor(self, log: ChunkLog) -> None:
        """Cursors may also lie between ids, or behind the end."""
        for chunk_id in (ChunkId(1, 1), ChunkId(1, 3), ChunkId(2, 1)):
            log.append(0, chunk_id, b"x")

        def ids(cursor: ChunkId) -> list[ChunkId]:
            return [entry.id for entry in log.read({0: cursor}, PAGE)][:1]

        assert ids(ChunkId(1, 1)) == [ChunkId(1, 3)]
        assert ids(ChunkId(1, 2)) == [ChunkId(1, 3)]
        assert ids(ChunkId(1, 3)) == [ChunkId(2, 1)]
        assert ids(ChunkId(2, 1)) == []
        assert ids(ChunkId(9, 9)) == []

    def test_reading_nothing_returns_nothing(self, log: ChunkLog) -> None:
        """No slots, or slots that never wrote."""
        assert log.read({}, PAGE) == []
        assert log.read({0: ChunkId(), 7: ChunkId()}, PAGE) == []

    @pytest.mark.parametrize("slots", [1, 3])
    def test_pages_are_bounded_and_miss_nothing(self, log: ChunkLog, slots: int) -> None:
        """A reply has little more than max_bytes (XREAD counts per stream), and reading on finds every chunk."""
        size, max_bytes = 100_000, 1_000_000
        for seq in range(1, 31):
            for slot in range(slots):
                log.append(slot, ChunkId(1, seq), bytes(size))
        cursors = dict.fromkeys(range(slots), ChunkId())
        found: list[Entry] = []
        while page := log.read(cursors, max_bytes):
            assert sum(len(entry.data) for entry in page) <= max_bytes + size
            cursors.update({entry.slot: entry.id for entry in page})
            found += page
        ids = [(entry.slot, entry.id) for entry in found]
        assert sorted(ids) == [(slot, ChunkId(1, seq)) for slot in range(slots) for seq in range(1, 31)]

    def test_chunk_bigger_than_a_page_is_still_read(self, log: ChunkLog) -> None:
        """Otherwise the reader would stand still for ever."""
        log.append(0, FIRST, bytes(5000))
        assert len(log.read({0: ChunkId()}, 1)) == 1

    def test_trim_drops_what_is_before_the_bound_and_no_more(self, log: ChunkLog) -> None:
        """Exact, per slot; an unknown slot is no error; writing goes on behind it."""
        for seq in range(1, 301):
            log.append(0, ChunkId(1, seq), b"x")
        log.append(1, FIRST, b"other")
        log.trim(1, {0: ChunkId(1, 299), 5: ChunkId(4, 4)})
        assert [entry.id.seq for entry in read_all(log)] == [299, 300]
        assert len(read_all(log, 1)) == 1
        log.trim(1, {0: ChunkId(1, 301)})
        log.append(0, ChunkId(1, 301), b"x")
        assert [entry.id.seq for entry in read_all(log)] == [301]

    def test_new_log_has_neither_credit_nor_weights(self, log: ChunkLog) -> None:
        """Actors do not act before version 1 and without credit."""
        assert log.status(0) == (None, None)
        assert log.append(0, FIRST, b"x") == (None, None)
        assert log.fetch_weights() is None

    def test_append_brings_credit_and_weights_header(self, connect: Connect) -> None:
        """What an actor has to know comes with each chunk, repeated ones included."""
        learner, actor = connect(), connect()
        learner.take_lease(3)
        learner.publish(3, plenty(), weights(3, 1))
        status = actor.append(0, FIRST, b"x")
        assert status == (PLENTY, WeightsHeader((3 << FENCE_SHIFT) | 1, 1, 10, 7))
        assert actor.append(0, FIRST, b"x") == status == actor.status(0)
        learner.publish(3, NONE)
        assert actor.status(0) == (None, status.weights)

    def test_weights_are_replaced_only_by_weights(self, log: ChunkLog) -> None:
        """Renewing the credit keeps them."""
        log.take_lease(1)
        for n in (1, 2):
            log.publish(1, plenty(), weights(1, n))
            log.publish(1, plenty())
            assert log.fetch_weights() == weights(1, n)

    def test_older_fence_can_neither_take_nor_publish(self, connect: Connect) -> None:
        """All or nothing: neither weights nor credit of the newer learner change."""
        new, old = connect(), connect()
        old.take_lease(1)
        old.publish(1, NONE, weights(1, 9))
        new.take_lease(2)
        with pytest.raises(Fenced):
            old.publish(1, plenty(), weights(1, 10))
        assert new.fetch_weights() == weights(1, 9)
        assert not new.status(0).credit
        new.publish(2, plenty(), weights(2, 1))
        with pytest.raises(Fenced):
            old.publish(1, NONE)
        with pytest.raises(Fenced):
            old.take_lease(1)
        assert new.status(0).credit
        assert new.fetch_weights() == weights(2, 1)

    def test_older_fence_stays_out_when_the_newer_one_has_gone(self, connect: Connect) -> None:
        """For ever, also if the newer one never published."""
        new, old = connect(), connect()
        new.take_lease(2)
        new.release_lease(2)
        with pytest.raises(Fenced):
            old.take_lease(1)
        with pytest.raises(Fenced):
            old.publish(1, plenty(), weights(1, 1))
        assert old.fetch_weights() is None

    def test_same_fence_takes_again(self, log: ChunkLog) -> None:
        """A learner that was cut off for long goes on, if nobody took over."""
        log.take_lease(2)
        log.release_lease(2)
        log.publish(2, plenty())
        assert log.status(0).credit

    def test_release_takes_back_its_own_credit_only(self, connect: Connect) -> None:
        """An old learner that stops must not stop the new one's actors."""
        new, old = connect(), connect()
        old.take_lease(1)
        new.take_lease(2)
        new.publish(2, plenty())
        old.release_lease(1)
        assert new.status(0).credit
        new.release_lease(2)
        assert not new.status(0).credit

    def test_description_is_replaced_as_one(self, connect: Connect) -> None:
        """None before the first; any bytes; it changes neither weights nor credit."""
        learner, reader = connect(), connect()
        assert reader.description() is None
        learner.publish(1, plenty(), weights(1, 1))
        for description in (b'{"a": 1}', b"\r\n\x00" * 10_000, b"{}"):
            learner.describe(1, description)
            assert reader.description() == description
        assert reader.fetch_weights() == weights(1, 1)
        assert reader.status(0).credit

    def test_older_fence_describes_nothing(self, connect: Connect) -> None:
        """A learner that was replaced must not say how the run is."""
        new, old = connect(), connect()
        old.describe(1, b"old")
        new.take_lease(2)
        with pytest.raises(Fenced):
            old.describe(1, b"zombie")
        assert new.description() == b"old"
        new.describe(2, b"new")
        with pytest.raises(Fenced):
            old.publish(1, plenty())
        assert old.description() == b"new"

    def test_name_is_claimed_once(self, connect: Connect) -> None:
        """Its own nonce claims again (resume); another's is refused."""
        ours, theirs = connect(), connect()
        assert ours.claim("nonce-a")
        assert ours.claim("nonce-a")
        assert not theirs.claim("nonce-b")
        assert ours.claim("nonce-a")

    def test_handles_see_the_same_log(self, connect: Connect) -> None:
        """Actors write, the learner reads."""
        actor, learner = connect(), connect()
        actor.append(0, FIRST, b"x")
        assert [entry.data for entry in read_all(learner)] == [b"x"]
        learner.trim(1, {0: ChunkId(1, 2)})
        assert read_all(actor) == []


class TestMemoryLog(LogContract):
    """The in-process twin."""

    @pytest.fixture
    def connect(self) -> Connect:
        """Every handle is the one object."""
        log = MemoryLog()
        return lambda: log


@pytest.fixture
def connect_redis(server_url: str, run_name: str) -> Iterator[Callable[[], RedisLog]]:
    """Opens handles of one run on the session's server."""
    with ExitStack() as stack:

        def connect() -> RedisLog:
            log = RedisLog(server_url, run_name)
            stack.callback(log.close)
            return log

        yield connect


class TestRedisLog(LogContract):
    """Valkey and Redis."""

    @pytest.fixture
    def connect(self, connect_redis: Callable[[], RedisLog]) -> Connect:
        """A connection each."""
        return connect_redis


class TestShardedLog(LogContract):
    """Three servers as one log."""

    @pytest.fixture
    def connect(self, server_urls: list[str], run_name: str) -> Iterator[Connect]:
        """A connection to each."""
        with ExitStack() as stack:

            def connect() -> ShardedLog:
                log = ShardedLog([RedisLog(url, run_name) for url in server_urls])
                stack.callback(log.close)
                return log

            yield connect


# What follows needs a server.


@pytest.fixture
def proxy(server_url: str) -> Iterator[Proxy]:
    """In front of the session's server."""
    with Proxy(server_url) as started:
        yield started


@pytest.fixture(scope="module")
def own_server(server_binary: Path) -> Iterator[EmbeddedServer]:
    """A server that this module may freeze, restart and configure; each test leaves it as it was."""
    with EmbeddedServer("tests", 64 << 20, binary=server_binary, roles={"admin": "~* &* +@all"}) as started:
        yield started


@pytest.fixture
def raw(server_url: str) -> Iterator[Any]:
    """A plain client on the session's server."""
    with redis.Redis.from_url(server_url) as client:
        yield client


def test_append_is_one_round_trip(proxy: Proxy, run_name: str) -> None:
    """XADD, credit and weights header travel together; so do the two GETRANGEs of status, and all XTRIMs, after two
    round trips for the fence."""
    log = RedisLog(proxy.url, run_name)
    log.status(0)
    calls: list[tuple[Callable[[], object], int]] = [
        (lambda: log.append(0, FIRST, bytes(1000)), 1),
        (lambda: log.status(0), 1),
        (lambda: log.read({0: ChunkId(), 1: ChunkId()}, PAGE), 1),
        (lambda: log.trim(1, {0: FIRST, 1: FIRST}), 3),
    ]
    for call, round_trips in calls:
        before = proxy.round_trips
        call()
        assert proxy.round_trips == before + round_trips
    log.close()


def test_append_sends_three_commands(connect_redis: Callable[[], RedisLog], raw: Any) -> None:
    """Nothing hidden: one XADD, two GETRANGE."""
    log = connect_redis()
    log.status(0)

    def counts() -> dict[str, int]:
        return {name: stats["calls"] for name, stats in raw.info("commandstats").items()}

    before = counts()
    log.append(0, FIRST, b"x")
    after = counts()
    changed = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
    assert changed == {"cmdstat_xadd": 1, "cmdstat_getrange": 2, "cmdstat_info": 1}


def test_chunk_whose_reply_was_lost_is_stored_once(proxy: Proxy, run_name: str) -> None:
    """The chunk is in doubt, though stored: the same id again is no error, and the next one is not mixed up.

    The client repeats nothing by itself: redis-py's own retries would block for long and re-apply pipelines.
    """
    log = RedisLog(proxy.url, run_name, timeout_s=0.2)
    log.append(0, FIRST, b"first")
    before = proxy.round_trips
    proxy.lose_replies = True
    with pytest.raises(Unavailable):
        log.append(0, ChunkId(1, 2), b"second")
    assert proxy.round_trips == before + 1
    proxy.lose_replies = False
    log.append(0, ChunkId(1, 2), b"second")
    log.append(0, ChunkId(1, 3), b"third")
    assert [entry.data for entry in read_all(log)] == [b"first", b"second", b"third"]
    log.close()


def test_the_learners_own_connections_do_not_fail_each_other(
    proxy: Proxy, connect_redis: Callable[[], RedisLog], run_name: str
) -> None:
    """The loop describes while the publisher's thread publishes, both between WATCH and EXEC of the fence."""
    loop, publisher = RedisLog(proxy.url, run_name), connect_redis()
    publisher.take_lease(1)
    proxy.before = (b"EXEC", lambda: publisher.publish(1, plenty(), weights(1, 1)))
    loop.describe(1, b"said")
    assert publisher.description() == b"said"
    assert publisher.fetch_weights() == weights(1, 1), "it did not come in between"
    proxy.before = (b"EXEC", lambda: publisher.describe(1, b"again"))
    loop.publish(1, plenty(), weights(1, 2))
    assert publisher.fetch_weights() == weights(1, 2)
    assert publisher.description() == b"again", "it did not come in between"
    loop.close()


XADD_REPLY, CREDIT_REPLY = len(b"$3\r\n1-2\r\n"), len(b"$24\r\n") + CREDIT_BYTES + 2


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "stalled"])
@pytest.mark.parametrize("passed", [0, 3, XADD_REPLY, XADD_REPLY + 2, XADD_REPLY + CREDIT_REPLY, XADD_REPLY + 20])
@pytest.mark.parametrize("size", [100, 1 << 20])
def test_connection_that_fails_among_the_replies(
    proxy: Proxy, connect_redis: Callable[[], RedisLog], run_name: str, cut: bool, passed: int, size: int
) -> None:
    """Wherever it fails, the chunk is in doubt, and what comes late answers no later call."""
    learner, log = connect_redis(), RedisLog(proxy.url, run_name, timeout_s=0.4)
    learner.publish(1, plenty(), weights(1, 1))
    log.append(0, FIRST, b"first")
    proxy.reply_bytes, proxy.cut = passed, cut
    with pytest.raises(Unavailable):
        log.append(0, ChunkId(1, 2), bytes(size))
    proxy.reply_bytes = None
    learner.publish(1, NONE, weights(1, 2))
    assert log.status(0) == log.append(0, ChunkId(1, 2), bytes(size)) == learner.status(0)
    log.append(0, ChunkId(1, 3), b"third")
    assert [(entry.id.seq, len(entry.data)) for entry in read_all(log)] == [(1, 5), (2, size), (3, 5)]
    log.close()


@pytest.mark.parametrize(("role", "timeout_s"), [("actor", 5.0), ("publisher", 5.0), ("reader", 1.0), ("driver", 2.0)])
def test_a_role_decides_how_its_log_is_connected(server_url: str, run_name: str, role: Role, timeout_s: float) -> None:
    """The time-out, and that the server does not drop the learner's connections where its clients' memory is short."""
    with closing(open_log(server_url, run_name, role, 100)) as log:
        assert isinstance(log, RedisLog)
        options = log.redis.connection_pool.connection_kwargs
        assert options["socket_timeout"] == options["socket_connect_timeout"] == timeout_s
        log.append(0, FIRST, b"data")
        flags = log.redis.client_info()["flags"]
        assert ("e" in flags) == (role in ("publisher", "reader"))


def test_append_interrupted_among_its_replies(
    proxy: Proxy, connect_redis: Callable[[], RedisLog], run_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C when the first reply was read, and the others come with the next call: they are not taken for its own."""
    learner, log = connect_redis(), RedisLog(proxy.url, run_name)
    learner.publish(1, plenty(), weights(1, 1))
    log.append(0, FIRST, b"first")
    read_reply = redis_client._reply
    replies = iter([read_reply])

    def interrupted(connection: Any) -> Any:
        if read := next(replies, None):
            return read(connection)
        raise KeyboardInterrupt

    proxy.reply_bytes = XADD_REPLY
    with monkeypatch.context() as patched:
        patched.setattr(redis_client, "_reply", interrupted)
        with pytest.raises(KeyboardInterrupt):
            log.append(0, ChunkId(1, 2), b"second")
    proxy.reply_bytes = None
    learner.publish(1, NONE, weights(1, 2))
    assert log.status(0) == learner.status(0)
    log.append(0, ChunkId(1, 2), b"second")
    assert [entry.data for entry in read_all(log)] == [b"first", b"second"]
    log.close()


@pytest.mark.parametrize("at", [b"MULTI", plenty(), weights(1, 2)[-100:]], ids=["multi", "credit", "weights"])
def test_publish_that_loses_a_race_writes_nothing(
    proxy: Proxy, connect_redis: Callable[[], RedisLog], run_name: str, at: bytes
) -> None:
    """A newer learner takes over between our check and any of our writes: none is done, and we then learn why."""
    old, new = RedisLog(proxy.url, run_name), connect_redis()
    old.take_lease(1)
    old.publish(1, NONE, weights(1, 1))
    proxy.before = (at, lambda: new.take_lease(2))
    with pytest.raises(Unavailable, match="another client"):
        old.publish(1, plenty(), weights(1, 2))
    assert new.fetch_weights() == weights(1, 1)
    assert not new.status(0).credit
    with pytest.raises(Fenced):
        old.publish(1, plenty(), weights(1, 2))
    old.close()


def test_credit_lapses(connect_redis: Callable[[], RedisLog], raw: Any) -> None:
    """The credit of a dead learner has a short expiry of the server's, renewed by every publish."""
    log = connect_redis()
    log.take_lease(1)
    log.publish(1, plenty())
    assert 0 < raw.pttl(log.credit_key) <= CREDIT_MS
    raw.pexpire(log.credit_key, 100)
    log.publish(1, plenty())
    assert raw.pttl(log.credit_key) > 100
    raw.pexpire(log.credit_key, 20)
    until(lambda: not log.status(0).credit, "the credit lapses", DEADLINE_S)


def test_only_the_credit_expires(connect_redis: Callable[[], RedisLog], raw: Any, run_name: str) -> None:
    """A stream or fence that expired would let zombies back in."""
    log = connect_redis()
    log.claim("nonce")
    log.append(0, FIRST, b"x")
    log.take_lease(1)
    log.publish(1, plenty(), weights(1, 1))
    log.describe(1, b"said")
    expiring = {key for key in raw.scan_iter(match=f"qherd:{run_name}:*") if raw.ttl(key) != -1}
    assert expiring == {log.credit_key.encode()}
    assert raw.exists(log.chunks_key(0), log.weights_key, log.meta_key) == 3


@pytest.mark.parametrize("value", [b"garbage", b"-1", b"9" * 30, b"1e3", b"", b"18446744073709551615"])
def test_a_fence_that_no_learner_wrote_is_refused_with_its_key(
    connect_redis: Callable[[], RedisLog], raw: Any, value: bytes
) -> None:
    """A number above all would else fence every learner for ever, and no number at all be a traceback."""
    log = connect_redis()
    raw.set(log.fence_key, value)
    calls: list[Callable[[], None]] = [
        lambda: log.take_lease(1), lambda: log.trim(1, {0: FIRST}), lambda: log.publish(1, plenty()),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(UnusableServer, match=f"{log.fence_key} holds .* remove that key"):
            call()


@pytest.mark.parametrize("field", ["version", "updates", "env_steps"])
@pytest.mark.parametrize("number", [1 << 63, (1 << 64) - 1])
def test_weights_whose_numbers_cannot_be_are_none(
    connect_redis: Callable[[], RedisLog], raw: Any, field: str, number: int
) -> None:
    """Actors take no weights older than they have: a version above all would be their last one. The learner finds that
    its own are not there, and publishes them again."""
    log = connect_redis()
    log.publish(1, plenty(), weights(1, 1))
    header = log.status(0).weights
    assert header is not None
    raw.set(log.weights_key, header._replace(**{field: number}).pack() + b"x" * 100)
    assert log.status(0).weights is None


def test_runs_are_apart(server_url: str, run_name: str, connect_redis: Callable[[], RedisLog]) -> None:
    """Two runs on one server share nothing."""
    ours, theirs = connect_redis(), RedisLog(server_url, f"{run_name}:other")  # the prefix's keys are removed with ours
    ours.append(0, ChunkId(5, 5), b"x")
    theirs.append(0, FIRST, b"y")
    assert [entry.data for entry in read_all(theirs)] == [b"y"]
    assert theirs.claim("b")
    assert ours.claim("a")
    theirs.close()


def test_entries_of_a_stranger_are_read_as_they_are(connect_redis: Callable[[], RedisLog], raw: Any) -> None:
    """What somebody else put into the stream is the codec's to refuse; the log neither crashes nor stops at it."""
    log = connect_redis()
    raw.xadd(log.chunks_key(0), {"a": "1", "b": "2"}, id="1-1")
    raw.xadd(log.chunks_key(0), {"": ""}, id="1-2")
    log.append(0, ChunkId(1, 3), b"good")
    entries = read_all(log)
    assert [entry.id.seq for entry in entries] == [1, 2, 3]
    assert entries[-1].data == b"good"


def test_frozen_server_makes_every_call_unavailable_in_time(own_server: EmbeddedServer, run_name: str) -> None:
    """No call blocks much beyond its timeout, warm or with a new connection; and the chunk in doubt is stored once."""
    log = RedisLog(own_server.url("admin"), run_name, timeout_s=0.2)
    log.append(0, FIRST, b"first")
    log.take_lease(1)
    second = ChunkId(1, 2)
    calls: list[Callable[[], object]] = [
        lambda: log.append(0, second, b"second"),
        lambda: log.append(0, second, b"second"),
        lambda: log.status(0),
        log.fetch_weights,
        lambda: log.read({0: ChunkId()}, PAGE),
        lambda: log.last_id(0),
        lambda: log.trim(1, {0: FIRST}),
        lambda: log.claim("nonce"),
        lambda: log.take_lease(1),
        lambda: log.publish(1, plenty(), weights(1, 1)),
        lambda: log.release_lease(1),
        lambda: log.describe(1, b"said"),
        log.description,
    ]
    with frozen(own_server):
        for number, call in enumerate(calls):
            started = time.monotonic()
            with pytest.raises(Unavailable):
                call()
            assert time.monotonic() - started < 1.0, f"call {number}"
    until(lambda: can(lambda: log.status(0)), "the server answers again", DEADLINE_S)
    log.append(0, second, b"second")
    log.append(0, ChunkId(1, 3), b"third")
    assert [entry.data for entry in read_all(log)] == [b"first", b"second", b"third"]
    log.close()


def test_server_frozen_within_a_publish(own_server: EmbeddedServer, run_name: str) -> None:
    """The warm publishing connection too is bounded, and publishing goes on afterwards."""
    log = RedisLog(own_server.url("admin"), run_name, timeout_s=0.2)
    log.publish(1, plenty(), weights(1, 1))
    with frozen(own_server):
        started = time.monotonic()
        with pytest.raises(Unavailable):
            log.publish(1, plenty(), weights(1, 2))
        assert time.monotonic() - started < 1.0
    until(lambda: can(lambda: log.publish(1, plenty(), weights(1, 3))), "the publication goes through", DEADLINE_S)
    assert log.fetch_weights() == weights(1, 3)
    log.close()


@pytest.mark.parametrize("at", [b"WATCH", b"GET", b"MULTI"])
def test_connection_that_stalls_within_a_publish_is_waited_for_once(
    proxy: Proxy, connect_redis: Callable[[], RedisLog], run_name: str, at: bytes
) -> None:
    """redis-py would say UNWATCH on a new connection, and on another when that one does not answer either: four
    time-outs, where TIMEOUT_S bounds what a call waits without progress."""
    log = RedisLog(proxy.url, run_name, timeout_s=0.5)
    log.publish(1, plenty(), weights(1, 1))
    proxy.before = (at, lambda: setattr(proxy, "stalled", True))
    started = time.monotonic()
    with pytest.raises(Unavailable):
        log.publish(1, plenty(), weights(1, 2))
    assert time.monotonic() - started < 0.9
    proxy.stalled = False
    until(lambda: can(lambda: log.publish(1, plenty(), weights(1, 3))), "the publication goes through", DEADLINE_S)
    assert connect_redis().fetch_weights() == weights(1, 3)
    log.close()


def test_weights_that_come_late_do_not_replace_newer_ones(
    proxy: Proxy, connect_redis: Callable[[], RedisLog], raw: Any, run_name: str
) -> None:
    """The publish timed out, the learner has published again on a new connection, and then the old EXEC arrives."""
    late, learner = RedisLog(proxy.url, run_name, timeout_s=0.2), connect_redis()
    late.publish(1, plenty(), weights(1, 1))
    proxy.before = (b"EXEC", lambda: setattr(proxy, "stalled", True))
    with pytest.raises(Unavailable):
        late.publish(1, plenty(), weights(1, 2))
    learner.publish(1, plenty(), weights(1, 3))
    done = raw.info("commandstats")["cmdstat_exec"]["calls"]
    proxy.stalled = False
    until(lambda: raw.info("commandstats")["cmdstat_exec"]["calls"] > done, "the late EXEC", DEADLINE_S)
    assert learner.fetch_weights() == weights(1, 3)
    late.close()


@pytest.mark.parametrize("died", [True, False], ids=["restarted empty", "frozen"])
def test_refusal_whose_reason_the_server_has_lost_is_no_fence(
    proxy: Proxy, raw: Any, run_name: str, died: bool
) -> None:
    """The repeated id was stored already, and before XINFO could say so the server lost it: in doubt, not fenced."""
    log = RedisLog(proxy.url, run_name, timeout_s=0.2)
    log.append(0, FIRST, b"once")

    def lose() -> None:
        if died:
            raw.delete(log.chunks_key(0))
        else:
            proxy.stalled = True

    proxy.before = (b"XINFO", lose)
    with pytest.raises(Unavailable):
        log.append(0, FIRST, b"once")
    proxy.stalled = False
    until(lambda: can(lambda: log.append(0, FIRST, b"once")), "the chunk is stored", DEADLINE_S)
    assert read_all(log) == [Entry(0, FIRST, b"once")]
    log.close()


def can(call: Callable[[], object]) -> bool:
    """Whether ``call`` gets an answer."""
    try:
        call()
    except Unavailable:
        return False
    return True


def test_server_restarted_empty_is_used_again(server_binary: Path, run_name: str) -> None:
    """Gone means Unavailable at once; back and empty, the same handles and cursors go on (the log refills)."""
    with EmbeddedServer("tests", 64 << 20, binary=server_binary, roles={"admin": "~* &* +@all"}) as server:
        log = RedisLog(server.url("admin"), run_name, timeout_s=1.0)
        log.append(0, FIRST, b"first")
        log.publish(3, plenty(), weights(3, 1))
        os.kill(server.pid, signal.SIGKILL)
        until(lambda: not server.alive(), "the server's end", DEADLINE_S)
        with pytest.raises(Unavailable):
            log.append(0, ChunkId(1, 2), b"second")
        server.start()
        log.append(0, ChunkId(1, 2), b"second")
        log.publish(3, plenty(), weights(3, 2))
        assert log.read({0: FIRST}, PAGE) == [Entry(0, ChunkId(1, 2), b"second")]
        assert log.status(0).credit
        log.close()


def test_full_server_stores_nothing_until_trimmed(server_binary: Path, run_name: str) -> None:
    """maxmemory: Full for chunks and weights alike, all or nothing; once the learner trims, the same id is stored."""
    with EmbeddedServer("tests", 16 << 20, binary=server_binary, roles={"admin": "~* &* +@all"}) as server:
        log = RedisLog(server.url("admin"), run_name)
        log.publish(1, NONE, weights(1, 1))
        stored = 0
        for size in (64 << 10, 1 << 10):
            with pytest.raises(Full):  # noqa: PT012
                while stored < 1000:
                    log.append(0, ChunkId(1, stored + 1), bytes(size))
                    stored += 1
        assert log.last_id(0) == ChunkId(1, stored)
        with pytest.raises(Full):
            log.publish(1, plenty(), weights(1, 2, 256 << 10))
        assert log.fetch_weights() == weights(1, 1)
        assert not log.status(0).credit
        log.trim(1, {0: ChunkId(1, stored - 10)})
        log.append(0, ChunkId(1, stored + 1), bytes(64 << 10))
        log.publish(1, plenty(), weights(1, 2))
        assert [entry.id.seq for entry in read_all(log)] == list(range(stored - 10, stored + 2))
        log.close()


@pytest.mark.parametrize(
    ("spoil", "mend"),
    [
        (["REPLICAOF 127.0.0.1 1"], ["REPLICAOF NO ONE"]),
        (
            ["CONFIG SET replica-serve-stale-data no", "REPLICAOF 127.0.0.1 1"],
            ["REPLICAOF NO ONE", "CONFIG SET replica-serve-stale-data yes"],
        ),
        (["CONFIG SET min-replicas-to-write 1"], ["CONFIG SET min-replicas-to-write 0"]),
    ],
    ids=["read-only replica", "replica without its master", "too few replicas"],
)
def test_server_that_does_not_write_for_now_is_unavailable(
    own_server: EmbeddedServer, run_name: str, spoil: list[str], mend: list[str]
) -> None:
    """A state that passes is no reason to stop: actors and learner wait, and the same id is stored afterwards."""
    log = RedisLog(own_server.url("admin"), run_name)
    log.append(0, FIRST, b"first")
    with redis.Redis.from_url(own_server.url("admin")) as client:
        for command in spoil:
            client.execute_command(*command.split())
        try:
            for call in (
                lambda: log.append(0, ChunkId(1, 2), b"second"),
                lambda: log.publish(1, plenty(), weights(1, 1)),
                lambda: log.trim(1, {0: ChunkId(1, 2)}),
            ):
                with pytest.raises(Unavailable):
                    call()
        finally:
            for command in mend:
                client.execute_command(*command.split())
    log.append(0, ChunkId(1, 2), b"second")
    assert [entry.data for entry in read_all(log)] == [b"first", b"second"]
    log.close()


def test_roles_can_do_their_part_and_no_more(server_binary: Path, run_name: str) -> None:
    """With the embedded server's ACLs an actor cannot publish, read, trim, or touch another run."""
    with EmbeddedServer(run_name, 64 << 20, binary=server_binary, roles=acl_rules(run_name)) as server:
        learner, actor = (RedisLog(server.url(role), run_name) for role in ("learner", "actor"))
        assert learner.claim("nonce")
        learner.take_lease(1)
        learner.publish(1, plenty(), weights(1, 1))
        assert actor.append(0, FIRST, b"x").credit
        actor.append(0, FIRST, b"x")
        assert actor.last_id(0) == FIRST
        assert actor.fetch_weights() == weights(1, 1)
        assert [entry.data for entry in read_all(learner)] == [b"x"]
        other = RedisLog(server.url("actor"), "another-run")
        for call in (
            lambda: actor.publish(2, plenty(), weights(2, 1)),
            lambda: actor.take_lease(2),
            lambda: actor.release_lease(2),
            lambda: actor.trim(1, {0: ChunkId(9, 9)}),
            lambda: actor.renew(1, 0),
            lambda: actor.strays([]),
            lambda: actor.read({0: ChunkId()}, PAGE),
            lambda: actor.claim("mine"),
            lambda: actor.describe(1, b"bad"),
            actor.description,
            lambda: other.append(0, FIRST, b"x"),
        ):
            with pytest.raises(UnusableServer):
                call()
        learner.trim(1, {0: ChunkId(1, 2)})
        learner.release_lease(1)
        for log in (learner, actor, other):
            log.close()


# Secrets.

SECRET = "s3cret"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://:s3cret@host:6379/0", "redis://:***@host:6379/0"),
        ("rediss://user:s3cret@host:6379", "rediss://user:***@host:6379"),
        ("redis://user@host:6379", "redis://user@host:6379"),
        ("unix://user:s3cret@/run/x.sock?db=1", "unix://user:***@/run/x.sock?db=1"),
        ("redis://host:6379/0?password=s3cret", "redis://host:6379/0?password=***"),
        ("redis://host:6379/0?db=1&password=s3cret&username=u", "redis://host:6379/0?db=1&password=***&username=u"),
        ("unix:///run/x.sock?password=s3cret", "unix:///run/x.sock?password=***"),
        ("unix:///run/x.sock?password=p@s3cret", "unix:///run/x.sock?password=***"),
    ],
)
def test_public_url(url: str, shown: str) -> None:
    """Where the server is, without how to get in."""
    assert public_url(url) == shown


SECRET_URLS = [
    f"redis://:{SECRET}@127.0.0.1:1/0",
    f"redis://user:{SECRET}@no.such.host.invalid:1/0",
    f"redis://user:{SECRET}@{'a' * 70}.invalid:1/0",
    f"redis://127.0.0.1:1/0?password={SECRET}",
    f"redis://127.0.0.1:1/0?password=p@{SECRET}",
    f"redis://:a/{SECRET}@127.0.0.1:1/0",
    f"redis://:a#{SECRET}@127.0.0.1:1/0",
    f"redis://:a?{SECRET}@127.0.0.1:1/0",
    f"redis://:a@{SECRET}@127.0.0.1:1/0",
    f"redis://:{SECRET}@127.0.0.1:port/0",
    f"redis://:{SECRET}@[::1/0",
    f"http://:{SECRET}@127.0.0.1:1/0",
    f"unix://:{SECRET}@/no/such.sock",
    f"unix:///no/such.sock?password={SECRET}",
    *(f"redis://user:12{split}{SECRET}@127.0.0.1:1/0" for split in "/?#@% &+:"),
    *(f"redis://us@er:12{split}{SECRET}@127.0.0.1:1/0" for split in "/?#@% "),
    f"redis:/user:{SECRET}@127.0.0.1:1/0",
    f"redis+tls://user:{SECRET}@127.0.0.1:1",
    f"user:{SECRET}@127.0.0.1:1",
    f" redis://user:{SECRET}@127.0.0.1:1",
    f"redis://user:{SECRET}",
    f"redis://user:a\n{SECRET}@127.0.0.1:1",
    f"redis://127.0.0.1:1/0?passwd={SECRET}",
    f"rediss://127.0.0.1:1/0?ssl_password={SECRET}",
]


@pytest.mark.parametrize("url", SECRET_URLS)
def test_no_error_shows_the_password(url: str) -> None:
    """Neither the message nor anything chained to it, also where the URL is malformed."""
    caught: Exception | None = None
    try:
        log = RedisLog(url, "run", timeout_s=0.5)
    except ValueError as error:
        caught = error
    else:
        with pytest.raises(LogError) as raised:
            log.append(0, FIRST, b"x")
        caught = raised.value
    shown = "".join(traceback.format_exception(caught))
    assert SECRET not in shown
    assert "user:12" not in shown, "a part of it, taken for a port"
    assert SECRET not in public_url(url)


@pytest.mark.parametrize("credentials", ["admin:s3cret@", ":s3cret@", ""])
def test_wrong_or_missing_password_is_refused(server: EmbeddedServer, credentials: str) -> None:
    """Not Unavailable, which would be retried for ever; and the message says where, without the password."""
    path = urlsplit(server.url("admin")).path
    log = RedisLog(f"unix://{credentials}{path}", "run")
    with pytest.raises(UnusableServer) as caught:
        log.append(0, FIRST, b"x")
    text = "".join(traceback.format_exception(caught.value))
    assert path in text
    assert SECRET not in text
    log.close()


@pytest.mark.parametrize(
    ("greeting", "error"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", UnusableServer),
        (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" * 3, UnusableServer),
        (b"", Unavailable),
        (b"-LOADING the server is loading its append-only file\r\n", Unavailable),
        (b"-MISCONF errors writing to the append-only file: no space left on device\r\n", Unavailable),
        (b"-READONLY You can't write against a read only replica.\r\n", Unavailable),
        (b"-NOAUTH Authentication required.\r\n", UnusableServer),
    ],
    ids=["web server", "Ray", "hangs up", "loading", "misconf", "read-only", "no password"],
)
def test_what_a_server_answers_to_everything_is_a_log_error(greeting: bytes, error: type[LogError]) -> None:
    """A web server, Ray's GCS (HTTP/2), one that hangs up at once or is in a state that passes: a clear error of the
    log's own, which is Unavailable where waiting may help."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    client.recv(1 << 16)
                    client.sendall(greeting)

        threading.Thread(target=answer, daemon=True).start()
        log = RedisLog(f"redis://127.0.0.1:{listener.getsockname()[1]}/0", "run", timeout_s=1.0)
        with pytest.raises(LogError) as caught:
            log.status(0)
        assert type(caught.value) is error
        listener.shutdown(socket.SHUT_RDWR)
        log.close()
