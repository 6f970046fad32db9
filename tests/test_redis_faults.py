"""What a server or a network can do to a run: no call hangs, actors pause and drop nothing, and training goes on.

Each test lets a small real herd work, does something to its server, holds it, undoes it, and then asks for the books:
every row that an actor has sent was read once, or is counted as lost, and only a server that forgets may lose any.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gymnasium as gym
import numpy as np
import pytest
import redis
from conftest import server_roles
from herd import ACTORS, SLOTS, Herd, Learner, Observer
from lending import PLENTY, plenty
from proxy import Proxy
from waiting import frozen, until

from actors.config import EnvConfig
from deploy.config.models import RunConfig
from deploy.run_directory.directory import RunDirectory
from deploy.server.acl import acl_rules
from deploy.server.binary import find_server
from deploy.server.embedded import EmbeddedServer
from learner.checkpoint import pack
from replay.chunk_log.protocol import FENCE_SHIFT, ChunkId, Fenced, Status, UnusableServer
from replay.chunk_log.redis_client import TIMEOUT_S
from replay.chunk_log.redis_log import RedisLog
from replay.config import ReplayConfig

HOLD_S = 1.0
CHUNK_ROWS = ACTORS.lanes * ACTORS.chunk_steps


@contextmanager
def own_server(
    binary: Path, megabytes: int = 64, data_dir: Path | None = None, **roles: str
) -> Iterator[EmbeddedServer]:
    """A server to do anything to."""
    given = {**server_roles(), **roles}
    with EmbeddedServer("tests", megabytes << 20, data_dir, binary=binary, roles=given) as server:
        yield server


def kill(server: EmbeddedServer) -> None:
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: not server.alive(), "the server's end")


def admin(server: EmbeddedServer) -> redis.Redis:
    return redis.Redis.from_url(server.url("admin"))


# -- the connection


def test_a_network_that_fails_in_any_way_loses_nothing(run_name: str) -> None:
    """All connections cut, often; cut within a reply, at any byte; nothing goes through; requests arrive and replies
    do not; nobody is let in. Between them the herd works, in the end every row was read once."""
    with (
        own_server(find_server()) as server,
        Proxy(server.url("admin")) as proxy,
        Observer(server.url("admin"), run_name) as observer,
        Herd(proxy.url, run_name) as herd,
    ):
        herd.works()
        for _ in range(5):
            proxy.hang_up()
            herd.works(chunks=1)
        for size in (0, 1, 17, 40, 400):
            cuts = proxy.cuts
            proxy.cut_reply_after(size)
            herd.learner.train_until(lambda cuts=cuts: proxy.cuts > cuts, f"a cut after {size} bytes")  # type: ignore[misc]
            herd.works(chunks=1)
        for fault in ("stalled", "lose_replies", "refusing"):
            setattr(proxy, fault, True)
            if fault == "refusing":
                proxy.hang_up()
            herd.pauses(HOLD_S)
            herd.assert_calls_are_bounded()
            setattr(proxy, fault, False)
            if fault == "lose_replies":
                proxy.hang_up()
            herd.works()
        herd.end()
        herd.assert_calls_are_bounded()
        herd.assert_books_balance()
        observer.assert_versions_never_go_back()
        for actor in herd.actors:
            assert actor.log.errors["Unavailable"] > 3
            assert set(actor.log.errors) == {"Unavailable"}


# -- the server stands still


def test_a_server_frozen_for_3_s(run_name: str) -> None:
    """With short time-outs."""
    freeze(find_server(), run_name, 3.0, timeout_s=0.5)


@pytest.mark.long
def test_a_server_frozen_for_30_s(run_name: str) -> None:
    """With the real time-outs: nobody waits longer than these in one call."""
    freeze(find_server(), run_name, 30.0, TIMEOUT_S)


def freeze(binary: Path, run: str, hold_s: float, timeout_s: float) -> None:
    """Longer than the time-outs: everybody notices. What timed out may arrive when the server thaws; it counts once."""
    with (
        own_server(binary) as server,
        Observer(server.url("admin"), run) as observer,
        Herd(server.url("admin"), run, timeout_s) as herd,
    ):
        herd.works()
        with frozen(server):
            until_s = time.monotonic() + hold_s
            herd.pauses(hold_s / 3)
            herd.learner.train_for(until_s - time.monotonic())
            herd.assert_calls_are_bounded()
            assert herd.learner.loop.report().metrics.replay.servers_down == 1
        herd.works()
        herd.end()
        herd.assert_calls_are_bounded()
        herd.assert_books_balance()
        observer.assert_versions_never_go_back()


# -- the server forgets


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """Where incarnations and fences are counted."""
    return RunDirectory.create(RunConfig(run="a-run", runs_dir=tmp_path / "runs"))


def last_id(server: EmbeddedServer, run: str, slot: int) -> ChunkId:
    log = RedisLog(server.url("admin"), run)
    try:
        return log.last_id(slot)
    finally:
        log.close()


def stored(server: EmbeddedServer, run: str, chunk_id: ChunkId) -> bool:
    """Whether slot 0's stream has this chunk."""
    with admin(server) as client:
        return bool(client.xrange(f"qherd:{run}:chunks:0", str(chunk_id), str(chunk_id)))


def append_only_file(data_dir: Path) -> Path:
    return max(data_dir.glob("appendonlydir/*.incr.aof"), key=lambda path: path.stat().st_mtime_ns)


def tear(file: Path, size: int) -> None:
    """Cut the file to about ``size``, within a command, as the crash of a machine leaves it."""
    data = file.read_bytes()
    while data[size - 2 : size] == b"\r\n" or data[size : size + 1] == b"*":
        size -= 1
    os.truncate(file, size)


@pytest.mark.parametrize("torn", [True, False], ids=["torn append-only file", "empty"])
def test_a_server_that_comes_back_with_less_goes_on(
    server_binary: Path, run_name: str, tmp_path: Path, directory: RunDirectory, torn: bool
) -> None:
    """Actors that live go on with their next ids. A slot that is restarted then, and a learner, are seen: their numbers
    come from the run's directory and are above all that anybody had, where the server's own would have gone back."""
    data_dir = tmp_path / "aof" if torn else None
    with own_server(server_binary, data_dir=data_dir) as server, Herd(server.url("admin"), run_name) as herd:
        for slot in range(SLOTS):
            assert directory.fences.next_incarnation(slot) == 1
        assert directory.fences.next_fence() == 1
        herd.works()
        herd.actors[0].end()
        herd.restart(0, directory.fences.next_incarnation(0, last_id(server, run_name, 0).incarnation))
        herd.learner.train_until(lambda: herd.learner.read(0) >= (2, 2), "the restarted slot's chunks")
        known, written = last_id(server, run_name, 0), append_only_file(data_dir).stat().st_size if data_dir else 0
        kill(server)
        if data_dir is not None:
            tear(append_only_file(data_dir), written // 2)
        herd.pauses(0.5)
        server.start()
        acknowledged = ChunkId(known.incarnation, known.seq - 1)
        assert not stored(server, run_name, acknowledged), "the server has forgotten nothing: this test shows nothing"
        assert stored(server, run_name, ChunkId(1, 1)) is torn
        herd.works()
        herd.assert_calls_are_bounded()

        herd.actors[0].end()
        incarnation = directory.fences.next_incarnation(0, last_id(server, run_name, 0).incarnation)
        assert incarnation == 3, "from the directory, not from what the server remembers"
        herd.restart(0, incarnation)
        herd.learner.train_until(lambda: herd.learner.read(0) >= (3, 3), "the third incarnation's chunks")

        old = herd.learner
        old.loop.ledger.check()
        assert old.loop.ledger.totals.refused == {}
        assert set(old.loop.ledger.totals.rows_lost) <= {"gap"}
        fence = directory.fences.next_fence()
        herd.learner = Learner(server.url("admin"), run_name, fence, herd.timeout_s)
        old.publisher.stop()
        herd.works()
        log = RedisLog(server.url("admin"), run_name)
        newest = log.status(0).weights
        log.close()
        assert newest is not None
        assert newest.version >> FENCE_SHIFT == fence == 2
        herd.end()
        herd.assert_books_balance(lost=True)


def test_numbers_from_the_server_would_fence_a_restarted_slot_off(server_binary: Path, run_name: str) -> None:
    """The danger that the run's directory closes, to the letter: the server is emptied, the slot is restarted under one
    above the server's last id, and the learner's cursor only moves forward. No row of it is ever read; its credit,
    which is its predecessor's, ends it before it steps."""
    with own_server(server_binary) as server, Herd(server.url("admin"), run_name) as herd:
        herd.actors[0].end()
        herd.restart(0, 2)
        herd.learner.train_until(lambda: herd.learner.read(0) >= (2, 2), "the second incarnation's chunks")
        herd.actors[0].end()
        flushed = last_id(server, run_name, 0)
        herd.learner.train_until(lambda: herd.learner.read(0) == flushed, "its last chunk")
        kill(server)
        server.start()
        herd.restart(0, last_id(server, run_name, 0).incarnation + 1)
        herd.learner.train_until(lambda: herd.actors[0].ended, "its end")
        assert isinstance(herd.actors[0].failure, Fenced)
        assert str(herd.actors[0].failure) == "slot 0: incarnation 2 has taken over from 1"
        assert herd.actors[0].steps == 0
        assert herd.learner.read(0) == flushed
        assert last_id(server, run_name, 0).incarnation == 0


# -- the server refuses


WIDE = EnvConfig(
    id="scripted_env:Spaces-v0",
    kwargs={"observation": gym.spaces.Box(-1, 1, (1024,), np.float32)},
    max_episode_steps=50,
)
"""Rows of 4 kB."""


def test_a_full_server_is_emptied_by_the_learner(server_binary: Path, run_name: str) -> None:
    """The mirror may hold more than the server: everybody is refused and waits, until the learner comes to trim. Credit
    and weights, which went meanwhile, are set again."""
    replay = ReplayConfig(capacity_rows=20_000, min_rows=100, samples_per_insert=0.25)
    with (
        own_server(server_binary, megabytes=32) as server,
        admin(server) as client,
        Herd(server.url("admin"), run_name, env=WIDE, replay=replay) as herd,
        Observer(server.url("admin"), run_name) as observer,
    ):
        learner = herd.learner
        learner.train_until(lambda: learner.loop.ledger.totals.rows > 1000, "4 MB")
        learner.publisher.set(plenty())
        until(lambda: observer.seen[-1].credit == PLENTY, "everybody has to send")
        client.config_set("maxmemory", client.info("memory")["used_memory"] - (1 << 20))

        def all_refused() -> bool:
            learner.publisher.set(plenty())  # the learner lives, and neither reads nor trims
            return all(log.errors["Full"] for log in (learner.publisher_log, *(each.log for each in herd.actors)))

        until(all_refused, "everybody is refused")
        client.delete(f"qherd:{run_name}:credit", f"qherd:{run_name}:weights")
        until(lambda: observer.seen[-1] == (None, None), "credit and weights are gone")
        steps = [actor.steps for actor in herd.actors]
        until(lambda: all(actor.log.errors["Full"] > 5 for actor in herd.actors), "they ask again")
        assert steps == [actor.steps for actor in herd.actors]
        gone: Status = observer.seen[-1]
        assert gone == (None, None), "and nobody can set them"
        herd.works()
        learner.train_until(lambda: observer.seen[-1].credit, "there is credit again")
        until(lambda: observer.seen[-1].weights, "the weights are there again")
        assert learner.loop.report().metrics.replay.log_full > 0
        herd.end()
        herd.assert_calls_are_bounded()
        herd.assert_books_balance()
        observer.assert_versions_never_go_back()


LAST = ("1-9223372036854775807", "1-9223372036854775808", "18446744073709551615-18446744073709551615")


def test_ids_beyond_all_take_their_streams_and_not_the_run(
    server_binary: Path, run_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has an actor's password uses up all ids of all slots. The learner says so and begins each stream anew,
    no actor dies of it, every checkpoint can be written, and every row is read once or counted."""
    with own_server(server_binary) as server, admin(server) as client, Herd(server.url("admin"), run_name) as herd:
        herd.works()
        loop, told = herd.learner.loop, list[str]()
        train = loop.train
        monkeypatch.setattr(loop, "train", lambda seconds: told.extend(train(seconds).notices))
        for slot, last in enumerate(LAST):
            client.xadd(f"qherd:{run_name}:chunks:{slot}", {"c": b"stranger"}, id=last)
        herd.learner.train_until(lambda: loop.ledger.totals.refused["id"] == SLOTS, "the ids are refused")
        herd.works()
        assert not any(actor.ended for actor in herd.actors)
        assert pack(loop.state())
        for slot in range(SLOTS):
            assert sum(f"the stream of slot {slot} has an id that no actor can have sent" in line for line in told) == 1
        assert loop.ledger.totals.refused == {"id": SLOTS}
        loop.ledger.totals.refused.clear()  # no others come, and no row is lost
        herd.end()
        herd.assert_books_balance()


def test_chunks_for_slots_that_the_run_does_not_have_are_removed(
    server_binary: Path, run_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An actor's user may name any slot, and no trim would ever reach it: the server would fill up for good. They are
    counted; a slot that has just begun has one look's time to be known."""
    monkeypatch.setattr("learner.log_upkeep.STRAYS_EVERY_S", 0.2)
    with own_server(server_binary) as server, admin(server) as client, Herd(server.url("admin"), run_name) as herd:
        herd.works()
        loop = herd.learner.loop
        keys = [f"qherd:{run_name}:chunks:{name}" for name in ("77", "00", "x y", "\\xff*")]
        for key in keys:
            client.xadd(key, {"c": b"x" * 1000}, id="1-1")
            client.xadd(key, {"c": b"x" * 1000}, id="1-2")
        herd.learner.train_until(lambda: not client.exists(*keys), "they are gone")
        assert loop.ledger.totals.refused == {"slot": 8}
        loop.ledger.totals.refused.clear()  # no others come, and no row is lost
        herd.works()
        herd.end()
        herd.assert_books_balance()


def test_requests_that_are_never_finished_do_not_fill_the_server(server_binary: Path, run_name: str) -> None:
    """With an actor's password: an announced length beyond the server's bound is refused at once, and many requests of
    which most was sent are cut off before others are refused for want of memory. The herd goes on."""
    users = acl_rules(run_name)
    value = 4 << 20
    server = EmbeddedServer(
        run_name, 64 << 20, binary=server_binary, roles={**server_roles(), **users}, max_value_bytes=value
    )

    def begin(nbytes: int, sent: int) -> Any:
        connection: Any = redis.Redis.from_url(server.url("actor")).connection_pool.get_connection()
        begun = b"*5\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$3\r\n9-9\r\n$1\r\nc\r\n$%d\r\n" % (len(key), key, nbytes)
        with suppress(redis.ConnectionError):
            connection.send_packed_command([begun, bytes(sent)])
        return connection

    with server, admin(server) as client, Herd(server.url("admin"), run_name) as herd:
        key = f"qherd:{run_name}:chunks:0".encode()
        herd.works()
        for nbytes in (value + 1, 100 << 20):
            with pytest.raises((redis.ResponseError, redis.ConnectionError)):
                begin(nbytes, 0).read_response(timeout=5)
        half_sent = [begin(value, value - 100) for _ in range(40)]  # 160 MB of 64
        assert client.info("memory")["used_memory"] < 40 << 20
        rows = herd.learner.loop.ledger.totals.rows + 500
        herd.learner.train_until(lambda: herd.learner.loop.ledger.totals.rows > rows, "rows come in")
        assert not any(log.errors["Full"] for log in (herd.learner.publisher_log, *(each.log for each in herd.actors)))
        assert client.info("stats")["evicted_clients"] >= 20
        for connection in half_sent:
            connection.disconnect()


def test_the_learners_connections_are_not_cut_off_for_their_memory(server_binary: Path, run_name: str) -> None:
    """A learner with a big backlog to read would be the client with most: it could never read it."""
    users = acl_rules(run_name)
    with (
        EmbeddedServer(run_name, 64 << 20, binary=server_binary, roles=users, max_value_bytes=1 << 20) as server,
        closing(RedisLog(server.url("learner"), run_name, keep=True)) as learner,
        closing(RedisLog(server.url("actor"), run_name)) as actor,
    ):
        for seq in range(1, 41):
            actor.append(0, ChunkId(1, seq), bytes(1 << 20))
        learner.read({0: ChunkId()}, 1)
        assert len(learner.read({0: ChunkId(1, 1)}, 64 << 20)) == 39


def test_a_read_only_server_is_waited_for(server_binary: Path, run_name: str) -> None:
    """A primary that was made a replica by mistake, or a failover under way: it passes by."""
    with own_server(server_binary) as server, admin(server) as client, Herd(server.url("admin"), run_name) as herd:
        herd.works()
        herd.learner.publisher.set(plenty())  # so that everybody has something to send
        until(lambda: client.get(f"qherd:{run_name}:credit") == plenty(), "there is credit")
        client.replicaof("127.0.0.1", 1)
        try:
            herd.pauses(HOLD_S)
        finally:
            client.replicaof("NO", "ONE")
        for log in (herd.learner.publisher_log, *(actor.log for actor in herd.actors)):
            assert set(log.errors) == {"Unavailable"}
        herd.works()
        herd.end()
        herd.assert_calls_are_bounded()
        herd.assert_books_balance()


def test_a_password_that_was_changed_ends_everybody_who_has_the_old_one(server_binary: Path, run_name: str) -> None:
    """It would not mend itself: no retry makes an old password right, and whoever retried for ever would hide that the
    run is dead. So each ends, at once, and says where and why, without the password. Supervisor and driver then use up
    their budget of restarts, end the run as failed, and it can be resumed with the new password: what was stored is
    there, of each actor at most the chunk in doubt is not."""
    with own_server(server_binary, herd="~* &* +@all") as server, admin(server) as client:
        url = server.url("herd")
        password = urlsplit(url).password
        assert password
        with Herd(url, run_name) as herd:
            herd.works()
            client.execute_command("ACL", "SETUSER", "herd", "resetpass", ">another")
            client.execute_command("CLIENT", "KILL", "USER", "herd")
            with pytest.raises(UnusableServer, match="invalid username-password pair") as refused:
                herd.learner.train_until(lambda: False, "the learner is refused")
            until(lambda: all(actor.ended for actor in herd.actors), "the actors end", 5.0)
            herd.assert_calls_are_bounded()
            told = [str(refused.value), *(str(actor.failure) for actor in herd.actors)]
            for text in told:
                assert "invalid username-password pair" in text
                assert urlsplit(url).path in text
                assert password not in text
            client.execute_command("ACL", "SETUSER", "herd", "resetpass", f">{password}")
            herd.learner = Learner(url, run_name, 2, herd.timeout_s)
            for slot in range(SLOTS):
                herd.restart(slot, 2)
            herd.works()
            herd.end()
            herd.assert_books_balance()
            for actor in herd.past:
                unknown = actor.rollout.counters.rows - herd.learner.loop.ledger.slots[actor.slot].past.rows
                assert 0 <= unknown <= CHUNK_ROWS
