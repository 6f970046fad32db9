"""The publisher: credit and weights under the fence, from a thread that outlives a server that is away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lending import NONE, PLENTY, plenty
from waiting import frozen, until

from deploy.server.embedded import EmbeddedServer
from learner.publisher import CREDIT_EVERY_S, Publisher
from learner.weights import pack
from replay.chunk_log.memory_log import MemoryLog
from replay.chunk_log.protocol import Fenced, LogError, Status, Unavailable, UnusableServer
from replay.chunk_log.redis_log import RedisLog
from replay.credit import Credit, pack_credit

DEADLINE_S = 20.0


def weights(version: int) -> bytes:
    return pack(version, 0, 0, {})


def keep_setting(publisher: Publisher, credit: bytes, value: bytes | None = None) -> None:
    """Set again and again, as the learner does, until it raises or the deadline."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        publisher.set(credit, value)
        time.sleep(0.01)


def version_on(log: RedisLog | MemoryLog) -> int:
    header = log.status(0).weights
    return header.version if header else 0


class Scripted(MemoryLog):
    """A log whose publishing fails as often as it is told, and that counts the calls."""

    def __init__(self, *failures: LogError) -> None:
        super().__init__()
        self.failures, self.calls = list(failures), 0
        self.during: Callable[[], None] = lambda: None

    def publish(self, fence: int, credit: bytes, weights: bytes | None = None) -> None:
        self.calls += 1
        if self.failures:
            self.during()
            raise self.failures.pop(0)
        super().publish(fence, credit, weights)


@pytest.fixture
def publisher() -> Iterator[Callable[..., Publisher]]:
    """Makes publishers with a thread; they are stopped afterwards."""
    made = []

    def make(log: RedisLog | MemoryLog, fence: int = 1) -> Publisher:
        made.append(Publisher(log, fence))
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.stop()


def test_inline_writes_at_once_and_only_what_changed() -> None:
    """Without a thread each change is on the log when set returns."""
    log = Scripted()
    inline = Publisher(log, 1)
    inline.set(plenty(), weights(1))
    assert log.status(0) == Status(PLENTY, log.status(0).weights)
    assert version_on(log) == 1
    inline.set(plenty())
    assert log.calls == 1
    inline.set(NONE)
    assert not log.status(0).credit
    assert version_on(log) == 1
    assert (inline.published, inline.published_bytes) == (1, len(weights(1)))


def test_the_thread_renews_the_credit_of_a_real_server(
    server_url: str, run_name: str, publisher: Callable[..., Publisher]
) -> None:
    """The credit would lapse while the learner is busy: nobody calls set here, and it is renewed all the same."""
    log, actor = RedisLog(server_url, run_name), RedisLog(server_url, run_name)
    publisher(log).set(plenty(), weights(1))
    until(lambda: actor.status(0).credit, "the credit")
    assert version_on(actor) == 1
    admin = RedisLog(server_url, run_name).redis
    for _ in range(3):
        admin.pexpire(log.credit_key, 2_000)
        until(lambda: admin.pttl(log.credit_key) > 2_000, "the credit is renewed")
    assert actor.status(0).credit
    assert version_on(actor) == 1


def test_stopping_takes_the_credit_back_at_once(server_url: str, run_name: str) -> None:
    """Actors pause without waiting for it to lapse; the weights stay for evaluators."""
    tested, actor = Publisher(RedisLog(server_url, run_name), 1), RedisLog(server_url, run_name)
    tested.start()
    tested.set(plenty(), weights(1))
    until(lambda: actor.status(0).credit, "the credit")
    tested.stop()
    assert not actor.status(0).credit
    assert version_on(actor) == 1


def test_a_fenced_publisher_raises_and_changes_nothing(
    server_url: str, run_name: str, publisher: Callable[..., Publisher]
) -> None:
    """A newer learner has taken over: the older one hears of it in its next set, and its stop leaves that alone."""
    old = publisher(RedisLog(server_url, run_name), 1)
    old.set(plenty(), weights(1))
    new = publisher(RedisLog(server_url, run_name), 2)
    new.set(plenty(), weights(100))
    actor = RedisLog(server_url, run_name)
    until(lambda: version_on(actor) == 100, "the newer learner publishes")
    with pytest.raises(Fenced, match="fence 2 has taken over from 1"):
        keep_setting(old, NONE, weights(2))
    old.stop()
    assert version_on(actor) == 100
    assert actor.status(0).credit


def test_nobody_becomes_the_learner_behind_a_newer_fence(server_url: str, run_name: str) -> None:
    Publisher(RedisLog(server_url, run_name), 2)
    with pytest.raises(Fenced):
        Publisher(RedisLog(server_url, run_name), 1)


def test_a_refusal_ends_the_thread_and_is_raised(publisher: Callable[..., Publisher]) -> None:
    """A wrong password does not mend itself."""
    tested = publisher(Scripted(UnusableServer("NOPERM")))
    tested.set(plenty(), weights(1))
    with pytest.raises(UnusableServer, match="NOPERM"):
        keep_setting(tested, plenty())


def test_a_failed_write_keeps_the_weights(
    publisher: Callable[..., Publisher], caplog: pytest.LogCaptureFixture
) -> None:
    """Also when only the credit is set meanwhile; nothing is counted as published that was not. The log has when the
    server was away."""
    caplog.set_level("INFO", "qherd")
    log = Scripted(Unavailable("away"), Unavailable("away"))
    tested = publisher(log)
    tested.set(NONE, weights(1))
    until(lambda: log.calls > 0, "the first attempt")
    tested.set(plenty())
    until(lambda: version_on(log) == 1, "the weights arrive")
    assert log.status(0).credit
    assert (tested.unavailable, tested.published) == (2, 1)
    logged = [record.getMessage() for record in caplog.records]
    assert logged == ["a server does not answer: away", "a server answers again"]


def test_weights_set_while_an_older_write_fails_win(publisher: Callable[..., Publisher]) -> None:
    """The failed write's own weights must not come back over them."""
    log = Scripted(Unavailable("away"))
    log.during = lambda: tested.set(plenty(), weights(2))
    tested = publisher(log)
    tested.set(plenty(), weights(1))
    until(lambda: version_on(log) == 2, "the newer weights")
    assert tested.published == 1


def test_a_frozen_server_gets_the_newest_weights_when_it_thaws(
    server_binary: Path, run_name: str, publisher: Callable[..., Publisher]
) -> None:
    """set never waits for it, and versions between are dropped."""
    with EmbeddedServer("away", 64 << 20, binary=server_binary, roles={"admin": "~* &* +@all"}) as server:
        url = server.url("admin")
        tested = publisher(RedisLog(url, run_name, timeout_s=0.2))
        tested.set(plenty(), weights(1))
        actor = RedisLog(url, run_name)
        until(lambda: version_on(actor) == 1, "the first version")
        with frozen(server):
            started = time.monotonic()
            for version in range(2, 50):
                tested.set(plenty(), weights(version))
            assert time.monotonic() - started < 0.2
            until(lambda: tested.unavailable >= 2, "it notices that the server is away, and tries again")
            tested.set(NONE, weights(50))
        until(lambda: version_on(actor) == 50, "the newest version")
        assert not actor.status(0).credit
        tested.stop()


def test_changes_of_the_credit_are_not_all_written(publisher: Callable[..., Publisher]) -> None:
    """The learner changes it in every cycle. The newest reaches the server, and not many of those between."""
    log = Scripted()
    tested = publisher(log)
    started = time.monotonic()
    for rows in range(1, 2_000):
        tested.set(pack_credit({0: Credit(1, 0, rows)}))
    until(lambda: log.status(0).credit == Credit(1, 0, 1_999), "the newest")
    assert log.calls <= 2 + (time.monotonic() - started) / CREDIT_EVERY_S


def test_a_learner_that_waits_for_rows_has_its_credit_written_soon(
    publisher: Callable[..., Publisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the same credit was set before, as not urgent."""
    monkeypatch.setattr("learner.publisher.CREDIT_EVERY_S", 1_000.0)
    log = Scripted()
    tested = publisher(log)
    tested.set(pack_credit({0: Credit(1, 0, 1)}))
    until(lambda: log.status(0).credit == Credit(1, 0, 1), "the first one at once")
    tested.set(pack_credit({0: Credit(1, 0, 2)}))
    tested.set(pack_credit({0: Credit(1, 0, 2)}), soon=True)
    until(lambda: log.status(0).credit == Credit(1, 0, 2), "the waiting one")
    tested.set(pack_credit({0: Credit(1, 0, 3)}))
    tested.set(pack_credit({0: Credit(1, 0, 3)}), weights(1))
    until(lambda: log.status(0).credit == Credit(1, 0, 3), "with weights")
