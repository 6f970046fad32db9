"""Processes that were frozen while others took their place: a learner and an actor, thawed, change nothing and end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from chunk_makers import CODEC, SCHEMA, FakeActor, reader_on
from conftest import server_roles
from fenced_learner import FENCED
from herd import ACTORS, Herd, Learner, Observer
from lending import NONE, plenty
from proxy import Proxy
from waiting import until

from deploy.server.binary import find_server
from deploy.server.embedded import EmbeddedServer
from replay.chunk_log.memory_log import MemoryLog
from replay.chunk_log.protocol import FENCE_SHIFT, Fenced
from replay.mirror import Mirror

TIMEOUT_S = 0.5
SCRIPT = Path(__file__).with_name("fenced_learner.py")


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    """A server to restart. The fence is the log's, which the contract tests hold to the same on every server."""
    with EmbeddedServer("tests", 64 << 20, binary=find_server(), roles=server_roles()) as server:
        yield server


@contextmanager
def old_learner(url: str, run: str) -> Iterator[subprocess.Popen[str]]:
    """A learner of fence 1 in a process of its own."""
    environment = {**os.environ, "QHERD_TEST_URL": url, "QHERD_TEST_RUN": run}
    process = subprocess.Popen([sys.executable, str(SCRIPT)], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def fence_of(version: int) -> int:
    return version >> FENCE_SHIFT


def newest_fence(observer: Observer) -> int:
    versions = observer.versions
    return fence_of(versions[-1]) if versions else 0


@pytest.mark.parametrize("emptied", [False, True], ids=["", "server restarted empty meanwhile"])
def test_a_learner_that_was_frozen_while_another_took_over_ends_unseen(
    own_server: EmbeddedServer, run_name: str, emptied: bool
) -> None:
    """SIGSTOP, a newer learner takes over, SIGCONT: the old one's next word to the server tells it, and it ends. Nobody
    has seen its weights or its credit since. (The newer one gives none here, so that any is the old one's.)

    A server that restarted empty knows no fence until the newer learner's next refresh, within 0.5 s. One that thaws in
    that moment is taken for the newest and is fenced by that refresh; actors never take older weights than they have.
    """
    url = own_server.url("admin")
    with Observer(url, run_name) as observer, old_learner(url, run_name) as old:
        until(lambda: newest_fence(observer) == 1, "the old learner publishes", 60.0)
        until(lambda: observer.seen[-1].credit, "its credit")
        os.kill(old.pid, signal.SIGSTOP)
        new = Learner(url, run_name, 2, TIMEOUT_S)
        until(lambda: newest_fence(observer) == 2, "the new learner publishes")
        if emptied:
            os.kill(own_server.pid, signal.SIGKILL)
            until(lambda: not own_server.alive(), "the server's end")
            own_server.start()
            seen = len(observer.seen)
            until(lambda: any(status.weights for status in observer.seen[seen:]), "the new learner's weights again")
        new.publisher.set(NONE)
        until(lambda: not observer.seen[-1].credit, "the credit is taken back")
        shut = len(observer.seen)
        os.kill(old.pid, signal.SIGCONT)
        said, _ = old.communicate(timeout=30)
        assert old.returncode == FENCED
        assert "fence 2 has taken over from 1" in said
        looked = len(observer.seen)
        until(lambda: len(observer.seen) > looked + 100, "a look at what it left")
        assert {fence_of(status.weights.version) for status in observer.seen[shut:] if status.weights} == {2}
        assert not any(status.credit for status in observer.seen[shut:])
        observer.assert_versions_never_go_back()
        new.publisher.set(plenty())
        until(lambda: observer.seen[-1].credit, "the new learner's credit")
        new.publisher.stop()


@pytest.mark.parametrize("emptied", [False, True], ids=["", "server restarted empty meanwhile"])
def test_an_actor_that_was_cut_off_while_another_took_its_slot_ends(
    own_server: EmbeddedServer, run_name: str, emptied: bool
) -> None:
    """Its node comes back: the server refuses a chunk in doubt, or one more that it had credit for; where it waited for
    credit, what it reads is its successor's. The actor ends. No row of it is read after its successor's first."""
    url = own_server.url("admin")
    with Proxy(url) as proxy, Herd(url, run_name) as herd:
        herd.actors[0].end()
        herd.url = proxy.url
        herd.restart(0, 2)
        herd.url = url
        zombie = herd.actors[0]
        herd.learner.train_until(lambda: herd.learner.read(0) >= (2, 3), "the actor's chunks")
        proxy.stalled = True
        herd.learner.train_until(lambda: zombie.log.errors["Unavailable"], "it is cut off")
        steps = zombie.steps
        herd.replace(0, 3)
        herd.learner.train_until(lambda: herd.learner.read(0) >= (3, 2), "its successor's chunks")
        if emptied:
            os.kill(own_server.pid, signal.SIGKILL)
            until(lambda: not own_server.alive(), "the server's end")
            own_server.start()
            herd.works()
        proxy.stalled = False
        herd.learner.train_until(lambda: zombie.ended, "the zombie's end")
        assert isinstance(zombie.failure, Fenced)
        refused, told = r"2-\d+ is refused, the stream is at 3-", "incarnation 3 has taken over from 2"
        assert re.search(f"slot 0: ({refused}|{told})", str(zombie.failure))
        assert zombie.steps - steps <= ACTORS.chunk_steps
        assert zombie.steps_in_doubt == 0
        herd.works()
        herd.end()
        herd.assert_books_balance(lost=emptied)


def test_a_zombie_that_is_first_on_an_emptied_server_is_not_read() -> None:
    """The server cannot tell then that it is one; the learner's cursor can, and the successor's chunks go on."""
    log, zombie, successor = MemoryLog(), FakeActor(), FakeActor()
    reader = reader_on(log, CODEC, Mirror(SCHEMA, 1000), n=1, gamma=0.9)
    reader.follow([0])
    zombie.send(log)
    successor.restart()
    successor.send(log)
    reader.poll()
    emptied = MemoryLog()
    reader._log = emptied
    zombie.send(emptied)
    assert reader.poll() == 0
    assert successor.send(emptied).env_steps == reader.poll() > 0
    with pytest.raises(Fenced):
        zombie.send(emptied)
    reader.ledger.check()
    assert reader.ledger.totals.rows == 12
    assert not reader.ledger.totals.refused
    assert not reader.ledger.totals.rows_lost
