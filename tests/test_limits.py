"""Bounds that hold: a server at its maxmemory, the log beside the mirror, samples per insert with either side slow."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis
from chunk_makers import FakeActor, chunk_id

from deploy.server.embedded import EmbeddedServer
from learner.builders import LearnerSpec, build_learner
from learner.config import LearnerConfig
from learner.loop import LearnerLoop
from learner.networks import NetworkConfig
from learner.publisher import Publisher
from replay.chunk import Chunk, Schema, encode
from replay.chunk_log.protocol import Full, Unavailable
from replay.chunk_log.redis_log import RedisLog
from replay.config import ReplayConfig

RUN = "limits"
SMALL_SERVER = 16 << 20
PICTURES = Schema((64, 64), "uint8", 4)
LEARNER = LearnerConfig(network=NetworkConfig(encoder="mlp", hidden=(4,)), batch=8)


class Sender:
    """An actor of pictures that repeats a chunk until it is stored."""

    def __init__(self, log: RedisLog, slot: int = 0) -> None:
        self.log, self.actor = log, FakeActor(slot, lanes=4)
        self.refused = self.stored = 0
        self._pending: Chunk | None = None

    def send(self) -> bool:
        """Send the next chunk, or again the one that was refused; whether it is stored."""
        if self._pending is None:
            chunk = self.actor.chunk(16)
            pictures = np.broadcast_to(chunk.obs[..., None].astype(np.uint8), (*chunk.flags.shape, 64, 64))
            self._pending = Chunk(**{name: getattr(chunk, name) for name in chunk.__slots__} | {"obs": pictures})
        try:
            self.log.append(self.actor.slot, chunk_id(self._pending), encode(self._pending, PICTURES, RUN))
        except (Full, Unavailable):
            self.refused += 1
            return False
        self.stored += self._pending.rows
        self._pending = None
        return True


@contextlib.contextmanager
def herd(binary: Path, server_bytes: int, replay: ReplayConfig) -> Iterator[tuple[LearnerLoop, Sender, redis.Redis]]:
    """A learner on a server of so much memory, a sender of pictures, and a client to look."""
    roles = {"admin": "~* &* +@all"}
    with EmbeddedServer(RUN, server_bytes, binary=binary, roles=roles) as server, contextlib.ExitStack() as stack:
        url = server.url("admin")
        publisher = Publisher(RedisLog(url, RUN), fence=1)
        publisher.start()
        stack.callback(publisher.stop)
        spec = LearnerSpec(RUN, PICTURES, replay, LEARNER, fence=1, seed=0, slots=1, chunk_rows=64)
        loop = build_learner(spec, RedisLog(url, RUN), publisher)
        yield loop, Sender(RedisLog(url, RUN)), stack.enter_context(redis.Redis.from_url(url))


def test_the_run_recovers_by_itself_from_maxmemory(server_binary: Path) -> None:
    """The mirror may hold more than the server can: writes are refused, the learner trims, writes go on; nothing is
    lost, the weights and the credit are written again, and each time is counted."""
    replay = ReplayConfig(capacity_rows=100_000, min_rows=100, samples_per_insert=0.125)
    with herd(server_binary, SMALL_SERVER, replay) as (loop, sender, client):
        goal = 3 * SMALL_SERVER // PICTURES.row_bytes
        deadline = time.monotonic() + 60
        while sender.stored < goal:
            assert time.monotonic() < deadline, f"{sender.stored} of {goal} rows stored, {sender.refused} refused"
            for _ in range(20):
                if not sender.send():
                    break
            loop.train(0.05)
        loop.drain()
        metrics = loop.report().metrics
        assert sender.refused > 0, "the bound was never reached: this test shows nothing"
        assert metrics.replay.log_full > 0
        assert loop.ledger.totals.rows == sender.stored
        assert not loop.ledger.totals.rows_lost
        assert client.info("memory")["used_memory"] < 1.1 * SMALL_SERVER
        loop.broadcaster.publish()
        while loop.broadcaster.publisher.published < 2 or not client.exists(f"qherd:{RUN}:credit"):
            assert time.monotonic() < deadline, "weights and credit were not written again"
            loop.train(0.05)


@pytest.mark.parametrize(("log_rows", "bound"), [(None, 1024), (256, 256)])
def test_the_log_holds_not_much_more_than_the_mirror(server_binary: Path, log_rows: int | None, bound: int) -> None:
    """At full speed, over many turns of the ring: the rows on the server stay within a quarter of the bound."""
    replay = ReplayConfig(capacity_rows=1024, min_rows=100, samples_per_insert=0.125, log_rows=log_rows)
    with herd(server_binary, 256 << 20, replay) as (loop, sender, client):
        held = []
        while sender.stored < 6 * 1024:
            assert sender.send()
            loop.train(0.001)
            held.append(64 * client.xlen(f"qherd:{RUN}:chunks:0"))
        assert max(held) <= 1.25 * bound + 128
        assert held[-1] >= bound - 64, "what the mirror may need again was trimmed"


@pytest.mark.parametrize(("slow", "sends"), [("learner", 4), ("actors", 1)])
def test_samples_per_insert_hold_whichever_side_is_slow(server_binary: Path, slow: str, sends: int) -> None:
    """A learner whose updates take long, actors that send little: each waits for the other, for credit or for rows. The
    error stays in the band, which is as wide as what may be on its way."""
    replay = ReplayConfig(capacity_rows=20_000, min_rows=256, samples_per_insert=1.0)
    with herd(server_binary, 256 << 20, replay) as (loop, sender, _):
        if slow == "learner":
            learn = loop._learn

            def slowly(updates: int) -> None:
                time.sleep(0.05)
                learn(updates)

            loop._learn = slowly  # type: ignore[method-assign]
        waited, errors = 0, [0.0]
        deadline = time.monotonic() + 120
        while sender.stored < 4_000:
            assert time.monotonic() < deadline, f"{sender.stored} rows stored"
            for _ in range(sends):
                credit = sender.log.status(0).credit
                if credit is None or not credit.allows(1, sender.stored, 64, waited_s=0.0):
                    waited += 1
                    break
                sender.send()
            loop.train(0.05)
            if loop.ingest.limiter.inserts > 256:
                errors.append(loop.ingest.limiter.error)
        band = loop.ingest.limiter.half_band
        assert -band <= min(errors)
        assert max(errors) <= band
        assert band < loop.ingest.limiter.inserts / 3, "a band so wide would hold anything"
        if slow == "learner":
            assert waited > 0, "there was credit all the time: the learner was not slow"
        else:
            assert loop.report().metrics.training.learner_phase_seconds["wait"] > 0
