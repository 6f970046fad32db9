"""One run on three servers: real actors' rollouts, publisher threads and learner, while servers freeze, die and return.

The log's contract over three servers is in test_log_contract.py, a whole run in test_cluster_run.py.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import server_roles
from lending import plenty
from waiting import frozen, until

from actors.actor_id import ActorId
from actors.builders import build_actor
from actors.config import ActorConfig, EnvConfig
from actors.rollout import Rollout
from deploy.server.embedded import EmbeddedServer
from learner.builders import LearnerSpec, build_learner
from learner.config import LearnerConfig
from learner.networks import NetworkConfig
from learner.publisher import STOP_S, Publisher
from learner.weights import pack, unpack, version
from replay.chunk import Schema
from replay.chunk_log import READER_TIMEOUT_S, open_sharded_log
from replay.chunk_log.memory_log import MemoryLog
from replay.chunk_log.protocol import ChunkId, Entry, Fenced, LogError, MemoryUsage, Unavailable, UnusableServer
from replay.chunk_log.redis_log import RedisLog
from replay.chunk_log.sharded_log import PAUSE_S, Pauses, ShardedLog, shard_of
from replay.config import ReplayConfig
from replay.metrics import flat

SERVERS, SLOTS = 3, 6
SLICE_S = 0.1
DEADLINE_S = 60.0
ACTORS = ActorConfig(count=SLOTS, lanes=4, chunk_steps=8, fetch_every_s=0.05)
REPLAY = ReplayConfig(capacity_rows=20_000, min_rows=200, samples_per_insert=4)
LEARNER = LearnerConfig(network=NetworkConfig(hidden=(8,)), batch=32, publish_every_updates=20, device="cpu")
PUBLISH_ONCE = LEARNER.model_copy(update={"publish_every_updates": 10**9})


class Counting(Publisher):
    """Counts the reader's calls that a server did not answer: each kept the learner waiting for READER_TIMEOUT_S."""

    def __init__(self, *arguments: Any) -> None:
        self.waits: Counter[int] = Counter()
        super().__init__(*arguments)

    def report_failure(self, shard: int, error: LogError) -> None:
        self.waits[shard] += 1
        super().report_failure(shard, error)


class Herd:
    """A learner in this thread, and a thread per actor, each with the URL of its slot's server and no other."""

    def __init__(self, servers: list[EmbeddedServer], run: str, config: LearnerConfig) -> None:
        self.servers, self.run = servers, run
        urls = [server.url("admin") for server in servers]
        first, *others = (RedisLog(url, run) for url in urls)
        self.publisher = Counting(first, 1, others)
        self.publisher.start()
        log = open_sharded_log(urls, run, "reader", self.publisher)
        schema = Schema((4,), "float32", 2)
        chunk_rows = ACTORS.lanes * ACTORS.chunk_steps
        spec = LearnerSpec(run, schema, REPLAY, config, fence=1, seed=1, slots=SLOTS, chunk_rows=chunk_rows)
        self.loop = build_learner(spec, log, self.publisher)
        self.rollouts = [self._rollout(slot, urls[shard_of(slot, len(urls))]) for slot in range(SLOTS)]
        self._over = threading.Event()
        self._flushed: dict[int, bool] = {}
        self._threads = [threading.Thread(target=self._act, args=(slot,)) for slot in range(SLOTS)]

    def _rollout(self, slot: int, url: str) -> Rollout:
        actor = ActorId(self.run, 1, slot, SLOTS, 1)
        log = RedisLog(url, self.run, timeout_s=0.5)
        return build_actor(actor, EnvConfig(id="CartPole-v1"), ACTORS, LEARNER.network_spec, log)

    def _act(self, slot: int) -> None:
        while not self._over.is_set():
            self.rollouts[slot].collect(0.1)
        self._flushed[slot] = self.rollouts[slot].flush(10.0)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Stop as RaySession does: take the credit back, flush the actors, take in what they flushed."""
        self.publisher.stop()
        self._over.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(DEADLINE_S)
        with suppress(Fenced):  # one that was fenced takes in nothing more
            self.loop.drain()

    def train_until(self, over: Callable[[], bool], what: str) -> None:
        """The learner's slices, until ``over()``."""
        end = time.monotonic() + DEADLINE_S
        while not over():
            self.loop.train(SLICE_S)
            assert time.monotonic() < end, f"not within {DEADLINE_S:.0f} s: {what}; {self.loop.report()}"

    def read(self, slot: int) -> int:
        """Chunks of a slot that the learner has read."""
        return self.loop.ledger.slots[slot].cursor.seq

    def train_until_read(self, slots: list[int], chunks: int) -> None:
        """Until so many further chunks of each of these slots were read."""
        goals = {slot: self.read(slot) + chunks for slot in slots}
        self.train_until(lambda: all(self.read(slot) >= goal for slot, goal in goals.items()), f"chunks {goals}")

    def assert_books_balance(self, may_lose: tuple[int, ...] = ()) -> None:
        """Every row that an actor has written was read once, or is counted as lost."""
        assert self._flushed == dict.fromkeys(range(SLOTS), True)
        for slot, rollout in enumerate(self.rollouts):
            books = self.loop.ledger.slots[slot]
            assert books.rows_read + books.rows_lost == books.counters.rows == rollout.counters.rows > 0
            assert books.rows_lost == 0 or slot in may_lose
        totals = self.loop.ledger.totals
        assert totals.refused == {}
        assert sum(totals.rows_lost.values()) == sum(books.rows_lost for books in self.loop.ledger.slots.values())
        assert totals.rows == sum(books.rows_read for books in self.loop.ledger.slots.values())


@contextmanager
def three_servers(binary: Path) -> Iterator[list[EmbeddedServer]]:
    """Of one's own, to freeze and kill."""
    with ExitStack() as stack:
        made = [EmbeddedServer("tests", 64 << 20, binary=binary, roles=server_roles()) for _ in range(SERVERS)]
        yield [stack.enter_context(server) for server in made]


@contextmanager
def herd_on(binary: Path, run: str, config: LearnerConfig = LEARNER) -> Iterator[Herd]:
    """A herd at work on three servers, each slot of which was read from."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with three_servers(binary) as servers:
        herd = Herd(servers, run, config)
        try:
            herd.start()
            herd.train_until_read(list(range(SLOTS)), 5)
            yield herd
        finally:
            herd.end()
            torch.set_num_threads(threads)


def kill(server: EmbeddedServer) -> None:
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: not server.alive(), "the server's end")


def weights(number: int) -> bytes:
    return pack(number, 0, 0, {})


# -- assignment


def test_slots_are_spread_evenly_and_for_ever() -> None:
    """As hand-worked; a slot's server depends on its number and the number of servers alone."""
    assert [shard_of(slot, 3) for slot in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert [shard_of(slot, 1) for slot in range(3)] == [0, 0, 0]
    for servers in range(1, 9):
        counts = [[shard_of(slot, servers) for slot in range(64)].count(server) for server in range(servers)]
        assert max(counts) - min(counts) <= 1


def test_each_stream_is_on_its_slots_server_only(server_urls: list[str], run_name: str) -> None:
    """An actor that writes to the one server is read by the learner, with the weights and credit that it sees there."""
    logs = [RedisLog(url, run_name) for url in server_urls]
    log = ShardedLog([RedisLog(url, run_name) for url in server_urls])
    log.publish(1, plenty(), weights(1))
    for slot in range(SLOTS):
        status = logs[shard_of(slot, SERVERS)].append(slot, ChunkId(1, 1), b"%d" % slot)
        assert status.credit
        assert status.weights is not None
        assert status.weights.version == 1
    everything = dict.fromkeys(range(SLOTS), ChunkId())
    for server, each in enumerate(logs):
        found = each.read(everything, 1 << 20)
        assert found == [Entry(slot, ChunkId(1, 1), b"%d" % slot) for slot in (server, server + SERVERS)]
    assert len(log.read(everything, 1 << 20)) == SLOTS
    log.close()
    for each in logs:
        each.close()


# -- a server is away: the log alone


class Faulty(MemoryLog):
    """A log that fails while it is told to, and counts what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.fault: LogError | None = None
        self.room: MemoryUsage | None = None
        self.asked = 0

    def _ask(self) -> None:
        self.asked += 1
        if self.fault is not None:
            raise self.fault

    def read(self, *arguments: Any) -> list[Entry]:
        self._ask()
        return super().read(*arguments)

    def trim(self, *arguments: Any) -> None:
        self._ask()
        super().trim(*arguments)

    def memory(self) -> MemoryUsage | None:
        self._ask()
        return self.room

    def last_id(self, slot: int) -> ChunkId:
        self._ask()
        return super().last_id(slot)

    def take_lease(self, fence: int) -> None:
        self._ask()
        super().take_lease(fence)

    def fetch_weights(self) -> bytes | None:
        self._ask()
        return super().fetch_weights()

    def describe(self, fence: int, description: bytes) -> None:
        self._ask()
        super().describe(fence, description)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def faulty() -> tuple[ShardedLog, list[Faulty], Clock]:
    """A log over three that can fail, each with one chunk of its slot."""
    clock, logs = Clock(), [Faulty() for _ in range(SERVERS)]
    for slot, log in enumerate(logs):
        MemoryLog.append(log, slot, ChunkId(1, 1), bytes(100))
        log.asked = 0
    return ShardedLog(logs, Pauses(clock)), logs, clock


CURSORS = dict.fromkeys(range(SERVERS), ChunkId())


def slots_read(log: ShardedLog) -> list[int]:
    return [entry.slot for entry in log.read(CURSORS, 1 << 20)]


def test_a_server_that_is_away_is_asked_once_a_pause(faulty: tuple[ShardedLog, list[Faulty], Clock]) -> None:
    log, logs, clock = faulty
    logs[1].fault = Unavailable("away")
    for _ in range(5):
        assert slots_read(log) == [0, 2]
    assert [each.asked for each in logs] == [5, 1, 5]
    clock.now_s += PAUSE_S
    assert slots_read(log) == [0, 2]
    logs[1].fault = None
    assert slots_read(log) == [0, 2]
    clock.now_s += PAUSE_S
    assert slots_read(log) == [0, 1, 2]


def test_the_learner_asks_again_when_its_publisher_was_answered(
    faulty: tuple[ShardedLog, list[Faulty], Clock],
) -> None:
    _, logs, _ = faulty
    publisher = Publisher(MemoryLog(), 1, [MemoryLog(), MemoryLog()])
    log = ShardedLog(logs, publisher)
    logs[1].fault = Unavailable("away")
    for _ in range(5):
        assert slots_read(log) == [0, 2]
    assert (logs[1].asked, publisher.unavailable, publisher.servers_down) == (1, 1, 1)
    logs[1].fault = None
    publisher.set(plenty(), weights(1))
    assert publisher.servers_down == 0
    assert slots_read(log) == [0, 1, 2]


def test_a_trim_that_a_server_missed_is_done_when_it_is_back(faulty: tuple[ShardedLog, list[Faulty], Clock]) -> None:
    log, logs, clock = faulty
    logs[1].fault = Unavailable("away")
    log.trim(1, dict.fromkeys(range(SERVERS), ChunkId(1, 2)))
    logs[1].fault = None
    assert slots_read(log) == []
    log.trim(1, {0: ChunkId(1, 3)})
    assert len(MemoryLog.read(logs[1], CURSORS, 1 << 20)) == 1
    clock.now_s += PAUSE_S
    for seq in (4, 5):
        log.trim(1, {0: ChunkId(1, seq)})
        assert MemoryLog.read(logs[1], CURSORS, 1 << 20) == []
    assert [each.asked for each in logs] == [5, 2, 2], "what is done is not asked again"


def test_the_fullest_server_counts(faulty: tuple[ShardedLog, list[Faulty], Clock]) -> None:
    """Of those that answer and have a bound."""
    log, logs, _ = faulty
    assert log.memory() is None
    logs[0].room, logs[2].room = MemoryUsage(90, 1000), MemoryUsage(50, 100)
    assert log.memory() == MemoryUsage(50, 100)
    logs[2].fault = Unavailable("away")
    assert log.memory() == MemoryUsage(90, 1000)


def test_a_last_id_behind_a_server_that_is_away_is_unavailable_at_once(
    faulty: tuple[ShardedLog, list[Faulty], Clock],
) -> None:
    """The supervisor tries again later; of several slots only the first waits for the server."""
    log, logs, clock = faulty
    logs[1].fault = Unavailable("away")
    for slot in (1, 4, 7):
        with pytest.raises(Unavailable):
            log.last_id(slot)
    assert logs[1].asked == 1
    assert log.last_id(0) == ChunkId(1, 1)
    clock.now_s += PAUSE_S
    logs[1].fault = None
    assert log.last_id(1) == ChunkId(1, 1)


@pytest.mark.parametrize("error", [UnusableServer("wrong password"), Fenced("newer")])
def test_what_does_not_mend_itself_is_raised(faulty: tuple[ShardedLog, list[Faulty], Clock], error: LogError) -> None:
    log, logs, _ = faulty
    logs[2].fault = error
    for call in (lambda: log.read(CURSORS, 1), lambda: log.trim(1, {2: ChunkId()}), lambda: log.take_lease(1)):
        with pytest.raises(type(error)):
            call()


def test_the_first_server_decides_and_the_others_may_be_away(
    faulty: tuple[ShardedLog, list[Faulty], Clock],
) -> None:
    log, logs, _ = faulty
    logs[1].fault = Unavailable("away")
    log.take_lease(2)
    logs[0].fault, logs[1].fault = Unavailable("away"), None
    with pytest.raises(Unavailable):
        log.take_lease(3)
    logs[0].fault = None
    for each in logs:
        MemoryLog.take_lease(each, 2)  # Fenced if the third had been noted anywhere


def test_any_server_has_the_weights(faulty: tuple[ShardedLog, list[Faulty], Clock]) -> None:
    log, logs, _ = faulty
    log.publish(1, plenty(), weights(5))
    logs[0].fault = logs[1].fault = Unavailable("away")
    assert log.fetch_weights() == weights(5)


def test_the_description_is_copied_to_each_server_that_answers(
    faulty: tuple[ShardedLog, list[Faulty], Clock],
) -> None:
    """Also where the first is away, and one that is away is not waited for again and again."""
    log, logs, _ = faulty
    log.describe(1, b"a")
    logs[0].fault, before = Unavailable("away"), logs[0].asked
    for _ in range(3):
        log.describe(1, b"b")
    assert [each.description() for each in logs] == [b"a", *[b"b"] * (len(logs) - 1)]
    assert logs[0].asked == before + 1


# -- the publisher on several servers


def test_a_frozen_server_holds_up_neither_the_others_nor_the_end(server_binary: Path, run_name: str) -> None:
    """With the real time-outs: the others have each version at once, and stop comes back within its bound."""
    with three_servers(server_binary) as servers:
        urls = [server.url("admin") for server in servers]
        first, *others = (RedisLog(url, run_name) for url in urls)
        publisher, actors = Publisher(first, 1, others), [RedisLog(url, run_name) for url in urls]
        publisher.start()
        publisher.set(plenty(), weights(1))
        until(lambda: all(actor.fetch_weights() == weights(1) for actor in actors), "version 1 everywhere")
        with frozen(servers[0]):
            for number in range(2, 8):
                publisher.set(plenty(), weights(number))
                until(
                    lambda v=number: all(actor.fetch_weights() == weights(v) for actor in actors[1:]),  # type: ignore[misc]
                    f"version {number}",
                    2.0,
                )
            until(lambda: publisher.servers_down == 1, "the frozen server is counted")
            started = time.monotonic()
            publisher.stop()
            assert time.monotonic() - started < STOP_S + 1.0
            assert not actors[1].status(0).credit
            assert not actors[2].status(0).credit
        for log in (first, *others, *actors):
            log.close()


def test_a_server_that_restarts_empty_has_the_weights_again(server_binary: Path, run_name: str) -> None:
    """Though nothing new is published, and also where no call failed meanwhile: redis-py reconnects in silence."""
    with three_servers(server_binary) as servers:
        urls = [server.url("admin") for server in servers]
        first, *others = (RedisLog(url, run_name) for url in urls)
        publisher = Publisher(first, 1, others)
        publisher.start()
        publisher.set(plenty(), weights(1))
        for server, url in zip(servers, urls, strict=True):
            actor = RedisLog(url, run_name)
            until(lambda log=actor: log.fetch_weights() == weights(1), "version 1")  # type: ignore[misc]
            actor.close()
            kill(server)
            server.start()
            actor = RedisLog(url, run_name)
            until(lambda log=actor: log.fetch_weights() == weights(1), "version 1 again")  # type: ignore[misc]
            assert actor.status(0).credit
            actor.close()
        until(lambda: publisher.servers_down == 0, "all servers answer")
        assert publisher.published == 1
        publisher.stop()


# -- the whole herd


@pytest.mark.timeout(180)
def test_a_frozen_server_pauses_its_slots_only_and_nothing_is_lost(server_binary: Path, run_name: str) -> None:
    """The learner waits for it once, then goes on with the others' slots; thawed, it is read from where it stopped."""
    with herd_on(server_binary, run_name) as herd:
        before = herd.publisher.waits[1]
        with frozen(herd.servers[1]):
            until_s = time.monotonic() + 4 * READER_TIMEOUT_S
            herd.train_until(lambda: time.monotonic() > until_s, "the freeze")
            chunks = {slot: herd.read(slot) for slot in (1, 4)}
            herd.train_until_read([0, 2, 3, 5], 10)
            assert chunks == {slot: herd.read(slot) for slot in (1, 4)}
            assert herd.publisher.waits[1] <= before + 1, "it waits for the frozen server once"
            report = flat(herd.loop.report().metrics)
            assert report["servers_down"] == 1
            assert report["log_unavailable"] >= 1
            assert report["weights_published"] > 1
        herd.train_until_read([1, 4], 10)
        assert herd.loop.report().metrics.replay.servers_down == 0
        herd.end()
        herd.assert_books_balance()


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("which", [0, 1])
def test_a_server_that_comes_back_empty_is_used_again(server_binary: Path, run_name: str, which: int) -> None:
    """What it held unread is counted as lost, nothing is read twice; an actor that starts then finds weights."""
    with herd_on(server_binary, run_name, PUBLISH_ONCE) as herd:
        mine = [which, which + SERVERS]
        kill(herd.servers[which])
        herd.train_until_read([slot for slot in range(SLOTS) if slot not in mine], 10)
        assert herd.loop.report().metrics.replay.servers_down == 1
        herd.servers[which].start()
        herd.train_until_read(mine, 10)
        log = RedisLog(herd.servers[which].url("admin"), herd.run)
        until(lambda: log.fetch_weights() is not None, "weights on the empty server")
        log.close()
        assert herd.publisher.published == 1
        herd.end()
        herd.assert_books_balance(may_lose=(which, which + SERVERS))


@pytest.mark.timeout(180)
def test_without_the_first_server_the_run_goes_on_and_no_learner_is_admitted(
    server_binary: Path, run_name: str
) -> None:
    with herd_on(server_binary, run_name) as herd:

        def second_learner() -> Publisher:
            first, *others = (RedisLog(server.url("admin"), run_name) for server in herd.servers)
            return Publisher(first, 2, others)

        kill(herd.servers[0])
        herd.train_until_read([1, 2, 4, 5], 10)
        with pytest.raises(Unavailable):
            second_learner()
        herd.train_until_read([1, 2, 4, 5], 10)  # not Fenced: the refused learner has left no trace on the others
        herd.servers[0].start()
        herd.train_until_read([0, 3], 5)
        kill(herd.servers[2])
        second = second_learner()
        assert second.servers_down == 1
        second.start()
        newer = pack(version(2, 1), 0, 0, unpack(herd.loop.candidate())[1])
        second.set(plenty(), newer)
        with pytest.raises(Fenced, match="fence 2 has taken over from 1"):
            herd.train_until(lambda: False, "the older learner is fenced")
        herd.servers[2].start()
        logs = [RedisLog(server.url("admin"), run_name) for server in herd.servers]
        until(lambda: all(log.fetch_weights() == newer for log in logs), "the newer learner's weights")
        second.stop()
