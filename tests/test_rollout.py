"""The actor's work: decoded from the log, row by row, against what the scripted environments must have done."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from lending import NONE, plenty
from numpy.testing import assert_allclose, assert_array_equal

from actors.actor_id import ActorId
from actors.config import ActorConfig, EnvConfig
from actors.envs import make_env, make_lanes
from actors.errors import EnvError
from actors.policy import make_policy
from actors.rollout import Rollout
from learner.networks import NetworkSpec
from learner.weights import pack
from replay.chunk import BOUNDARY, FIRST, TERMINATED, TRUNCATED, Chunk, Codec, Schema, check_order
from replay.chunk_log.memory_log import MemoryLog
from replay.chunk_log.protocol import ChunkId, Fenced, Full, LogError, Status, Unavailable, UnusableServer

RUN, SLOT, INCARNATION = "a-run", 3, 2
SCHEMA = Schema((3,), "float32", 2)
CODEC = Codec(SCHEMA, RUN)
LENGTHS = (3, 1, 5, 2)
END_FLAGS = (TERMINATED, TRUNCATED, TERMINATED | TRUNCATED)
W, B = np.array([[0, 0.01, 0.1], [0, -0.01, 0.2]], np.float32), np.array([0.5, -0.5], np.float32)


def weights(version: int, env_steps: int = 10**9) -> bytes:
    return pack(version, 0, env_steps, {"head.linear.weight": W, "head.linear.bias": B})


class Clock:
    """Time that passes by ``tick`` with each reading, and by what is slept."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now, self.tick = 0.0, tick
        self.slept: list[float] = []

    def __call__(self) -> float:
        self.now += self.tick
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class FakeLog(MemoryLog):
    """A log that fails as scripted, once per call, before or after it stored; it notes what was asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[tuple[LogError, bool]] = []
        self.appended: list[ChunkId] = []
        self.fetches = 0
        self.take_lease(1)
        self.publish(1, plenty(INCARNATION), weights(1))

    def append(self, slot: int, chunk_id: ChunkId, data: bytes) -> Status:
        self.appended.append(chunk_id)
        error, stored = self.failures.pop(0) if self.failures else (None, True)
        status = super().append(slot, chunk_id, data) if stored else self.status(slot)
        if error is not None:
            raise error
        return status

    def fetch_weights(self) -> bytes | None:
        self.fetches += 1
        return super().fetch_weights()

    def chunks(self) -> list[Chunk]:
        entries = self.read({SLOT: ChunkId()}, 1 << 30)
        return [CODEC.decode(entry.data, entry.slot, *entry.id) for entry in entries]


@dataclass
class Actor:
    """A rollout with its log, its clock, and how often its lanes were stepped."""

    log: FakeLog = field(default_factory=FakeLog)
    clock: Clock = field(default_factory=Clock)
    lanes: int = 2
    env: dict[str, Any] = field(default_factory=lambda: {"lengths": LENGTHS})
    config: dict[str, Any] = field(default_factory=dict)
    steps: int = 0

    def __post_init__(self) -> None:
        config = {"lanes": self.lanes, "chunk_steps": 4, "epsilon": 0.5, "epsilon_alpha": 0.0, **self.config}
        envs = make_lanes(EnvConfig(id="scripted_env:Scripted-v0", kwargs=self.env), self.lanes)
        step = envs.step

        def counted(actions: npt.NDArray[Any]) -> Any:
            self.steps += 1
            return step(actions)

        envs.step = counted  # type: ignore[method-assign]
        self.place = ActorId(RUN, 7, SLOT, 5, INCARNATION)
        self.policy = make_policy(NetworkSpec(), SCHEMA)
        self.rollout = Rollout(
            self.place, envs, SCHEMA, self.policy, self.log, ActorConfig(**config), self.clock, self.clock.sleep
        )

    def chunk(self) -> bool:
        """Collect and send one chunk, if it may; whether it is stored."""
        if not self.rollout.ready():
            return False
        self.rollout.fill()
        return self.rollout.send()


def columns(chunks: list[Chunk], name: str) -> npt.NDArray[Any]:
    """The chunks' rows in order, [T, E, ...]."""
    return np.concatenate([getattr(chunk, name) for chunk in chunks])


def scripted(seed: float) -> Any:
    """What a lane must leave: observation, flags, |reward|, row by row."""
    for episode in itertools.count():
        length = LENGTHS[episode % 4]
        for t in range(length):
            end = END_FLAGS[episode % 3] if t == length - 1 else 0
            yield [seed, episode, t], (FIRST if t == 0 else 0) | end, 100 * episode + t
        yield [seed, episode, length], BOUNDARY, 0


def test_the_rows_are_what_the_environments_did() -> None:
    """Over chunk edges: flags, rewards, and the next observation in the next row, also where an episode ends."""
    tested = Actor()
    assert all(tested.chunk() for _ in range(12))
    chunks = tested.log.chunks()
    obs, action, reward, flags = (columns(chunks, name) for name in ("obs", "action", "reward", "flags"))
    assert obs.shape == (48, 2, 3)
    seeds = [seed % 10_000 for seed in tested.place.seeds(2)[0] if seed is not None]
    for lane, seed in enumerate(seeds):
        for t, (expected_obs, expected_flags, size) in zip(range(48), scripted(seed), strict=False):
            assert obs[t, lane].tolist() == expected_obs
            assert flags[t, lane] == expected_flags
            assert reward[t, lane] == (-size if action[t, lane] else size)
    assert {0, 1} == set(action.ravel())


def test_q_values_are_the_actors_own() -> None:
    """q_max is the policy's in each row, q_taken that of the action taken, 0 in boundary rows."""
    tested = Actor()
    assert all(tested.chunk() for _ in range(8))
    chunks = tested.log.chunks()
    q = columns(chunks, "obs") @ W.T + B
    taken = np.take_along_axis(q, columns(chunks, "action")[..., None], 2)[..., 0]
    boundary = columns(chunks, "flags") == BOUNDARY
    assert boundary.any()
    assert_allclose(columns(chunks, "q_max"), q.max(2), rtol=1e-5, atol=1e-4)
    assert_allclose(columns(chunks, "q_taken"), np.where(boundary, 0, taken), rtol=1e-5, atol=1e-4)


def test_the_counters_are_cumulative_and_exclude_boundary_rows() -> None:
    """Each header: rows, env steps, episodes and returns of this incarnation so far, from the rows themselves."""
    tested = Actor()
    assert all(tested.chunk() for _ in range(12))
    chunks = tested.log.chunks()
    for k, chunk in enumerate(chunks, start=1):
        flags, reward = columns(chunks[:k], "flags"), columns(chunks[:k], "reward").astype(np.float64)
        assert (chunk.slot, chunk.incarnation, chunk.seq, chunk.weight_version) == (SLOT, INCARNATION, k, 1)
        assert chunk.counters.rows == flags.size == 8 * k
        assert chunk.counters.env_steps == (flags & BOUNDARY == 0).sum()
        assert chunk.counters.episodes == (flags & (TERMINATED | TRUNCATED) != 0).sum()
        finished = [
            reward[: np.flatnonzero(flags[:, lane] & (TERMINATED | TRUNCATED))[-1] + 1, lane].sum()
            for lane in range(2)
            if (flags[:, lane] & (TERMINATED | TRUNCATED)).any()
        ]
        assert chunk.counters.return_sum == pytest.approx(sum(finished))
    assert tested.rollout.counters == chunks[-1].counters


@pytest.mark.parametrize(("base", "alpha", "explores"), [(0.0, 0.0, 0.0), (1.0, 0.0, 1.0), (0.4, 0.0, 0.4)])
def test_exploration_by_epsilon(base: float, alpha: float, explores: float) -> None:
    """Of two actions an exploring step takes the greedy one half the time."""
    tested = Actor(config={"epsilon": base, "epsilon_alpha": alpha, "chunk_steps": 500})
    assert all(tested.chunk() for _ in range(2))
    chunks = tested.log.chunks()
    greedy = (columns(chunks, "obs") @ W.T + B).argmax(2)
    assert_allclose((columns(chunks, "action") != greedy).mean(), explores / 2, atol=0.04 if explores else 0)


def test_a_slot_has_its_lanes_place_on_the_ladder() -> None:
    """Slot 4 of 5 with two lanes has the ladder's last two of ten; the incarnation is not in it."""
    rates = []
    for incarnation in (1, 9):
        envs = make_lanes(EnvConfig(id="scripted_env:Scripted-v0"), 2)
        place = ActorId(RUN, 7, 4, 5, incarnation)
        log = FakeLog()
        log.publish(1, plenty(incarnation))
        config = ActorConfig(lanes=2, chunk_steps=2000, epsilon=0.9, epsilon_alpha=3.0)
        rollout = Rollout(place, envs, SCHEMA, make_policy(NetworkSpec(), SCHEMA), log, config, Clock())
        assert rollout.ready()
        rollout.fill()
        assert rollout.send()
        data = log.read({4: ChunkId()}, 1 << 30)[0].data
        chunk = CODEC.decode(data, 4, incarnation, 1)
        greedy = (chunk.obs @ W.T + B).argmax(2)
        rates.append(2 * (chunk.action != greedy).mean(0))
    expected = 0.9 ** (1 + 3.0 * np.array([8, 9]) / 9)
    assert_allclose(rates, [expected, expected], atol=0.06)


def test_an_actor_is_placed_anew_while_it_works() -> None:
    """Slot 3 of 5 with two lanes has the places 6 and 7 of 10; of 4 slots the last two of 8, of 16 the 7th and 8th
    of 32.
    Where the annealing is not over, it goes on from the run's env steps. Of 3 slots there is no slot 3."""
    ladder_of = {"epsilon": 0.4, "epsilon_alpha": 7.0, "epsilon_anneal_env_steps": 1000}
    tested = Actor(config={**ladder_of, "fetch_every_s": 0})
    assert tested.chunk()
    for slots, lanes in ((4, 8), (16, 32), (5, 10)):
        floor = tested.rollout.set_slot_count(slots)
        assert floor == pytest.approx([0.4 ** (1 + 7 * i / (lanes - 1)) for i in (6, 7)], rel=1e-12)
        assert_allclose(tested.rollout._exploration.epsilon, floor)
    tested.log.publish(1, plenty(INCARNATION), weights(2, env_steps=250))
    assert tested.chunk()
    floor = tested.rollout.set_slot_count(4)
    assert_allclose(tested.rollout._exploration.epsilon, 1 + (np.array(floor) - 1) / 4)
    with pytest.raises(ValueError, match="do not lie in"):
        tested.rollout.set_slot_count(3)


def test_an_actors_seconds_are_told_apart() -> None:
    """In steps, without credit, on the log, with weights: what they add up to is no more than the whole. Each fetch is
    counted with its bytes."""
    tested = Actor(clock=Clock(tick=0.01))
    work = tested.rollout.collect(2.0).work
    assert work.seconds == pytest.approx(2.0, abs=0.1)
    assert work.env_seconds == pytest.approx(0.01 * tested.steps)
    assert 0 < work.log_seconds < work.seconds
    assert (work.fetches, work.fetched_bytes, work.wait_seconds) == (1, len(weights(1)), 0)
    parts = work.env_seconds + work.log_seconds + work.fetch_seconds
    assert work.seconds / 4 < parts < work.seconds
    tested.log.publish(1, NONE)
    tested.rollout.send() if tested.rollout.in_doubt else tested.chunk()
    shut = tested.rollout.collect(2.0).work
    assert shut.wait_seconds == pytest.approx(sum(tested.clock.slept), abs=0.01 * len(tested.clock.slept) + 1e-6)
    assert shut.seconds - work.seconds == pytest.approx(2.0, abs=0.6)
    tested.log.publish(1, plenty(INCARNATION))
    tested.log.failures = [(Unavailable("away"), False)] * 100
    away = tested.rollout.collect(2.0).work
    assert away.log_seconds - shut.log_seconds > 1.5, "the pauses while the server is away are the server's"


def test_epsilon_anneals_on_the_runs_env_steps() -> None:
    """They come with the weights: random at 0, the ladder's floor (here 0) behind the annealing's end."""
    tested = Actor(config={"epsilon": 0.0, "epsilon_anneal_env_steps": 1000, "chunk_steps": 400, "fetch_every_s": 0})
    wrong = []
    for version, env_steps in ((2, 0), (3, 500), (4, 1000)):
        tested.log.publish(1, plenty(INCARNATION), weights(version, env_steps))
        assert tested.rollout.ready()
        tested.chunk()  # its reply announces the weights; the next chunk acts with them
        tested.chunk()
        chunk = tested.log.chunks()[-1]
        assert chunk.weight_version == version
        wrong.append((chunk.action != (chunk.obs @ W.T + B).argmax(2)).mean())
    assert_allclose(wrong, [0.5, 0.25, 0.0], atol=0.06)
    assert wrong[-1] == 0


def test_a_slow_environment_flushes_a_short_chunk() -> None:
    """A chunk closes at flush_s; the next goes on where it stopped. An env step reads the clock twice."""
    clock = Clock(tick=0.2)
    tested = Actor(clock=clock, config={"chunk_steps": 64, "flush_s": 1.0})
    assert all(tested.chunk() for _ in range(3))
    chunks = tested.log.chunks()
    assert [chunk.flags.shape for chunk in chunks] == [(3, 2)] * 3
    seed = columns(chunks, "obs")[0, 0, 0]
    assert columns(chunks, "obs")[:, 0].tolist() == [obs for obs, *_ in itertools.islice(scripted(seed), 9)]
    assert columns(chunks, "flags")[:, 0].tolist() == [flags for _, flags, _ in itertools.islice(scripted(seed), 9)]


def test_without_credit_the_lanes_stop() -> None:
    """From the chunk whose reply says so until there is credit again; the waiting is counted."""
    tested = Actor(clock=Clock(tick=1e-4))
    assert tested.chunk()
    tested.log.publish(1, NONE)
    assert tested.chunk()
    steps = tested.steps
    tested.rollout.collect(5.0)
    assert tested.steps == steps == 8
    assert tested.clock.now >= 5
    assert len(tested.clock.slept) >= 5
    assert max(tested.clock.slept) <= 0.6
    assert tested.rollout.counters.credit_wait_s == pytest.approx(sum(tested.clock.slept))
    tested.log.publish(1, plenty(INCARNATION))
    assert tested.chunk()
    assert tested.steps == 12


def test_nobody_acts_before_the_first_weights() -> None:
    """Credit without weights is no leave to act; nothing is fetched or flushed either."""
    log = FakeLog()
    log._weights = None
    tested = Actor(log=log, clock=Clock(tick=1e-4))
    tested.rollout.collect(1.0)
    assert tested.steps == tested.rollout.counters.rows == 0
    assert tested.rollout.flush(1.0)
    assert log.appended == []
    log.publish(1, plenty(INCARNATION), weights(1))
    assert tested.chunk()


@pytest.mark.parametrize(
    ("error", "stored"),
    [(Unavailable("away"), False), (Unavailable("away"), True), (Full("maxmemory"), False)],
    ids=["not stored", "stored", "full"],
)
def test_a_chunk_in_doubt_is_sent_again_under_its_id(
    error: LogError, stored: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is stepped meanwhile, nothing dropped, nothing doubled, whether the chunk was stored or not; the log has
    beginning and end."""
    caplog.set_level("INFO", "qherd")
    tested = Actor()
    assert tested.chunk()
    tested.log.failures = [(error, stored)] * 3
    assert not tested.chunk()
    steps = tested.steps
    assert not tested.chunk()
    assert not tested.chunk()
    assert tested.steps == steps == 8
    assert tested.chunk()
    assert tested.log.appended == [(2, 1), (2, 2), (2, 2), (2, 2), (2, 2), (2, 3)]
    chunks = tested.log.chunks()
    assert [chunk.seq for chunk in chunks] == [1, 2, 3]
    obs = columns(chunks, "obs")
    assert obs[:, 0].tolist() == [row for row, *_ in itertools.islice(scripted(obs[0, 0, 0]), 12)]
    assert chunks[-1].counters.rows == 24
    assert chunks[-1].counters.refusals == 3
    logged = [record.getMessage() for record in caplog.records]
    assert logged == [f"waits for the server: {error}", "the server takes and answers calls again"]


def test_a_lost_reply_to_a_fetch_keeps_the_chunk_once() -> None:
    """The append succeeded, the fetch of newer weights behind it did not: the same id again, stored once."""
    log = FakeLog()
    tested = Actor(log=log, config={"fetch_every_s": 0})
    assert tested.chunk()
    log.publish(1, plenty(INCARNATION), weights(2))
    fetch, failures = log.fetch_weights, [Unavailable("away")]

    def once() -> bytes | None:
        if failures:
            raise failures.pop()
        return fetch()

    log.fetch_weights = once  # type: ignore[method-assign]
    assert not tested.chunk()
    assert tested.chunk()
    assert [chunk.seq for chunk in log.chunks()] == [1, 2, 3]
    assert log.chunks()[-1].weight_version == 2


@pytest.mark.parametrize("error", [Fenced("newer"), UnusableServer("NOPERM")], ids=lambda error: type(error).__name__)
def test_what_does_not_pass_is_raised(error: LogError) -> None:
    tested = Actor()
    tested.log.failures = [(error, False)]
    with pytest.raises(type(error)):
        tested.rollout.collect(1.0)


def test_a_zombie_is_fenced_by_its_successors_chunk() -> None:
    """An older incarnation's chunk is refused by the log itself."""
    tested = Actor()
    tested.log.append(SLOT, ChunkId(INCARNATION + 1, 1), b"")
    with pytest.raises(Fenced):
        tested.chunk()


def test_weights_that_are_older_than_their_servers_word_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may restart with an older file between the question for the header and the one for the value: versions
    never go back, and nothing of older weights is loaded."""
    tested = Actor(config={"fetch_every_s": 0.0})
    tested.log.publish(1, plenty(INCARNATION), weights(2))
    assert tested.chunk()
    assert tested.rollout.weight_version == 2
    tested.log.publish(1, plenty(INCARNATION), weights(3))
    with monkeypatch.context() as older:
        older.setattr(tested.log, "fetch_weights", lambda: weights(1))
        older.setattr(tested.policy, "load", lambda arrays: pytest.fail("older weights were loaded"))
        assert tested.chunk()
    assert tested.rollout.weight_version == 2
    assert tested.chunk()
    assert tested.rollout.weight_version == 3


def test_weights_are_fetched_when_newer_and_not_too_often() -> None:
    """Ten chunks of the same version fetch once, however much time passes; newer ones wait for fetch_every_s."""
    eager = Actor(config={"fetch_every_s": 0.0})
    assert all(eager.chunk() for _ in range(10))
    assert eager.log.fetches == 1
    tested = Actor(config={"fetch_every_s": 1.0})
    assert all(tested.chunk() for _ in range(10))
    assert tested.log.fetches == 1
    for version in range(2, 12):
        tested.log.publish(1, plenty(INCARNATION), weights(version))
        tested.clock.now += 0.25
        assert tested.chunk()
    assert tested.log.fetches == 3
    assert [chunk.weight_version for chunk in tested.log.chunks()[-3:]] == [5, 9, 9]


def test_flush_closes_every_lane() -> None:
    """One boundary row per lane with the observation where it stands: the next row that the lane would have had."""
    tested = Actor()
    assert all(tested.chunk() for _ in range(2))
    assert tested.rollout.flush(1.0)
    *_, last = chunks = tested.log.chunks()
    assert last.flags.tolist() == [[BOUNDARY, BOUNDARY]]
    assert not last.reward.any()
    assert not last.q_taken.any()
    assert_allclose(last.q_max, (last.obs @ W.T + B).max(2), rtol=1e-5)
    obs = columns(chunks, "obs")
    assert obs[:, 1].tolist() == [row for row, *_ in itertools.islice(scripted(obs[0, 1, 0]), 9)]
    assert (last.counters.rows, last.counters.env_steps) == (18, chunks[1].counters.env_steps)


def test_a_flush_after_a_boundary_row_begins_an_episode_and_ends_it() -> None:
    """Each lane's rows keep their order: a boundary row is followed by a first one, also where that is the last."""
    for steps in range(1, 8):
        tested = Actor(config={"chunk_steps": steps})
        assert tested.chunk()
        assert tested.rollout.flush(1.0)
        flags = columns(tested.log.chunks(), "flags")
        check_order(flags)
        assert flags[-1].tolist() == [BOUNDARY | FIRST * (steps in (4, 6))] * 2


def test_flush_sends_what_is_in_doubt_first() -> None:
    """In order, under the same id; and gives up at its deadline."""
    tested = Actor(clock=Clock(tick=1e-3))
    tested.log.failures = [(Unavailable("away"), False)] * 3
    assert not tested.chunk()
    assert tested.rollout.flush(1.0)
    assert [chunk.seq for chunk in tested.log.chunks()] == [1, 2]
    tested.log.failures = [(Unavailable("away"), False)] * 10_000
    started = tested.clock.now
    assert not tested.rollout.flush(1.0)
    assert 1.0 <= tested.clock.now - started < 2.0


def test_an_idle_actor_has_nothing_to_flush() -> None:
    tested = Actor()
    assert tested.rollout.ready()
    assert tested.rollout.flush(1.0)
    assert tested.log.appended == []


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy's, on the way to the error
@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"bad_reward": math.nan}, "reward nan"),
        ({"bad_reward": math.inf}, "reward inf"),
        ({"bad_reward": 1e300}, r"reward 1e\+300"),
        ({"bad_obs": math.nan}, "observation"),
        ({"bad_obs": -math.inf}, "observation"),
    ],
)
def test_what_is_not_finite_is_named(bad: dict[str, float], named: str) -> None:
    """The learner would refuse the chunk without saying whose fault it is."""
    tested = Actor(env={"lengths": LENGTHS, **bad})
    assert tested.rollout.ready()
    with pytest.raises(EnvError, match=f"{named}.*env step"):
        tested.rollout.fill()
    assert tested.log.appended == []


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_other_autoreset_modes_are_refused(mode: AutoresetMode) -> None:
    """Their rows would be read wrongly."""
    config = EnvConfig(id="scripted_env:Scripted-v0")
    envs = SyncVectorEnv([lambda: make_env(config, training=True)], autoreset_mode=mode)
    with pytest.raises(EnvError, match="NEXT_STEP"):
        Rollout(
            ActorId(RUN, 0, 0, 1, 1), envs, SCHEMA, make_policy(NetworkSpec(), SCHEMA), FakeLog(), ActorConfig(lanes=1)
        )


def test_all_lanes_slots_and_incarnations_have_seeds_of_their_own() -> None:
    """Gymnasium's own scheme, seed + lane, overlaps between actors; also other runs' seeds differ."""
    seeds = [
        seed
        for run, slot, incarnation in itertools.product((0, 1), range(8), range(1, 5))
        for seed in ActorId(RUN, run, slot, 8, incarnation).seeds(32)[0]
    ]
    assert len(set(seeds)) == len(seeds) == 2 * 8 * 4 * 32
    draws = {ActorId(RUN, 0, slot, 8, incarnation).seeds(1)[1].random() for slot in range(8) for incarnation in (1, 2)}
    assert len(draws) == 16
    assert ActorId(RUN, 0, 1, 8, 1).seeds(4)[0] == ActorId(RUN, 0, 1, 2, 1).seeds(4)[0]


def test_a_lane_is_seeded_once() -> None:
    """Not again at each reset: its episodes would all be alike."""
    tested = Actor()
    seen: list[int | None] = []
    for env in tested.rollout.lanes:
        reset: Callable[..., Any] = env.reset

        def noted(*, reset: Callable[..., Any] = reset, seed: int | None = None, **rest: Any) -> Any:
            seen.append(seed)
            return reset(seed=seed, **rest)

        env.reset = noted
    assert all(tested.chunk() for _ in range(6))
    assert len(seen) > 4
    assert set(seen) == {None}


def test_the_same_place_leaves_the_same_rows() -> None:
    first, again = Actor(), Actor()
    for tested in (first, again):
        assert all(tested.chunk() for _ in range(5))
    for name in ("obs", "action", "reward", "flags"):
        assert_array_equal(columns(first.log.chunks(), name), columns(again.log.chunks(), name))
