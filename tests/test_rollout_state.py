"""A rollout's state: what another one goes on from leaves the very bytes that the first would have left."""

from __future__ import annotations

import contextlib
import itertools
import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lending import plenty
from safetensors.numpy import load, save
from scripted_env import DrawnEnv, RaisingEnv

from actors import lanes as lanes_module
from actors.actor_id import ActorId
from actors.builders import build_actor
from actors.config import ActorConfig, EnvConfig
from actors.envs import make_env, schema_of
from actors.errors import EnvError
from actors.lanes import NotReplayable, replay_refused
from learner.networks import NetworkSpec
from learner.weights import pack
from replay.chunk import BOUNDARY, TERMINATED, TRUNCATED, Codec
from replay.chunk_log.memory_log import MemoryLog
from replay.chunk_log.protocol import ChunkId
from replay.state import State

ME = ActorId("a-run", 7, 1, 3, 2)
DRAWN = EnvConfig(id="scripted_env:Drawn-v0")
LUNAR = EnvConfig(id="LunarLander-v3")
LIMITED = EnvConfig(id="LunarLander-v3", max_episode_steps=7)
ENVS = [
    LUNAR,
    LIMITED,
    EnvConfig(id="LunarLander-v3", kwargs={"enable_wind": True}),
    EnvConfig(id="CartPole-v1"),
    EnvConfig(id="Acrobot-v1"),
    EnvConfig(id="Taxi-v4" if "Taxi-v4" in gym.registry else "Taxi-v3"),  # discrete: one-hot
    DRAWN,
    EnvConfig(id="scripted_env:Drawn-v0", frame_stack=3),
    EnvConfig(id="scripted_env:Drawn-v0", max_episode_steps=4),
]


def learned(env: EnvConfig, version: int, env_steps: int = 100) -> bytes:
    """Weights for this environment, others for each version."""
    schema = schema_of(make_env(env, training=True))
    rng = np.random.default_rng(version)
    sizes = (int(np.prod(schema.input_shape)), 8, schema.num_actions)
    layers: dict[str, Any] = {}
    for name, (inputs, outputs) in zip(("encoder.layers.0", "head.linear"), itertools.pairwise(sizes), strict=True):
        layers[f"{name}.weight"] = rng.normal(size=(outputs, inputs)).astype(np.float32)
        layers[f"{name}.bias"] = rng.normal(size=outputs).astype(np.float32)
    return pack(version, 0, env_steps, layers)


class Actor:
    """A rollout as the inline session has it, with a log of its own, in which slot 0 has chunks too."""

    def __init__(self, env: EnvConfig, lanes: int = 3, chunk_steps: int = 5, *, actor: ActorId = ME) -> None:
        self.env, self.log = env, MemoryLog()
        self.log.take_lease(1)
        self.log.publish(1, plenty(ME.incarnation), learned(env, 1))
        config = ActorConfig(lanes=lanes, chunk_steps=chunk_steps, epsilon_anneal_env_steps=500, fetch_every_s=0)
        self.rollout = build_actor(actor, env, config, NetworkSpec(), self.log, recorded=True, clock=lambda: 0.0)
        self.codec = Codec(self.rollout.schema, actor.run)

    def work(self, chunks: int) -> list[bytes]:
        """Collect and send so many chunks, with new weights for every third; what these are."""
        sent = []
        for _ in range(chunks):
            assert self.rollout.ready()
            self.rollout.fill()
            assert self.rollout.send()
            chunk_id = self.log.last_id(ME.slot)
            sent.append(self.log.read({ME.slot: ChunkId(chunk_id.incarnation, chunk_id.seq - 1)}, 1)[0].data)
            if chunk_id.seq % 3 == 0:
                self.log.publish(1, plenty(ME.incarnation), learned(self.env, chunk_id.seq, 100 * chunk_id.seq))
        return sent

    def flags(self, data: bytes) -> Any:
        seq = self.log.last_id(ME.slot).seq
        return self.codec.decode(data, ME.slot, ME.incarnation, seq).flags


def stored(state: State) -> State:
    """Through JSON and safetensors, as a checkpoint has it."""
    return State(json.loads(json.dumps(state.values)), load(save(dict(state.arrays))))


def goes_on(tested: Actor, **arguments: Any) -> Actor:
    """A fresh actor and log that were given the state of this one's."""
    again = Actor(tested.env, **arguments)
    again.log.restore(stored(tested.log.state()))
    again.rollout.restore(stored(tested.rollout.state()))
    return again


@pytest.mark.parametrize(
    "env", ENVS, ids=lambda env: f"{env.id} {env.kwargs} {env.frame_stack} {env.max_episode_steps}"
)
def test_a_fresh_rollout_goes_on_to_the_byte(env: EnvConfig) -> None:
    """After any number of chunks; also from the state of one that had gone on from a state."""
    tested = Actor(env, lanes=2, chunk_steps=6)
    for chunks in (0, 1, 1, 2, 40):
        tested.work(chunks)
        again = goes_on(tested, lanes=2, chunk_steps=6)
        assert again.rollout.counters == tested.rollout.counters
        expected = tested.work(20)
        assert again.work(20) == expected
        state, other = again.rollout.state(), tested.rollout.state()
        assert state.values == other.values
        for name, array in other.arrays.items():
            np.testing.assert_array_equal(state.arrays[name], array, name)
        tested = again


@pytest.mark.parametrize("end", [TERMINATED, TRUNCATED, BOUNDARY], ids=["terminated", "truncated", "reset"])
def test_also_exactly_where_an_episode_has_ended(end: int) -> None:
    """The lane waits for its autoreset, of which a fresh vector env does not know; or has just had it."""
    tested, seen = Actor(DRAWN, lanes=1, chunk_steps=1), 0
    while seen < 5:
        (data,) = tested.work(1)
        if tested.flags(data)[-1, 0] & end:
            seen += 1
            again = goes_on(tested, lanes=1, chunk_steps=1)
            assert again.work(25) == tested.work(25)
    assert seen == 5


@settings(max_examples=40, deadline=None)
@given(chunk_steps=st.integers(1, 7), before=st.integers(0, 12), after=st.integers(1, 6), stack=st.sampled_from([1, 3]))
def test_for_any_chunks_and_any_moment(chunk_steps: int, before: int, after: int, stack: int) -> None:
    tested = Actor(EnvConfig(id="scripted_env:Drawn-v0", frame_stack=stack), 2, chunk_steps)
    tested.work(before)
    again = goes_on(tested, lanes=2, chunk_steps=chunk_steps)
    assert again.work(after) == tested.work(after)


def test_giving_a_state_changes_nothing() -> None:
    tested, other = Actor(LUNAR), Actor(LUNAR)
    for _ in range(3):
        tested.rollout.state()
        assert tested.work(2) == other.work(2)


def test_a_state_does_not_change_any_more() -> None:
    """It goes to disk while the rollout goes on."""
    tested = Actor(DRAWN)
    tested.work(2)
    state, expected = tested.rollout.state(), stored(tested.rollout.state())
    log = stored(tested.log.state())
    sent = tested.work(5)
    again = Actor(DRAWN)
    again.log.restore(log)
    again.rollout.restore(state)
    assert again.work(5) == sent
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(state.arrays[name], array)


def test_a_rebuilt_environment_is_brought_back_too() -> None:
    """With the seed that it was made anew with, and what has been spent of the lane's budget."""
    env = EnvConfig(id="scripted_env:Sometimes-v0")
    tested = Actor(env, lanes=2, chunk_steps=3)
    while len(tested.rollout.pop_rebuilt()) == 0:
        tested.work(1)
    for _ in range(3):
        again = goes_on(tested, lanes=2, chunk_steps=3)
        assert again.work(2) == tested.work(2)
        budgets = [lane["restarts"] for lane in again.rollout.state().values["lanes"]]
        assert sum(budget["total"] for budget in budgets) >= 1
        assert {reason for budget in budgets for reason in budget["reasons"]} == {"RuntimeError"}


class SometimesEnv(DrawnEnv):
    """Raises in about one env step of 20, as drawn."""

    def step(self, action: Any) -> Any:
        if self.np_random.random() < 0.05:
            raise RuntimeError("drawn")
        return super().step(action)


gym.register("Sometimes-v0", f"{__name__}:SometimesEnv")


def test_what_is_said_of_a_lane_goes_on_too() -> None:
    """Which env step of its life it is at, where it then misbehaves: 3 before the state, 1 + 2 after it."""
    scripted = EnvConfig(id="scripted_env:Scripted-v0", kwargs={"bad_at": (2, 2)})
    tested = Actor(scripted, lanes=1, chunk_steps=4)
    tested.work(1)
    again = goes_on(tested, lanes=1, chunk_steps=4)
    again.rollout.lanes[0].unwrapped._bad_reward = np.nan
    with pytest.raises(EnvError, match=r"the reward nan.* in lane 0 after env step 6 of it"):
        again.work(9)


def test_what_an_environment_remembers_across_episodes_is_noticed() -> None:
    """The scripted one counts its episodes: played again from its newest reset it shows another number."""
    tested = Actor(EnvConfig(id="scripted_env:Scripted-v0"))
    tested.work(1)
    goes_on(tested)
    tested.work(4)
    with pytest.raises(NotReplayable, match=r"lane 0 of scripted_env:Scripted-v0 .*showed another observation"):
        goes_on(tested)


class HiddenEnv(DrawnEnv):
    """Shows nothing of what it draws, and draws more with each episode of its life."""

    def reset(self, **arguments: Any) -> Any:
        self._life = getattr(self, "_life", 0) + 1
        super().reset(**arguments)
        self.np_random.random(self._life)
        self._left = 3
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(3, np.float32), *super().step(action)[1:]


gym.register("Hidden-v0", f"{__name__}:HiddenEnv")


def test_other_random_numbers_are_noticed_before_they_show() -> None:
    tested = Actor(EnvConfig(id="scripted_env:Hidden-v0"), lanes=1)
    tested.work(6)
    with pytest.raises(NotReplayable, match="drew other random numbers"):
        goes_on(tested, lanes=1)


class AgesEnv(DrawnEnv):
    """Ends its episodes after more and more env steps."""

    def reset(self, **arguments: Any) -> Any:
        self._life = getattr(self, "_life", 0) + 1
        obs, info = super().reset(**arguments)
        self._left = self._life
        return obs * 0, info

    def step(self, action: Any) -> Any:
        return np.zeros(3, np.float32), *super().step(action)[1:]


gym.register("Ages-v0", f"{__name__}:AgesEnv")


def test_an_end_that_comes_elsewhere_is_noticed() -> None:
    """The third episode has three env steps, the replayed one two, as a second has: it is over too soon."""
    tested = Actor(EnvConfig(id="scripted_env:Ages-v0"), lanes=1, chunk_steps=7)  # 1 + 1, 2 + 1, and 2 of 3
    tested.work(1)
    with pytest.raises(NotReplayable, match="its episode ended"):
        goes_on(tested, lanes=1, chunk_steps=7)


def test_an_environment_that_raises_while_it_is_replayed() -> None:
    healthy = [True]

    def fault(what: str, env: RaisingEnv) -> None:
        if what == "step" and not healthy[0]:
            raise OSError("gone")

    tested = Actor(EnvConfig(id="scripted_env:Raising-v0", kwargs={"fault": fault}), chunk_steps=2)
    tested.work(1)
    healthy[0] = False
    with pytest.raises(NotReplayable, match=r"lane 0 .*OSError: gone"):
        goes_on(tested)


def test_atari_is_refused_by_name() -> None:
    """Whether by its id or by what it is made of; nothing of it is recorded."""
    named = DrawnEnv()
    named.spec = gym.envs.registration.EnvSpec("ALE/Pong-v5", "nowhere:PongEnv")
    assert "emulator" in str(replay_refused(named))
    made = type("AtariEnv", (DrawnEnv,), {"__module__": "ale_py.env"})()
    assert "emulator" in str(replay_refused(made))
    assert replay_refused(make_env(LUNAR, training=True)) is None


@pytest.mark.parametrize("generator", [np.random.RandomState(3), np.random.Generator(np.random.MT19937(3))])
def test_other_random_generators_are_refused_by_name(generator: Any) -> None:
    """Their states are not what JSON can say; the environment works all the same."""

    class OldEnv(DrawnEnv):
        np_random = generator

        def reset(self, **_: Any) -> Any:
            return np.zeros(3, np.float32), {}

        def step(self, action: Any) -> Any:
            return np.zeros(3, np.float32), 0.0, False, self.np_random.random() < 0.1, {}

    gym.register("Old-v0", lambda **_: OldEnv())
    try:
        tested = Actor(EnvConfig(id="Old-v0"))
        tested.work(10)
        with pytest.raises(NotReplayable, match=r"lane 0 of Old-v0 .*np_random is a"):
            goes_on(tested)
    finally:
        del gym.registry["Old-v0"]


def test_an_episode_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is recorded is bounded; the next episode is replayable again."""
    monkeypatch.setattr(lanes_module, "MAX_RECORDED_STEPS", 10)
    limited = EnvConfig(id="LunarLander-v3", max_episode_steps=15)
    tested = Actor(limited, lanes=1, chunk_steps=5)
    # The first episode's rows are 1 to 15, the 16th is its boundary row: the fourth chunk ends 4 env steps behind it.
    for replayable in (True, False, False, True, True, False, True):
        tested.work(1)
        too_long = pytest.raises(NotReplayable, match="10 env steps or more")
        with contextlib.nullcontext() if replayable else too_long:
            goes_on(tested, lanes=1, chunk_steps=5)


def test_another_places_state_is_refused() -> None:
    tested = Actor(DRAWN)
    tested.work(1)
    for other in (ActorId("a-run", 7, 1, 3, 3), ActorId("a-run", 7, 0, 3, 2)):
        with pytest.raises(ValueError, match=r"slot and incarnation \(1, 2\)"):
            goes_on(tested, actor=other)
    with pytest.raises(ValueError, match="with 3 lanes"):
        goes_on(tested, lanes=2)


def test_a_chunk_in_doubt_has_no_state() -> None:
    tested = Actor(DRAWN)
    assert tested.rollout.ready()
    tested.rollout.fill()
    with pytest.raises(ValueError, match="chunk 1 of slot 1 is in doubt"):
        tested.rollout.state()


def test_lanes_that_are_not_recorded_have_no_state() -> None:
    rollout = build_actor(ME, DRAWN, ActorConfig(lanes=2), NetworkSpec(), MemoryLog())
    with pytest.raises(ValueError, match="recorded=True"):
        rollout.state()


def test_a_log_goes_on_with_what_is_in_it() -> None:
    """Chunks in their order (10 behind 9), what was the last id of a trimmed slot, weights, credit, lease and claim."""
    log = MemoryLog(max_chunks=11)
    assert log.claim("mine")
    log.take_lease(3)
    log.publish(3, plenty(), b"weights")
    log.describe(3, b"about")
    for seq in range(1, 13):
        log.append(0, ChunkId(1, seq), bytes([seq]))
        log.append(4, ChunkId(2, seq), b"")
    log.trim(3, {4: ChunkId(3, 0)})
    again = MemoryLog(max_chunks=11)
    again.append(9, ChunkId(1, 1), b"of no interest")
    again.restore(stored(log.state()))
    for each in (log, again):
        assert [entry.id.seq for entry in each.read({0: ChunkId(), 4: ChunkId(), 9: ChunkId()}, 99)] == [*range(2, 13)]
        assert (each.last_id(0), each.last_id(4), each.last_id(9)) == ((1, 12), (2, 12), (0, 0))
        assert (each.fetch_weights(), each.description(), each.claim("other")) == (b"weights", b"about", False)
        each.append(0, ChunkId(1, 13), b"")
        assert each.read({0: ChunkId()}, 1)[0].id == (1, 3)
        each.take_lease(3)
        assert each.status(0).credit


def test_an_empty_log_goes_on_empty() -> None:
    again = MemoryLog()
    again.publish(1, plenty(), b"weights")
    again.restore(stored(MemoryLog().state()))
    assert again.fetch_weights() is None
    assert again.description() is None
    assert not again.status(0).credit
