"""What an exception left half-changed is not used again: actors have two calls in flight, and so has the learner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import scripted_env
from chunk_makers import RUN, SCHEMA, FakeActor, reader_on
from lending import plenty

from actors.actor_id import ActorId
from actors.builders import build_evaluator
from actors.config import ActorConfig, EnvConfig, EvalConfig
from actors.envs import make_lanes, schema_of
from actors.errors import EnvError
from actors.lanes import LaneError
from actors.policy import make_policy
from actors.rollout import Rollout
from learner.builders import LearnerSpec, build_learner
from learner.config import LearnerConfig
from learner.loop import LearnerLoop
from learner.networks import NetworkConfig, NetworkSpec
from learner.publisher import Publisher
from learner.weights import pack
from replay.breakable import Breakable, breakable
from replay.chunk import Codec
from replay.chunk_log.memory_log import MemoryLog
from replay.chunk_log.protocol import ChunkId
from replay.config import ReplayConfig
from replay.mirror import Mirror
from replay.reader import Reader

LANES, N, GAMMA, DEADLINE_CHUNKS = 2, 3, 0.9, 10
LAYER = {
    "head.linear.weight": np.array([[0, 0.01, 0.1], [0, -0.01, 0.2]], np.float32),
    "head.linear.bias": np.zeros(2, "f4"),
}


class Transition(NamedTuple):
    """What a sampler may give for the observation that it starts from."""

    a_tm1: int
    r_t: float
    discount_t: float
    s_t: tuple[float, ...]


class RecordedEnv(scripted_env.ScriptedEnv):
    """Writes down what was really played, and goes wrong once, at its ``at``-th env step of all."""

    def __init__(self, fault: str, at: int, note: Callable[[list[Any]], None]) -> None:
        super().__init__(lengths=(3, 1, 5, 2))
        self._fault, self._left, self._note, self._played = fault, at, note, list[Any]()

    def reset(self, **arguments: Any) -> Any:
        obs, infos = super().reset(**arguments)
        self._played = [tuple(obs.tolist())]
        self._note(self._played)
        return obs, infos

    def step(self, action: np.int64) -> Any:
        self._left -= 1
        if self._left == 0 and self._fault == "raises":
            raise RuntimeError("the bridge is down")
        if self._left == 0 and self._fault == "interrupted":
            raise KeyboardInterrupt
        obs, reward, terminated, truncated, infos = super().step(action)
        if self._left == 0 and self._fault == "nan":
            reward = float("nan")
        self._played += [(int(action), float(reward), terminated), tuple(obs.tolist())]
        return obs, reward, terminated, truncated, infos


gym.register("Recorded-v0", entry_point=f"{__name__}:RecordedEnv")


def truth(episode: list[Any]) -> dict[tuple[float, ...], Transition]:
    """By brute force: every window that this episode's env steps allow, also where it was cut off."""
    observed, steps = episode[::2], episode[1::2]
    found = {}
    for t, (action, _, _) in enumerate(steps):
        taken = steps[t : t + N]
        terminated = taken[-1][2]
        found[observed[t]] = Transition(
            action,
            sum(GAMMA**k * reward for k, (_, reward, _) in enumerate(taken)),
            0.0 if terminated else GAMMA ** len(taken),
            observed[t + len(taken)],
        )
    return found


class GatedLog(MemoryLog):
    """Ends the test where chunks go on coming."""

    def append(self, slot: int, chunk_id: ChunkId, data: bytes) -> Any:
        assert chunk_id.seq <= DEADLINE_CHUNKS
        return super().append(slot, chunk_id, data)


def rollout_of(fault: str, at: int) -> tuple[Rollout, MemoryLog, list[list[Any]]]:
    """A rollout whose lanes go wrong at their ``at``-th env step, in chunks of 4 time steps."""
    episodes: list[list[Any]] = []
    log, ticks = GatedLog(), iter(range(1 << 30))
    log.take_lease(1)
    log.publish(1, plenty(), pack(1, 0, 1 << 30, LAYER))
    kwargs = {"fault": fault, "at": at, "note": episodes.append}
    envs = make_lanes(EnvConfig(id="Recorded-v0", kwargs=kwargs), LANES, restarts=0)
    config = ActorConfig(lanes=LANES, chunk_steps=4, epsilon=0.5, epsilon_alpha=0.0, flush_s=1_000)
    schema = schema_of(envs.envs[0])
    policy = make_policy(NetworkSpec(), schema)
    # a collect ends after DEADLINE_CHUNKS chunks at the latest: the clock shows how often it was read
    return Rollout(ActorId(RUN, 7, 0, 1, 1), envs, schema, policy, log, config, lambda: next(ticks)), log, episodes


def sampled(log: MemoryLog, schema: Any) -> tuple[dict[tuple[float, ...], Transition], Reader]:
    """All that a learner would train on of what has arrived."""
    mirror = Mirror(schema, 500)
    reader = reader_on(log, Codec(schema, RUN), mirror, N, GAMMA)
    reader.follow([0])
    reader.drain()
    reader.ledger.check()
    ids: npt.NDArray[Any] = np.arange(mirror.start, mirror.end)
    batch = mirror.gather(ids[mirror.sampleable(ids)])
    columns = (batch.s_tm1, batch.a_tm1, batch.r_t, batch.discount_t, batch.s_t)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {tuple(s): Transition(a, r, d, tuple(s_t)) for s, a, r, d, s_t in rows}, reader


@pytest.mark.parametrize("at", range(6, 15))
@pytest.mark.parametrize(
    ("fault", "error"), [("nan", EnvError), ("raises", LaneError), ("interrupted", KeyboardInterrupt)], ids=str
)
def test_an_actors_second_call_does_not_go_on_after_the_first_one_failed(
    fault: str, error: type[BaseException], at: int
) -> None:
    """Wherever in a chunk it failed: the second call, which was queued, and the flush fail of the same, and all that
    arrives is what was played."""
    rollout, log, episodes = rollout_of(fault, at)
    with pytest.raises(error) as first:
        rollout.collect(1_000)
    told = RuntimeError if fault == "interrupted" else error
    for call in (lambda: rollout.collect(50), rollout.fill, lambda: rollout.flush(50), rollout.ready):
        with pytest.raises(told) as again:
            call()
        assert first.value in (again.value, again.value.__cause__)
    arrived, reader = sampled(log, rollout.schema)
    expected = {s: transition for episode in episodes for s, transition in truth(episode).items()}
    chunks = (at - 1 + sum(at > end for end in (3, 4, 9, 11))) // 4
    assert reader.ledger.totals.chunks == chunks, "boundary rows between"
    assert len(arrived) >= LANES
    for s_tm1, transition in arrived.items():
        played = expected[s_tm1]
        assert (transition.a_tm1, transition.s_t) == (played.a_tm1, played.s_t)
        assert transition[1:3] == pytest.approx(played[1:3], rel=1e-6)
    assert not reader.ledger.totals.refused


def loop_of() -> LearnerLoop:
    """A learner with rows to learn from."""
    log = MemoryLog()
    replay = ReplayConfig(capacity_rows=500, min_rows=40, samples_per_insert=4.0)
    config = LearnerConfig(network=NetworkConfig(hidden=(4,)), batch=8, device="cpu")
    spec = LearnerSpec(RUN, SCHEMA, replay, config, fence=1, seed=0, slots=1, chunk_rows=16)
    loop = build_learner(spec, log, Publisher(log, 1))
    actor = FakeActor(lanes=2, p_end=0.1)
    for _ in range(10):
        actor.send(log, 8)
    return loop


def fail_once(after: int, calls: list[int], error: Exception, method: Any) -> Any:
    """The method, which raises at one of its calls."""

    def failing(*arguments: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == after:
            raise error
        return method(*arguments)

    return failing


def test_a_learners_second_slice_does_not_go_on_after_the_first_one_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is there a policy to evaluate or a state to write: the newest checkpoint is from before."""
    loop, calls, error = loop_of(), list[int](), ArithmeticError("in the middle of a cycle")
    monkeypatch.setattr(loop.learner, "update", fail_once(3, calls, error, loop.learner.update))
    with pytest.raises(ArithmeticError) as first:
        loop.train(60.0)
    updates, samples = loop.learner.updates, loop.ingest.limiter.samples
    assert (len(calls), updates) == (3, 2)
    for call in (lambda: loop.train(0.25), loop.cycle, loop.drain, loop.candidate, loop.state):
        with pytest.raises(ArithmeticError) as again:
            call()
        assert again.value is first.value
    assert (len(calls), loop.learner.updates, loop.ingest.limiter.samples) == (3, updates, samples)


def test_a_reader_that_was_interrupted_in_a_chunk_takes_no_further_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mirror has rows that no window or book has."""
    log = MemoryLog()
    reader = reader_on(log, Codec(SCHEMA, RUN), mirror := Mirror(SCHEMA, 100), N, GAMMA)
    reader.follow([0])
    actor = FakeActor()
    for _ in range(3):
        actor.send(log)
    monkeypatch.setattr(mirror, "add_transitions", fail_once(2, [], MemoryError("no room"), mirror.add_transitions))
    for _ in range(2):
        with pytest.raises(MemoryError, match="no room"):
            reader.poll()
        assert mirror.end == 8


def test_an_evaluator_that_raised_gives_no_further_verdict() -> None:
    at = {"fault": "raises", "at": 2, "note": print}
    evaluator = build_evaluator(
        EnvConfig(id="Recorded-v0", kwargs=at), EvalConfig(screen_episodes=1, confirm_episodes=2), NetworkSpec(), 0
    )
    with pytest.raises(LaneError, match="the bridge is down") as first:
        evaluator.screen(pack(1, 1, 0, LAYER))
    with pytest.raises(LaneError) as again:
        evaluator.screen(pack(1, 1, 0, LAYER))
    assert again.value is first.value
    evaluator.restart()
    with pytest.raises(LaneError) as anew:
        evaluator.screen(pack(1, 1, 0, LAYER))
    assert anew.value is not first.value, "its environments were made anew, and played"


class Ledger(Breakable):
    """Two numbers that have to be equal."""

    def __init__(self) -> None:
        self.left = self.right = 0

    @breakable
    def add(self, amount: int, error: BaseException | None = None) -> int:
        """Book an amount on both sides."""
        self.left += amount
        if error is not None:
            raise error
        self.right += amount
        return self.right


@pytest.mark.parametrize("error", [ValueError("first"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_what_broke_an_object_is_raised_again_and_ends_nothing_else(error: BaseException) -> None:
    """Ctrl-C and an exit are the exception: raised again they would end what calls now, so they are told of."""
    ledger = Ledger()
    assert ledger.add(2) == 2
    ledger.check_unbroken()
    with pytest.raises(type(error)):
        ledger.add(3, error)
    for call in (lambda: ledger.add(5), ledger.check_unbroken):
        with pytest.raises(ValueError if isinstance(error, ValueError) else RuntimeError) as again:
            call()
        assert again.value is error or again.value.__cause__ is error
    assert (ledger.left, ledger.right) == (5, 2)
