"""Lanes whose environments raise: made anew, their rows as if truncated there, the other lanes' as if nothing was."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lending import plenty
from scripted_env import ENDS, RaisingEnv

from actors.actor_id import ActorId
from actors.builders import build_actor
from actors.config import ActorConfig, EnvConfig
from actors.envs import make_lanes
from actors.errors import EnvError
from actors.lanes import LaneError
from actors.policy import make_policy
from actors.rollout import Rollout
from learner.networks import NetworkSpec
from learner.weights import pack
from replay.chunk import BOUNDARY, FIRST, TERMINATED, TRUNCATED, Chunk, Codec, Schema
from replay.chunk_log.memory_log import MemoryLog
from replay.chunk_log.protocol import ChunkId
from replay.nstep import LaneWindows

RUN = "a-run"
SCHEMA = Schema((3,), "float32", 2)
LENGTHS = (3, 1, 5, 2)
END_FLAGS = dict(zip(ENDS, (TERMINATED, TRUNCATED, TERMINATED | TRUNCATED), strict=True))
ME = ActorId(RUN, 7, 0, 1, 1)
Where = tuple[str, int, int, int]
"""What raises: "step" or "reset", of the lane's how-manieth environment, in which episode, at which time."""


class Faults:
    """Raises at the given places, by lane; each environment is known by its seed."""

    def __init__(self, lanes: int, places: dict[int, set[Where]] | None = None, rebuilds: int = 40) -> None:
        self.places = places or {}
        self.makes_before_failing = 10**9
        self._whose = {}
        for lane, seed in enumerate(ME.seeds(lanes)[0]):
            for number, each in enumerate(seeds(seed, rebuilds)):
                self._whose[each % 10_000] = lane, number

    def __call__(self, what: str, env: RaisingEnv) -> None:
        seed, episode, t = env.at
        if what == "make":
            self.makes_before_failing -= 1
            if self.makes_before_failing < 0:
                raise OSError("no room for another")
            return
        if seed == -1:  # before its first reset: not seeded yet
            return
        lane, number = self._whose[seed]
        if (what, number, episode, t) in self.places.get(lane, ()):
            raise RuntimeError(f"the bridge is down\nat {t}")


def seeds(first: int | None, rebuilds: int) -> list[int]:
    """A lane's seed, and those of the environments that were made anew in it."""
    assert first is not None
    streams = (np.random.SeedSequence(first, spawn_key=(number,)) for number in range(1, rebuilds + 1))
    return [first, *(int(stream.generate_state(1)[0]) >> 2 for stream in streams)]


def open_log() -> MemoryLog:
    """A log with credit and weights by which all Q values are 0."""
    log = MemoryLog()
    layer = {"head.linear.weight": np.zeros((2, 3), np.float32), "head.linear.bias": np.zeros(2, np.float32)}
    log.publish(1, plenty(), pack(1, 0, 0, layer))
    return log


class Actor:
    """A rollout over RaisingEnv and what it sent."""

    def __init__(self, faults: Faults, lanes: int = 2, chunk_steps: int = 4, restarts: int = 40) -> None:
        self.log = open_log()
        config = ActorConfig(lanes=lanes, chunk_steps=chunk_steps, epsilon=1.0, epsilon_alpha=0.0)
        env = EnvConfig(id="scripted_env:Raising-v0", kwargs={"fault": faults, "lengths": LENGTHS})
        self.envs = make_lanes(env, lanes, restarts)
        self.rollout = Rollout(ME, self.envs, SCHEMA, make_policy(NetworkSpec(), SCHEMA), self.log, config, lambda: 0.0)

    def work(self, chunks: int) -> list[Chunk]:
        """Collect and send so many chunks; all that were sent, decoded (which checks their flags)."""
        for _ in range(chunks):
            assert self.rollout.ready()
            self.rollout.fill()
            assert self.rollout.send()
        codec = Codec(SCHEMA, RUN)
        return [codec.decode(entry.data, entry.slot, *entry.id) for entry in self.log.read({0: ChunkId()}, 1 << 30)]


def column(chunks: list[Chunk], name: str) -> npt.NDArray[Any]:
    return np.concatenate([getattr(chunk, name) for chunk in chunks])


def lived(seed: int | None, raises: set[Where]) -> Iterator[tuple[list[float], int, float]]:
    """What a lane must leave, row by row: observation, flags, |reward|."""
    for number, each in enumerate(seeds(seed, 40)):
        yield from _one_environment(number, each % 10_000, raises)


def _one_environment(number: int, seed: int, raises: set[Where]) -> Iterator[tuple[list[float], int, float]]:
    for episode in itertools.count():
        length = LENGTHS[episode % 4]
        for t in range(length):
            first = FIRST if t == 0 else 0
            if ("step", number, episode, t) in raises:
                yield [seed, episode, t], BOUNDARY | first, 0
                return
            yield (
                [seed, episode, t],
                first | (END_FLAGS[ENDS[episode % 3]] if t == length - 1 else 0),
                100 * episode + t,
            )
        yield [seed, episode, length], BOUNDARY, 0
        if ("reset", number, episode, length) in raises:
            return


def check(chunks: list[Chunk], places: dict[int, set[Where]]) -> None:
    """Every lane's rows and the counters of every header."""
    obs, flags, reward, action = (column(chunks, name) for name in ("obs", "flags", "reward", "action"))
    for lane, seed in enumerate(ME.seeds(flags.shape[1])[0]):
        for t, (see, flag, size) in zip(range(len(flags)), lived(seed, places.get(lane, set())), strict=False):
            assert (obs[t, lane].tolist(), flags[t, lane]) == (see, flag), (lane, t)
            assert reward[t, lane] == (-size if action[t, lane] else size)
    for k, chunk in enumerate(chunks, start=1):
        so_far = column(chunks[:k], "flags")
        ends = so_far & (TERMINATED | TRUNCATED) != 0
        assert chunk.counters.rows == so_far.size
        assert chunk.counters.env_steps == (so_far & BOUNDARY == 0).sum()
        assert chunk.counters.episodes == ends.sum()
        assert chunk.counters.return_sum == pytest.approx(returns(column(chunks[:k], "reward"), so_far))


def returns(reward: npt.NDArray[Any], flags: npt.NDArray[Any]) -> float:
    """The sum over all episodes that ended, one row after another."""
    total = 0.0
    for lane in range(flags.shape[1]):
        episode = 0.0
        for r, flag in zip(reward[:, lane].tolist(), flags[:, lane].tolist(), strict=True):
            episode = r if flag & FIRST else episode + r
            total += episode if flag & (TERMINATED | TRUNCATED) else 0.0
    return total


def test_a_raising_step_is_a_boundary_row_of_its_lane_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Lane 0, whose first episode has 3 env steps, raises in the third; the chunk has 4 rows per lane. Logged with the
    traceback."""
    places = {0: {("step", 0, 0, 2)}}
    tested = Actor(Faults(2, places))
    chunks = tested.work(3)
    first, anew = (seed % 10_000 for seed in seeds(ME.seeds(2)[0][0], 1))
    assert chunks[0].obs[:, 0].tolist() == [[first, 0, 0], [first, 0, 1], [first, 0, 2], [anew, 0, 0]]
    assert chunks[0].flags[:, 0].tolist() == [FIRST, 0, BOUNDARY, FIRST]
    assert chunks[0].reward[2, 0] == chunks[0].q_taken[2, 0] == 0
    assert chunks[0].flags[:, 1].tolist() == [FIRST, 0, TERMINATED, BOUNDARY]
    assert (chunks[0].counters.rows, chunks[0].counters.env_steps, chunks[0].counters.episodes) == (8, 6, 1)
    check(chunks, places)
    assert [record.getMessage() for record in caplog.records] == ["lane 0: its environment raised and is made anew"]
    assert "in __call__" in caplog.text
    assert "RuntimeError: the bridge is down" in caplog.text


@pytest.mark.parametrize("at", [0, 1, 2], ids=["first row", "middle", "last"])
@pytest.mark.parametrize("chunk_steps", [1, 2, 3, 7])
def test_wherever_the_chunk_ends(at: int, chunk_steps: int) -> None:
    """The row after the broken one is an episode's first, also in the next chunk; FIRST and BOUNDARY may be one row."""
    places = {0: {("step", 0, 0, at), ("step", 1, 2, at)}, 1: {("step", 0, 1, 0)}}
    check(Actor(Faults(2, places), chunk_steps=chunk_steps).work(12), places)


def test_a_raising_reset_leaves_the_boundary_row_it_has_anyway() -> None:
    places = {0: {("reset", 0, 0, 3), ("reset", 1, 1, 1)}}
    check(Actor(Faults(2, places)).work(6), places)


def test_no_window_reaches_across_the_rebuild() -> None:
    """It bootstraps where the lane raised, discounted as a truncation: 2 rewards for n = 3, not 0."""
    chunk = Actor(Faults(1, {0: {("step", 0, 2, 2)}}), lanes=1, chunk_steps=16).work(1)[0]
    (row,) = np.flatnonzero((chunk.obs[:, 0, 1:] == (2, 0)).all(1))[:1]
    rows = np.arange(16)[:, None]
    closed = LaneWindows(1, 3, 0.5).extend(chunk.reward, chunk.flags, rows, chunk.q_taken, chunk.q_max)
    at = closed.row.tolist().index(row)
    assert (closed.discount_t[at], closed.bootstrap_row[at]) == (0.25, row + 2)
    assert row + 2 not in closed.row
    assert chunk.obs[row + 2, 0, 1:].tolist() == [2, 2]


@settings(max_examples=60, deadline=None)
@given(
    chunk_steps=st.integers(1, 9),
    places=st.lists(
        st.sets(
            st.tuples(st.just("step"), st.integers(0, 5), st.integers(0, 4), st.integers(0, 4))
            | st.tuples(st.just("reset"), st.integers(0, 5), st.integers(0, 4), st.integers(1, 5)),
            max_size=12,
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_any_lanes_may_raise_anywhere(chunk_steps: int, places: list[set[Where]]) -> None:
    by_lane = dict(enumerate(places))
    check(Actor(Faults(len(places), by_lane), len(places), chunk_steps).work(40 // chunk_steps), by_lane)


def test_what_was_made_anew_is_told_once() -> None:
    tested = Actor(Faults(2, {1: {("step", 0, 0, 2), ("reset", 1, 1, 1)}}))
    tested.work(4)
    assert tested.rollout.pop_rebuilt() == (
        "lane 1: RuntimeError: the bridge is down, after env step 2 of it",
        "lane 1: RuntimeError: the bridge is down, after env step 6 of it",
    )
    assert tested.rollout.pop_rebuilt() == ()
    heartbeat = tested.rollout.collect(-1.0)
    assert (heartbeat.counters, heartbeat.rebuilt) == (tested.rollout.counters, ())


def test_the_old_environment_is_closed() -> None:
    closed: list[tuple[int, int, int]] = []
    tested = Actor(Faults(1, {0: {("step", 0, 0, 2)}}), lanes=1)
    broken = tested.envs.envs[0].unwrapped

    def close() -> None:
        closed.append((0, 0, 0))
        raise OSError("closed already")  # which is nobody's business any more

    broken.close = close  # type: ignore[method-assign]
    tested.work(1)
    assert len(closed) == 1
    assert tested.envs.envs[0].unwrapped is not broken


def test_beyond_its_budget_the_lane_raises_its_own_words() -> None:
    """Counted per lane: two of lane 0 and two of lane 1 are allowed, the third of lane 0 is not."""
    often = {("step", number, 0, 1) for number in range(3)}
    tested = Actor(Faults(2, {0: often, 1: {("step", 0, 0, 1), ("step", 1, 0, 1)}}), restarts=2)
    with pytest.raises(LaneError, match=r"lane 0 of .*Raising-v0 died 3 times .*allows 2.*RuntimeError: the bridge is"):
        tested.work(3)


def test_what_cannot_be_made_anew_raises_both_reasons() -> None:
    faults = Faults(1, {0: {("step", 0, 0, 1)}})
    tested = Actor(faults, lanes=1)
    faults.makes_before_failing = 0
    with pytest.raises(LaneError, match=r"lane 0 of .*OSError: no room for another.*RuntimeError: the bridge is down"):
        tested.work(1)


def test_a_first_reset_that_raises_is_treated_alike() -> None:
    """As the actor starts: the lane begins with another environment."""
    raised: list[str] = []

    def once(what: str, env: RaisingEnv) -> None:
        if what == "reset" and not raised:
            raised.append(what)
            raise RuntimeError("not yet")

    env = EnvConfig(id="scripted_env:Raising-v0", kwargs={"fault": once})
    log = MemoryLog()
    rollout = build_actor(ME, env, ActorConfig(lanes=2), NetworkSpec(), log)
    assert rollout.pop_rebuilt() == ("lane 0: RuntimeError: not yet, after env step 0 of it",)


def test_a_keyboards_interrupt_is_no_fault() -> None:
    def interrupt(what: str, env: RaisingEnv) -> None:
        if what == "step":
            raise KeyboardInterrupt

    lanes = make_lanes(EnvConfig(id="scripted_env:Raising-v0", kwargs={"fault": interrupt}), 1)
    lanes.reset(seed=[1])
    with pytest.raises(KeyboardInterrupt):
        lanes.step(np.array([0]))


def test_no_lane_is_given_a_seed_twice() -> None:
    """Of many lanes, actors, incarnations and rebuilds."""
    actors = (ActorId(RUN, 7, slot, 4, incarnation) for slot in range(4) for incarnation in (1, 2))
    all_seeds = [each for actor in actors for lane in actor.seeds(16)[0] for each in seeds(lane, 10)]
    assert len(set(all_seeds)) == len(all_seeds) == 4 * 2 * 16 * 11


def test_other_lanes_observations_are_their_own() -> None:
    """SyncVectorEnv reuses its buffers: what the rows have of each lane is what that lane showed."""
    calm, broken = (Actor(Faults(3, places), lanes=3).work(6) for places in ({}, {1: {("step", 0, 2, 3)}}))
    for name in ("obs", "flags", "action", "reward"):
        np.testing.assert_array_equal(column(calm, name)[:, [0, 2]], column(broken, name)[:, [0, 2]])


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy's, on the way to the error
@pytest.mark.parametrize(
    ("bad", "what"), [({"_bad_reward": np.nan}, "the reward nan"), ({"_bad_obs": np.inf}, "an observation")]
)
def test_what_is_not_finite_has_its_environment_lane_and_env_step(bad: dict[str, float], what: str) -> None:
    """The second lane's episodes have 3, 1 and 5 env steps: at (episode 2, time 2) it has taken 6 of them."""
    config = EnvConfig(id="scripted_env:Scripted-v0", kwargs={"lengths": LENGTHS, "bad_at": (2, 2)})
    envs, log = make_lanes(config, 2), open_log()
    vars(envs.envs[1].unwrapped).update(bad)
    rollout = Rollout(
        ME, envs, SCHEMA, make_policy(NetworkSpec(), SCHEMA), log, ActorConfig(lanes=2, chunk_steps=4), lambda: 0.0
    )
    for chunk in range(3):
        assert rollout.ready()
        if chunk == 2:
            with pytest.raises(EnvError, match=rf"Scripted-v0 returned {what}.* in lane 1 after env step 6 of it"):
                rollout.fill()
        else:
            rollout.fill()
            rollout.send()
