"""A policy's recurrent state goes with its lane: through chunks, ends of episodes, evaluations and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from lending import plenty
from scripted_env import RaisingEnv, ScriptedEnv

from actors.actor_id import ActorId
from actors.config import ActorConfig, EnvConfig
from actors.envs import make_lanes, schema_of
from actors.episodes import play
from actors.policy import carried
from actors.rollout import Rollout
from learner.networks.portable import PolicyState
from learner.weights import pack
from replay.chunk import BOUNDARY, Chunk, Codec
from replay.chunk_log.memory_log import MemoryLog
from replay.chunk_log.protocol import ChunkId
from replay.state import State

Array = npt.NDArray[Any]
ME = ActorId("a-run", 7, 1, 3, 2)
LENGTHS = (3, 1, 5, 2)


class Counting:
    """Counts the steps of each lane's episode, and keeps the newest observation; Q of action 0 is the count.

    ``calls``: for each call the observations, and the counts before it."""

    def __init__(self) -> None:
        self.calls: list[tuple[Array, Array]] = []

    def load(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = dict(arrays)

    def state(self) -> dict[str, Array]:
        return self._arrays

    def initial_state(self, lanes: int) -> PolicyState:
        return {"count": np.full(lanes, 100), "newest": np.zeros((lanes, 3), np.float32)}

    def __call__(self, obs: Array, state: PolicyState) -> tuple[Array, PolicyState]:
        count = state["count"]
        assert count.shape == (len(obs),)
        self.calls.append((obs.copy(), count.copy()))
        q = np.stack((count, np.zeros(len(obs))), 1).astype(np.float32)
        return q, {"count": count + 1, "newest": obs.copy()}

    def assert_with_their_lanes(self) -> None:
        """The scripted environments' observations tell the time in their episode."""
        for obs, count in self.calls:
            np.testing.assert_array_equal(count, 100 + obs[:, 2])


class Actor:
    """A rollout of recorded lanes with a counting policy."""

    def __init__(self, env: EnvConfig, chunk_steps: int = 4, lanes: int = 3) -> None:
        self.log, self.policy = MemoryLog(), Counting()
        self.log.take_lease(1)
        self.log.publish(1, plenty(ME.incarnation), pack(1, 0, 0, {}))
        envs = make_lanes(env, lanes, restarts=9, recorded=True)
        schema = schema_of(envs.envs[0])
        self.codec = Codec(schema, ME.run)
        config = ActorConfig(lanes=lanes, chunk_steps=chunk_steps, fetch_every_s=0)
        self.rollout = Rollout(ME, envs, schema, self.policy, self.log, config, lambda: 0.0)

    def work(self, chunks: int) -> list[bytes]:
        """Collects and sends so many chunks; returns them."""
        before = self.log.last_id(ME.slot)
        for _ in range(chunks):
            assert self.rollout.ready()
            self.rollout.fill()
            assert self.rollout.send()
        return [entry.data for entry in self.log.read({ME.slot: before}, chunks)]

    def chunks(self) -> list[Chunk]:
        entries = self.log.read({ME.slot: ChunkId()}, 1 << 30)
        return [self.codec.decode(entry.data, entry.slot, *entry.id) for entry in entries]


@pytest.mark.parametrize("chunk_steps", [1, 3, 4, 7])
def test_it_is_carried_through_chunks_and_begun_anew_after_a_boundary_row(chunk_steps: int) -> None:
    """The boundary row still has the old episode's: its Q value may be bootstrapped from."""
    tested = Actor(EnvConfig(id="scripted_env:Scripted-v0", kwargs={"lengths": LENGTHS}), chunk_steps)
    tested.work(24 // chunk_steps)
    tested.policy.assert_with_their_lanes()
    assert tested.rollout.flush(1.0)
    chunks = tested.chunks()
    q_max, flags, obs = (np.concatenate([getattr(each, name) for each in chunks]) for name in ("q_max", "flags", "obs"))
    np.testing.assert_array_equal(q_max, 100 + obs[..., 2])
    assert set(q_max[flags == BOUNDARY]) >= {100 + length for length in LENGTHS}


def test_a_lane_that_is_made_anew_begins_with_a_fresh_one() -> None:
    """The others' goes on."""
    seen = list[tuple[int, int]]()

    def fault(word: str, env: RaisingEnv) -> None:
        _, episode, t = env.at
        if word == "step" and (episode, t) == (0, 2) and len(seen) < 2:
            seen.append((episode, t))
            raise OSError("gone")

    tested = Actor(EnvConfig(id="scripted_env:Raising-v0", kwargs={"fault": fault, "lengths": (5, 4)}), lanes=2)
    tested.work(8)
    assert len(tested.rollout.pop_rebuilt()) == len(seen) == 2
    tested.policy.assert_with_their_lanes()


@pytest.mark.parametrize(("envs", "episodes"), [(1, 4), (4, 4), (4, 9), (3, 2)])
def test_an_evaluation_carries_it_as_its_batch_shrinks(envs: int, episodes: int) -> None:
    """Each environment keeps its own, whichever others have finished; a next episode begins with a fresh one."""
    policy, lengths = Counting(), [(5, 2, 9), (1, 1, 4), (8, 3), (2, 2, 2, 6)]
    play([ScriptedEnv(lengths=lengths[index]) for index in range(envs)], policy, range(episodes))
    policy.assert_with_their_lanes()
    sizes = [len(obs) for obs, _ in policy.calls]
    assert sizes == sorted(sizes, reverse=True)
    assert {1, min(envs, episodes)} <= set(sizes)


def test_an_evaluations_cut_or_repeated_episode_begins_with_a_fresh_one() -> None:
    failures = [OSError("gone")]

    def fault(word: str, env: RaisingEnv) -> None:
        if word == "step" and env.at[2] == 2 and failures:
            raise failures.pop()

    policy, replaced = Counting(), list[int]()

    def replace(index: int, error: Exception) -> Any:
        replaced.append(index)
        return ScriptedEnv(lengths=(10**9,))

    endless = [RaisingEnv(fault, lengths=(10**9,)), ScriptedEnv(lengths=(10**9,))]
    played = play(endless, policy, range(5), max_episode_steps=6, replace=replace)
    assert played.lengths.tolist() == [6] * 5
    assert replaced == [0]
    policy.assert_with_their_lanes()
    assert max(count.max() for _, count in policy.calls) == 105


def test_a_restored_rollout_goes_on_with_it() -> None:
    """To the byte, its Q values included, which tell the counts; in the middle of episodes and at their ends."""
    env = EnvConfig(id="scripted_env:Drawn-v0")
    tested = Actor(env, chunk_steps=3)
    for _ in range(12):
        tested.work(1)
        state = tested.rollout.state()
        again = Actor(env, chunk_steps=3)
        again.log.restore(tested.log.state())
        again.rollout.restore(state)
        for name, array in state.arrays.items():
            np.testing.assert_array_equal(again.rollout.state().arrays[name], array, name)
        assert again.work(4) == tested.work(4)
    assert {"recurrent.count", "recurrent.newest"} <= set(state.arrays)
    assert len(set(state.arrays["recurrent.count"])) > 1


@pytest.mark.parametrize(
    ("spoilt", "error"),
    [
        ({"recurrent.count": np.zeros(2, np.int64)}, ValueError),
        ({"recurrent.count": np.zeros(3, np.float32)}, ValueError),
        ({"recurrent.newest": None}, KeyError),
    ],
    ids=["another number of lanes", "another dtype", "missing"],
)
def test_a_state_without_its_own_is_refused(spoilt: dict[str, Any], error: type[Exception]) -> None:
    env = EnvConfig(id="scripted_env:Drawn-v0")
    tested = Actor(env)
    tested.work(2)
    values, arrays = tested.rollout.state()
    left = {name: array for name, array in {**arrays, **spoilt}.items() if array is not None}
    with pytest.raises(error, match="recurrent"):
        Actor(env).rollout.restore(State(values, left))


def test_the_lanes_of_a_smaller_batch_keep_their_order() -> None:
    policy = Counting()
    state = {"count": np.array([1, 2, 3, 4]), "newest": np.arange(12, dtype=np.float32).reshape(4, 3)}
    following = carried(policy, state, np.array([3, 0]), np.array([1]))
    assert following["count"].tolist() == [4, 100]
    assert following["newest"].tolist() == [[9, 10, 11], [0, 0, 0]]
    assert state["count"].tolist() == [1, 2, 3, 4], "what was given is the policy's, and stays"
