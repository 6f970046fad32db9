"""A small real herd in one process: rollouts in threads, a learner, all on real servers, and what they did."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, cast

import torch

from actors.actor_id import ActorId
from actors.builders import build_actor
from actors.config import ActorConfig, EnvConfig
from actors.envs import make_lanes, schema_of
from learner.builders import LearnerSpec, build_learner
from learner.config import LearnerConfig
from learner.networks import NetworkConfig
from learner.publisher import Publisher
from replay.chunk_log.protocol import ChunkLog, LogError, Status
from replay.chunk_log.redis_log import RedisLog
from replay.chunk_log.sharded_log import ShardedLog
from replay.config import ReplayConfig

SLOTS, SLICE_S, DEADLINE_S = 3, 0.1, 30.0
SLACK_S = 0.7
"""What a call may take beyond its time-out: two busy cores, shared by four threads."""
ACTORS = ActorConfig(count=SLOTS, lanes=2, chunk_steps=8, fetch_every_s=0.05)
REPLAY = ReplayConfig(capacity_rows=50_000, min_rows=100, samples_per_insert=4)
LEARNER = LearnerConfig(network=NetworkConfig(hidden=(8,)), batch=32, publish_every_updates=20, device="cpu")
CARTPOLE = EnvConfig(id="CartPole-v1")


class Watched:
    """A log whose calls are timed and whose errors are counted by type."""

    def __init__(self, log: ChunkLog) -> None:
        self._log, self._since_s = log, 0.0
        self._longest_s = 0.0
        self.errors: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._log, name)

        def timed(*arguments: Any) -> Any:
            self._since_s = started = time.monotonic()
            try:
                return call(*arguments)
            except LogError as error:
                self.errors[type(error).__name__] += 1
                raise
            finally:
                self._since_s = 0.0
                self._longest_s = max(self._longest_s, time.monotonic() - started)

        return timed

    @property
    def longest_s(self) -> float:
        """The longest call so far, one that still lasts included."""
        since_s = self._since_s
        return max(self._longest_s, time.monotonic() - since_s if since_s else 0.0)


class Actor:
    """A rollout in a thread, which ends by what the log raises."""

    def __init__(self, url: str, run: str, slot: int, incarnation: int, timeout_s: float, env: EnvConfig) -> None:
        self.slot, self.incarnation = slot, incarnation
        self.log = Watched(RedisLog(url, run, timeout_s=timeout_s))
        actor, log = ActorId(run, 1, slot, SLOTS, incarnation), cast(ChunkLog, self.log)
        self.rollout = build_actor(actor, env, ACTORS, LEARNER.network_spec, log)
        envs = self.rollout._stepper.envs
        self.steps = self.steps_in_doubt = 0
        self.failure: LogError | None = None
        self.flushed = False
        self._step, envs.step = envs.step, self._counted  # type: ignore[assignment, method-assign]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._act, name=f"actor {slot}", daemon=True)
        self._thread.start()

    def _counted(self, action: Any) -> Any:
        self.steps += 1
        self.steps_in_doubt += self.rollout.in_doubt
        return self._step(action)

    def _act(self) -> None:
        try:
            while not self._over.is_set():
                self.rollout.collect(0.1)
            self.flushed = self.rollout.flush(10.0)
        except LogError as error:
            self.failure = error

    @property
    def pauses(self) -> bool:
        """Whether it may not step: its chunk is in doubt, the server is away, or it had no credit when it last asked
        (a server that only reads still answers that)."""
        return self.rollout._outbox.unavailable or not self.rollout.may_act

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def end(self) -> None:
        """Flush, and end the thread."""
        self._over.set()
        self._thread.join(DEADLINE_S)
        assert self.ended, f"the actor of slot {self.slot} hangs"


class Learner:
    """Publisher and loop as ``LearnerWorker`` has them, on one server."""

    def __init__(
        self, url: str, run: str, fence: int, timeout_s: float, env: EnvConfig = CARTPOLE, replay: ReplayConfig = REPLAY
    ) -> None:
        envs = make_lanes(env, 1)
        logs = [Watched(RedisLog(url, run, timeout_s=timeout_s)) for _ in range(2)]
        self.publisher_log, self.reader_log = logs
        self.publisher = Publisher(cast(ChunkLog, self.publisher_log), fence)
        self.publisher.start()
        log = ShardedLog([cast(ChunkLog, self.reader_log)], self.publisher)
        schema = schema_of(envs.envs[0])
        chunk_rows = ACTORS.lanes * ACTORS.chunk_steps
        spec = LearnerSpec(run, schema, replay, LEARNER, fence=fence, seed=1, slots=SLOTS, chunk_rows=chunk_rows)
        self.loop = build_learner(spec, log, self.publisher)
        envs.close()

    def train_until(self, over: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
        """Slices of training until ``over()``; fails at the deadline, with ``what`` was waited for."""
        end = time.monotonic() + deadline_s
        while not over():
            self.loop.train(SLICE_S)
            assert time.monotonic() < end, f"not within {deadline_s:g} s: {what}; {self.loop.report()}"

    def train_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.train_until(lambda: time.monotonic() >= end, "time goes by", seconds + DEADLINE_S)

    def read(self, slot: int) -> tuple[int, int]:
        """The newest chunk of a slot that was taken in."""
        return self.loop.ledger.slots[slot].taken


class Herd:
    """``SLOTS`` actors and a learner; ``url`` may be a proxy's."""

    def __init__(
        self, url: str, run: str, timeout_s: float = 0.5, env: EnvConfig = CARTPOLE, replay: ReplayConfig = REPLAY
    ) -> None:
        self.url, self.run, self.timeout_s, self._env = url, run, timeout_s, env
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self.learner = Learner(url, run, 1, timeout_s, env, replay)
        self.actors: list[Actor] = []
        self.past: list[Actor] = []

    def __enter__(self) -> Self:
        self.actors = [self._actor(slot, 1) for slot in range(SLOTS)]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for actor in (*self.actors, *self.past):
            actor._over.set()
        self.learner.publisher.stop()
        for actor in (*self.actors, *self.past):
            actor._thread.join(DEADLINE_S)
        torch.set_num_threads(self._threads)

    def _actor(self, slot: int, incarnation: int) -> Actor:
        return Actor(self.url, self.run, slot, incarnation, self.timeout_s, self._env)

    def restart(self, slot: int, incarnation: int) -> None:
        """A new incarnation of a slot, whose actor has ended."""
        assert self.actors[slot].ended
        self.replace(slot, incarnation)

    def replace(self, slot: int, incarnation: int) -> None:
        """A new incarnation of a slot, whose actor was given up but may still live."""
        self.past.append(self.actors[slot])
        self.actors[slot] = self._actor(slot, incarnation)

    def works(self, chunks: int = 3) -> None:
        """Train until every slot sent new chunks, the learner has learnt and published, and all have new weights."""
        learner = self.learner
        before = {slot: learner.read(slot) for slot in range(SLOTS)}
        goals = {slot: (incarnation, seq + chunks) for slot, (incarnation, seq) in before.items()}
        updates, published = learner.loop.learner.updates, learner.publisher.published
        learner.train_until(
            lambda: all(learner.read(slot) >= goal for slot, goal in goals.items()), f"chunks {goals}, had {before}"
        )
        learner.train_until(lambda: learner.loop.learner.updates > updates, "updates")
        learner.train_until(lambda: learner.publisher.published > published, "new weights")
        newest = max(actor.rollout.weight_version for actor in self.actors)
        learner.train_until(
            lambda: all(actor.rollout.weight_version > newest for actor in self.actors), "the actors have new weights"
        )

    def pauses(self, hold_s: float) -> None:
        """Train while a fault lasts, until nobody has stepped for ``hold_s``. Each actor may finish the chunk that it
        was at; one that had waited for credit may find it on a server that only reads, and collect another."""
        started = newest = self._steps()
        since_s = time.monotonic()

        def quiet() -> bool:
            nonlocal newest, since_s
            if newest != (newest := self._steps()):
                since_s = time.monotonic()
            return time.monotonic() - since_s >= hold_s and all(actor.pauses for actor in self.actors)

        self.learner.train_until(quiet, f"no actor steps for {hold_s:g} s")
        further = [after - before for before, after in zip(started, newest, strict=True)]
        assert max(further) <= 2 * ACTORS.chunk_steps

    def _steps(self) -> list[int]:
        return [actor.steps for actor in self.actors]

    def assert_calls_are_bounded(self) -> None:
        """No call of anybody took longer than its time-out."""
        logs = [actor.log for actor in (*self.actors, *self.past)]
        longest = {log: log.longest_s for log in (*logs, self.learner.publisher_log, self.learner.reader_log)}
        assert max(longest.values()) < self.timeout_s + SLACK_S

    def end(self) -> None:
        """As RaySession does: take the credit back, flush the actors, take in what they flushed."""
        self.learner.publisher.stop()
        for actor in self.actors:
            actor.end()
        self.learner.loop.drain()

    def assert_books_balance(self, lost: bool = False) -> None:
        """Every row of each slot's newest incarnation was read once, or is counted as lost (where ``lost`` may be)."""
        reader = self.learner.loop.ingest.reader
        reader.ledger.check()
        for actor in self.actors:
            assert actor.failure is None
            assert actor.flushed
            assert actor.steps_in_doubt == 0
            books = reader.ledger.slots[actor.slot]
            assert books.taken.incarnation == actor.incarnation
            assert books.rows_read + books.rows_lost == actor.rollout.counters.rows > 0
            assert lost or books.rows_lost == 0
        totals = reader.ledger.totals
        assert totals.refused == {}
        assert lost or totals.rows_lost == {}
        assert set(totals.rows_lost) <= {"gap"}


class Observer:
    """Looks at the credit of slot 0 and the weights of a server all the time, by a connection of its own."""

    def __init__(self, url: str, run: str) -> None:
        self._log = RedisLog(url, run, timeout_s=0.2)
        self.seen: list[Status] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="observer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join(DEADLINE_S)
        self._log.close()

    def _look(self) -> None:
        while not self._over.wait(0.002):
            with suppress(LogError):
                self.seen.append(self._log.status(0))

    @property
    def versions(self) -> list[int]:
        """Versions of the weights, as they were seen; a server without any is left out."""
        return [status.weights.version for status in self.seen if status.weights is not None]

    def assert_versions_never_go_back(self) -> None:
        versions = self.versions
        assert versions == sorted(versions)
        assert len(set(versions)) > 1, "nothing was seen"
