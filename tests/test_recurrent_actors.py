"""Actors of a recurrent network: each chunk has its lanes' state, and a restored actor goes on with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lending import plenty

from actors.actor_id import ActorId
from actors.builders import build_actor
from actors.config import ActorConfig, EnvConfig
from actors.envs import make_env
from actors.episodes import play
from actors.policy import flat, make_policy
from learner.networks import NetworkConfig, NetworkSpec, core_width, parameter_shapes
from learner.networks.portable import fed
from learner.weights import pack, unpack
from replay.chunk import BOUNDARY, FIRST, Chunk, Codec, Schema
from replay.chunk_log.memory_log import MemoryLog
from replay.chunk_log.protocol import ChunkId

ME = ActorId("a-run", 7, 1, 3, 2)
ENV = EnvConfig(id="scripted_env:Drawn-v0")
SPEC = NetworkSpec(
    NetworkConfig(hidden=(8,), core="lstm", core_size=5, core_previous=True), reward_scale=0.5, reward_clip=False
)


def learned(schema: Schema, version: int = 1) -> bytes:
    rng = np.random.default_rng(version)
    shapes = parameter_shapes(SPEC, schema)
    return pack(version, 0, 100, {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})


class Actor:
    """A recurrent rollout as the inline session has it."""

    def __init__(self, lanes: int = 3, chunk_steps: int = 4) -> None:
        self.log = MemoryLog()
        config = ActorConfig(lanes=lanes, chunk_steps=chunk_steps, epsilon_anneal_env_steps=500, fetch_every_s=0)
        self.rollout = build_actor(ME, ENV, config, SPEC, self.log, recorded=True, clock=lambda: 0.0)
        self.schema = self.rollout.schema
        self.log.take_lease(1)
        self.log.publish(1, plenty(ME.incarnation), learned(self.schema))

    def work(self, chunks: int) -> list[bytes]:
        before = self.log.last_id(ME.slot)
        for _ in range(chunks):
            assert self.rollout.ready()
            self.rollout.fill()
            assert self.rollout.send()
        return [entry.data for entry in self.log.read({ME.slot: before}, chunks)]

    def chunks(self) -> list[Chunk]:
        codec = Codec(self.schema, ME.run)
        return [
            codec.decode(entry.data, entry.slot, *entry.id) for entry in self.log.read({ME.slot: ChunkId()}, 1 << 30)
        ]


@pytest.mark.parametrize("chunk_steps", [1, 4, 7])
def test_each_chunk_has_the_state_before_its_first_rows(chunk_steps: int) -> None:
    """As the policy has it that steps through the rows themselves, with the actions and rewards that they have; also
    the chunk of boundary rows that a flush sends."""
    tested = Actor(chunk_steps=chunk_steps)
    assert tested.schema.core == core_width(SPEC, tested.schema.num_actions) == 12
    tested.work(56 // chunk_steps)
    assert tested.rollout.flush(1.0)
    policy = make_policy(SPEC, tested.schema)
    policy.load(unpack(learned(tested.schema))[1])
    state = policy.initial_state(3)
    begun = 0
    for chunk in tested.chunks():
        assert chunk.core_state is not None
        np.testing.assert_array_equal(chunk.core_state, flat(state))
        for t in range(len(chunk.flags)):
            q, state = policy(chunk.obs[t], state)
            np.testing.assert_array_equal(chunk.q_max[t], q.max(1))
            state = dict(fed(state, chunk.action[t], chunk.reward[t]))
            ended = (chunk.flags[t] & BOUNDARY) != 0
            begun += int(ended.sum())
            state = {name: np.where(ended[:, None], np.float32(0), array) for name, array in state.items()}
        assert not chunk.core_state[(chunk.flags[0] & FIRST) != 0].any()
    assert begun > 5
    assert len(np.unique(np.concatenate([chunk.reward for chunk in tested.chunks()]))) > 1, "rewards differ"


def test_a_restored_recurrent_actor_goes_on_to_the_byte() -> None:
    tested = Actor()
    for _ in range(6):
        tested.work(1)
        again = Actor()
        again.log.restore(tested.log.state())
        again.rollout.restore(tested.rollout.state())
        assert again.work(3) == tested.work(3)


def test_an_evaluation_gives_the_core_its_own_actions_and_rewards() -> None:
    """Played side by side, each episode has the return that it has alone, where the policy is stepped by hand."""
    schema = Actor().schema
    policy = make_policy(SPEC, schema)
    policy.load(unpack(learned(schema))[1])
    seeds = [11, 12, 13, 14, 15]
    played = play([make_env(ENV, training=False) for _ in range(3)], policy, seeds)
    for seed, total, length in zip(seeds, played.returns, played.lengths, strict=True):
        env, state, returned, steps = make_env(ENV, training=False), policy.initial_state(1), 0.0, 0
        obs, _ = env.reset(seed=seed)
        over = False
        while not over:
            q, state = policy(np.asarray(obs)[None], state)
            obs, reward, terminated, truncated, _ = env.step(int(q.argmax()))
            state = fed(state, q.argmax(1), np.array([reward]))
            returned, steps, over = returned + float(reward), steps + 1, bool(terminated or truncated)
        assert (returned, steps) == (total, length)


def test_what_a_network_is_given_decides_the_width() -> None:
    config: dict[str, Any] = {"hidden": (8,), "core_size": 5}
    widths = [core_width(NetworkSpec(NetworkConfig(**config, core=core)), 3) for core in ("none", "gru", "lstm")]
    assert widths == [0, 5, 10]
