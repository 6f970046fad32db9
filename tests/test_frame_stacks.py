"""Single-frame storage: every stack that can be sampled is the one that the environment itself would have shown."""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import redis
from chunk_makers import RUN, FakeActor, append, reader_on, spoilt
from gymnasium.wrappers import FrameStackObservation, TimeLimit, TransformObservation
from hypothesis import given, settings
from hypothesis import strategies as st
from lending import plenty
from scripted_env import ScriptedEnv

from actors.actor_id import ActorId
from actors.config import ActorConfig, EnvConfig
from actors.contract import Checked
from actors.envs import FrameStack, make_env, make_lanes, schema_of, stack_of
from actors.policy import make_policy
from actors.rollout import Rollout
from learner.networks import NetworkSpec
from learner.weights import pack
from replay.chunk import BOUNDARY, FIRST, TERMINATED, Chunk, Codec, Schema
from replay.chunk_log.memory_log import MemoryLog
from replay.chunk_log.redis_log import RedisLog
from replay.mirror import Mirror
from replay.samplers.prioritised import PrioritisedSampler
from replay.storage import Device, Ram, Storage

WRAPPERS = (FrameStack, FrameStackObservation)


class Recorder:
    """Naive: keeps the whole stack of every row that arrived, as FrameStackObservation would have made it."""

    def __init__(self, stack: int) -> None:
        self._stack = stack
        self._lanes: dict[tuple[int, int], deque[int]] = {}
        self.stacks: dict[int, list[int]] = {}
        self.boundary: set[int] = set()

    def arrive(self, chunk: Chunk, broken: bool) -> None:
        """``broken``: rows of this slot were lost before this chunk."""
        for lane in range(chunk.flags.shape[1]):
            frames = self._lanes.setdefault((chunk.slot, lane), deque(maxlen=self._stack))
            if broken:
                frames.clear()
            for obs, flags in zip(chunk.obs[:, lane, 0].astype(int), chunk.flags[:, lane], strict=True):
                if flags & FIRST:
                    frames.extend([int(obs)] * (self._stack - 1))
                frames.append(int(obs))
                if len(frames) == self._stack:  # shorter: frames of this episode were lost
                    self.stacks[int(obs)] = list(frames)
                if flags & BOUNDARY:
                    self.boundary.add(int(obs))


class Herd:
    """Two actors whose frames count up, so that each names its row; reader and mirror; and the recorder."""

    def __init__(self, stack: int, n: int, lanes: int, capacity: int, p_end: float, seed: int, where: Storage) -> None:
        self.schema = Schema((1,), "float32", 4, stack)
        numbers = itertools.count()
        self.actors = [FakeActor(slot, lanes, seed, p_end, numbers) for slot in range(2)]
        self.log, self.mirror = MemoryLog(), Mirror(self.schema, capacity, where)
        self.sampler = PrioritisedSampler(self.mirror, np.random.default_rng(seed), 0.6, 0.4, 100)
        self.reader = reader_on(self.log, Codec(self.schema, RUN), self.mirror, n, 0.9)
        self.reader.follow(range(2))
        self.recorder = Recorder(stack)
        self.names: list[int] = []  # by row: the frame's number
        self._broken = [False, False]

    def step(self, time_steps: int, fate: str, slot: int = 0) -> None:
        """Send one chunk that arrives, is lost, arrives spoilt, or is the first of a new incarnation."""
        if fate == "restart":
            self.actors[slot].restart()
        chunk = self.actors[slot].chunk(time_steps)
        if fate == "spoilt":
            append(self.log, chunk, spoilt(chunk), self.schema)
        elif fate != "lost":
            append(self.log, chunk, schema=self.schema)
        self.reader.poll()
        self._broken[slot] |= fate != "arrives"
        if fate not in ("lost", "spoilt"):
            self.recorder.arrive(chunk, self._broken[slot])
            self.names += chunk.obs.ravel().astype(int).tolist()
            self._broken[slot] = False

    def check(self) -> int:
        """Compare all that can be sampled with the recorder; returns how many rows that is."""
        alive = np.arange(self.mirror.start, self.mirror.end)
        rows = alive[self.mirror.sampleable(alive)]
        assert len(rows) == self.mirror.sampleable_rows == np.count_nonzero(self.sampler._tree.weights)
        batch = self.mirror.gather(rows)
        oldest = self.names[self.mirror.start] if len(alive) else 0
        for row, s_tm1, s_t in zip(
            rows.tolist(), batch.s_tm1[..., 0].tolist(), batch.s_t[..., 0].tolist(), strict=True
        ):
            name = self.names[row]
            assert name not in self.recorder.boundary
            assert s_tm1 == self.recorder.stacks[name]
            assert s_t == self.recorder.stacks[int(s_t[-1])]
            assert min(s_tm1) >= oldest
        return len(rows)


FATES = ["arrives"] * 8 + ["lost", "spoilt", "restart"]


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    stack=st.integers(2, 5),
    n=st.integers(1, 4),
    lanes=st.integers(1, 3),
    capacity=st.integers(15, 60),
    p_end=st.sampled_from([0.0, 0.1, 0.3, 0.9]),
    seed=st.integers(0, 1 << 16),
    steps=st.lists(st.tuples(st.integers(1, 5), st.sampled_from(FATES), st.integers(0, 1)), min_size=1, max_size=20),
)
def test_every_stack_equals_the_recorders(
    stack: int, n: int, lanes: int, capacity: int, p_end: float, seed: int, steps: list[tuple[int, str, int]]
) -> None:
    """Padding at starts, boundary frames at ends, chunk edges, the ring's seam, losses, restarts, eviction."""
    herd = Herd(stack, n, lanes, capacity, p_end, seed, Ram())
    for time_steps, fate, slot in steps:
        herd.step(time_steps, fate, slot)
        herd.check()


def test_no_more_rows_are_passed_over_than_must_be() -> None:
    """Exact, not merely absent: with all rows there, just the open windows, the boundary rows and those rows are not
    sampleable whose stack reaches behind the oldest row."""
    herd = Herd(stack=4, n=2, lanes=1, capacity=60, p_end=0.1, seed=3, where=Ram())
    slots: list[int] = []
    for step in range(120):
        slot = int(step % 25 == 0)  # the second actor is so slow that all its rows are evicted between two chunks
        herd.step(3, "arrives", slot)
        slots += [slot] * 3
        found = herd.check()
        start, end = herd.mirror.start, herd.mirror.end
        expected = 0
        for lane in range(2):
            rows = [row for row in range(start, end) if slots[row] == lane]
            for at, row in enumerate(rows):
                name = herd.names[row]
                follow = [herd.names[r] for r in rows[at : at + 3]]
                open_window = len(follow) < 3 and not any(f in herd.recorder.boundary for f in follow)
                evicted = min(herd.recorder.stacks[name]) < herd.names[start]
                expected += not (name in herd.recorder.boundary or open_window or evicted)
        assert found == expected
    assert herd.mirror.end > 5 * 60


def test_an_episode_that_goes_on_after_its_end_in_the_next_chunk_is_refused_and_not_stacked_across() -> None:
    """The codec sees one chunk at a time and the reader the row before it; an actor with such a defect must not mix
    frames of two episodes, nor those on both sides of what was refused."""
    herd = Herd(stack=3, n=1, lanes=1, capacity=60, p_end=0.0, seed=0, where=Ram())
    actor = herd.actors[0]
    ending = actor.reflagged(actor.chunk(4), np.array([[FIRST], [0], [TERMINATED], [BOUNDARY]], np.uint8))
    for chunk in (ending, actor.chunk(4), actor.chunk(4)):
        append(herd.log, chunk, schema=herd.schema)
    herd.reader.poll()
    assert herd.reader.ledger.totals.refused == {"flags": 1}
    rows = np.flatnonzero(herd.mirror.sampleable(np.arange(8)))
    assert rows.tolist() == [0, 1, 2, 6]
    assert herd.mirror.gather(np.array([6])).s_tm1[0, :, 0].tolist() == [8, 9, 10]


def test_the_same_on_a_device() -> None:
    """Gathered by torch, as tensors."""
    torch = pytest.importorskip("torch")
    herd = Herd(stack=3, n=2, lanes=2, capacity=40, p_end=0.2, seed=1, where=Device(torch.device("cpu")))
    for _ in range(30):
        herd.step(3, "arrives")
        herd.check()
    assert isinstance(herd.mirror.gather(np.array([herd.mirror.end - 12])).s_tm1, torch.Tensor)


# Through a real actor, against the environment's own wrapper.


class Tape(gym.Wrapper[Any, Any, Any, Any]):
    """Notes each observation of the wrapper that it is around, by the newest frame."""

    seen: dict[tuple[float, ...], npt.NDArray[Any]]

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.seen = {}

    def _note(self, obs: npt.NDArray[Any]) -> None:
        self.seen[tuple(obs[-1].tolist())] = obs.copy()

    def reset(self, **kwargs: Any) -> Any:
        obs, info = self.env.reset(**kwargs)
        self._note(obs)
        return obs, info

    def step(self, action: Any) -> Any:
        result = self.env.step(action)
        self._note(result[0])
        return result


def test_samples_are_what_the_environment_showed() -> None:
    """A real rollout over FrameStackObservation: one frame per row is sent, and each sample is the wrapper's stack."""
    config = EnvConfig(id="scripted_env:Scripted-v0", kwargs={"lengths": (3, 1, 9, 2, 6)}, frame_stack=4)
    lanes = make_lanes(config, 2)
    tapes = [Tape(env) for env in lanes.envs]
    schema = schema_of(lanes.envs[0])
    lanes.envs = tapes  # type: ignore[assignment]
    assert schema == Schema((3,), "float32", 2, stack=4)
    log, mirror = MemoryLog(), Mirror(schema, 1000)
    layer = {"head.linear.weight": np.zeros((2, 12), np.float32), "head.linear.bias": np.zeros(2, np.float32)}
    log.publish(1, plenty(), pack(1, 0, 0, layer))
    place = ActorId(RUN, 7, 0, 1, 1)
    rollout = Rollout(
        place, lanes, schema, make_policy(NetworkSpec(), schema), log, ActorConfig(lanes=2, chunk_steps=5)
    )
    reader = reader_on(log, Codec(schema, RUN), mirror, 3, 0.9)
    reader.follow([0])
    for _ in range(30):
        assert rollout.ready()
        rollout.fill()
        rollout.send()
    assert rollout.flush(1.0)
    reader.poll()
    rows = np.flatnonzero(mirror.sampleable(np.arange(mirror.end)))
    assert len(rows) == rollout.counters.env_steps
    batch = mirror.gather(rows)
    seen = tapes[0].seen | tapes[1].seen
    for s_tm1, s_t in zip(batch.s_tm1, batch.s_t, strict=True):
        np.testing.assert_array_equal(s_tm1, seen[tuple(s_tm1[-1].tolist())])
        np.testing.assert_array_equal(s_t, seen[tuple(s_t[-1].tolist())])


def test_bytes_per_env_step_of_stacked_pictures() -> None:
    """4 x 84 x 84 uint8: at most 7.3 kB in the chunk and in the mirror, not four times that."""
    schema = Schema((84, 84), "uint8", 6, stack=4)
    assert schema.row_bytes <= 7_300
    assert Mirror.planned_bytes(schema, 1000) <= 7_300 * 1000
    assert schema.input_shape == (4, 84, 84)


def test_bytes_per_env_step_on_a_real_server(server_url: str, run_name: str) -> None:
    """At most 7.3 kB, the server's own overhead and the boundary rows of short episodes included; in the mirror too."""
    schema = Schema((84, 84), "uint8", 6, stack=4)
    actor = FakeActor(lanes=16, p_end=0.01)
    with contextlib.closing(RedisLog(server_url, run_name)) as log, redis.Redis.from_url(server_url) as client:
        env_steps = rows = 0
        for _ in range(8):
            chunk = actor.chunk(16)  # the default chunk: 16 lanes x 16 steps
            pictures = np.zeros((*chunk.flags.shape, 84, 84), np.uint8)
            append(log, replace(chunk, obs=pictures), schema=schema)
            env_steps += chunk.env_steps
            rows += chunk.rows
        stored = client.memory_usage(log.chunks_key(0), samples=0)
    assert rows > env_steps > 0.97 * rows
    assert 7056 < stored / env_steps <= 7_300
    assert Mirror.planned_bytes(schema, rows) / env_steps <= 7_300


def test_a_stack_that_the_environment_brings_is_seen() -> None:
    """Below wrappers that leave observations alone; what else there may be around it, nobody can know."""
    plain = ScriptedEnv()
    stacked: gym.Env[Any, Any] = FrameStackObservation(plain, 3)
    assert stack_of(plain) == 1
    assert stack_of(stacked) == 3
    assert stack_of(TimeLimit(stacked, 5)) == 3
    assert stack_of(FrameStackObservation(plain, 3, padding_type="zero")) == 1
    assert stack_of(TransformObservation(stacked, lambda obs: obs * 2, stacked.observation_space)) == 1
    assert schema_of(TimeLimit(stacked, 5)) == Schema((3,), "float32", 2, stack=3)
    zero = FrameStackObservation(plain, 3, padding_type="zero")
    assert schema_of(zero) == Schema((3, 3), "float32", 2), "stored whole, as it is"


def test_stacks_are_those_of_gymnasiums_wrapper() -> None:
    """Over ends of episodes; each in memory of its own."""
    ours, gymnasiums = (wrapper(Checked(ScriptedEnv((3, 1, 9)), copies=True), 4) for wrapper in WRAPPERS)
    assert stack_of(ours) == stack_of(gymnasiums) == 4
    kept = []
    for t in range(30):
        if t % 5 == 0:
            shown = [env.reset(seed=3)[0] for env in (ours, gymnasiums)]
        else:
            shown = [env.step(1)[0] for env in (ours, gymnasiums)]
        np.testing.assert_array_equal(*shown)
        assert shown[0].dtype == shown[1].dtype
        kept.append((shown[0], shown[0].copy()))
    for stack, copy in kept:
        np.testing.assert_array_equal(stack, copy)


def test_schema_of_a_configured_stack() -> None:
    """The newest frames come first to last, behind a narrowing of the dtype."""
    env = make_env(EnvConfig(id="CartPole-v1", frame_stack=2), training=True)
    assert schema_of(env) == Schema((4,), "float32", 2, stack=2)
    assert env.reset(seed=0)[0].shape == (2, 4)


def test_schemas_of_different_stacks_refuse_one_anothers_chunks() -> None:
    """A stack of 4 and a stack of 3 have the same rows."""
    assert Schema((84, 84), "uint8", 6, 4).digest != Schema((84, 84), "uint8", 6, 3).digest
