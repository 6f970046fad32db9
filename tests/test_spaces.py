"""What is learned of an environment's spaces: its actions as numbers, its observations as one array."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, Sequence, Space, Text, Tuple
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from actors.contract import Checked
from actors.envs import schema_of
from actors.errors import ContractError, EnvError
from actors.spaces import divisor_of, numbered_actions, observations_of
from learner.networks.portable import MAX_COMBINATIONS
from replay.chunk import ObsEntry, Schema

UNIT = Box(0, 1, (2,), np.float32)
BYTES = Box(0, 255, (2, 2, 1), np.uint8)
NOTHING = np.zeros(0, np.int64)


def observe(space: Space[Any], obs: Any) -> Any:
    stored = observations_of("E", space)
    found = stored("step", obs)
    assert (found.shape, found.dtype) == (stored.space.shape, stored.space.dtype)
    return found


# -- actions


@pytest.mark.parametrize(
    ("space", "given"),
    [
        (Discrete(3, start=-1), [-1, 0, 1]),
        (MultiDiscrete([2, 3]), [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]),
        (MultiDiscrete([2, 1], start=[5, -7]), [[5, -7], [6, -7]]),
        (MultiDiscrete(np.array([[2], [2]])), [[[0], [0]], [[0], [1]], [[1], [0]], [[1], [1]]]),
        (MultiBinary(2), [[0, 0], [0, 1], [1, 0], [1, 1]]),
        (MultiBinary([1, 2]), [[[0, 0]], [[0, 1]], [[1, 0]], [[1, 1]]]),
    ],
    ids=str,
)
def test_each_number_is_an_action_of_the_space(space: Space[Any], given: list[Any]) -> None:
    count, action, _ = numbered_actions("E", space)
    assert action is not None
    assert [np.asarray(action(np.int64(number))).tolist() for number in range(count)] == given
    assert all(space.contains(action(number)) for number in range(count))


def test_an_action_that_the_environment_changes_stays_as_it_is() -> None:
    _, action, _ = numbered_actions("E", MultiDiscrete([2, 2]))
    assert action is not None
    action(3)[:] = 9
    assert action(3).tolist() == [1, 1]


def test_combinations_up_to_the_bound_are_numbered() -> None:
    assert numbered_actions("E", MultiBinary(12))[0] == MAX_COMBINATIONS
    with pytest.raises(EnvError, match=r"E has the action space MultiDiscrete\(.*of 4097 combinations; up to 4096 are"):
        numbered_actions("E", MultiDiscrete([17, 241]))
    with pytest.raises(EnvError, match=f"of {2**200} combinations"):
        numbered_actions("E", MultiBinary(200))


@pytest.mark.parametrize("space", [UNIT, Dict(a=Discrete(2)), Text(3)], ids=lambda space: type(space).__name__)
def test_other_actions_are_refused(space: Space[Any]) -> None:
    with pytest.raises(EnvError, match=rf"the action space {type(space).__name__}.*needs Discrete.*gymnasium.wrappers"):
        numbered_actions("E", space)


def test_no_choice_is_no_action() -> None:
    with pytest.raises(EnvError, match=r"E has the action space MultiDiscrete\(\[\]\), which chooses nothing"):
        numbered_actions("E", MultiDiscrete(NOTHING))


# -- observations


@pytest.mark.parametrize(
    ("space", "obs", "stored"),
    [
        (Discrete(3, start=4), 5, [0, 1, 0]),
        (MultiDiscrete([2, 3]), np.array([1, 0]), [0, 1, 1, 0, 0]),
        (MultiDiscrete([2, 2], start=[3, -1]), [3, 0], [1, 0, 0, 1]),
        (MultiBinary(3), np.array([1, 0, 1], np.int8), [1, 0, 1]),
        (MultiBinary([2, 1]), [[1], [0]], [[1], [0]]),
    ],
    ids=str,
)
def test_numbers_and_flags(space: Space[Any], obs: Any, stored: list[Any]) -> None:
    assert observe(space, obs).tolist() == stored


def test_entries_follow_one_another_in_the_order_of_the_space() -> None:
    """At any depth."""
    space = Dict(b=UNIT, a=Tuple([Discrete(2), Dict(x=MultiBinary(1))]))
    found = observe(space, {"b": np.array([0.25, 0.5], np.float32), "a": (1, {"x": [1]})})
    assert found.dtype == np.float32
    assert found.tolist() == [0.25, 0.5, 0, 1, 1]


def test_entries_of_one_dtype_keep_it_and_bytes_beside_others_are_divided() -> None:
    """The network divides a vector of bytes itself; beside other numbers they have to be so already."""
    image = np.array([0, 51, 255, 102], np.uint8).reshape(2, 2, 1)
    both = observations_of("E", Dict(a=BYTES, b=BYTES))
    assert (str(both.space.dtype), divisor_of(both.space)) == ("uint8", 255)
    assert both("step", {"a": image, "b": image}).tolist() == [0, 51, 255, 102] * 2
    mixed = observations_of("E", Dict(a=BYTES, b=UNIT))
    assert divisor_of(mixed.space) == 1
    np.testing.assert_allclose(
        mixed("step", {"a": image, "b": [7, 8]}), np.array([0, 0.2, 1, 0.4, 7, 8], np.float32), rtol=1e-6
    )
    bits = observe(Dict(a=Box(0, 1, (2,), np.uint8), b=BYTES), {"a": [1, 0], "b": image})
    np.testing.assert_allclose(bits, np.array([1, 0, 0, 0.2, 1, 0.4], np.float32), rtol=1e-6)


LEAVES = st.sampled_from(
    [UNIT, Discrete(3, start=-1), MultiDiscrete([2, 3]), MultiBinary(2), Box(-5, 5, (2, 1), np.int32)]
)  # fmt: skip
NESTED = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from("abc"), inner, min_size=1).map(Dict),
        st.lists(inner, min_size=1, max_size=3).map(Tuple),
    ),
    max_leaves=5,
)


@given(NESTED.filter(lambda space: isinstance(space, Dict | Tuple)), st.integers(0, 2**31 - 1))
@settings(max_examples=60)
def test_any_nesting_is_flattened_as_gymnasium_does(space: Space[Any], seed: int) -> None:
    space.seed(seed)
    obs = space.sample()
    assert_array_equal(observe(space, obs), gym.spaces.flatten(space, obs))


@pytest.mark.parametrize(
    ("space", "obs", "why"),
    [
        (Dict(a=UNIT), {}, r"E: step\(\) returned an observation without \['a'\]; its space is Dict"),
        (Dict(a=UNIT), None, r"without \['a'\]"),
        (Tuple([UNIT, UNIT]), (np.zeros(2),), r"without \[1\]"),
        (Dict(a=Dict(b=UNIT)), {"a": 3}, r"without \['a'\]\['b'\]"),
        (Dict(a=UNIT), {"a": np.zeros(3)}, r"returned an observation\['a'\] of shape \(3,\); its space Box.*\(2,\)"),
        (Dict(a=Discrete(2)), {"a": 2}, r"returned the observation\['a'\] 2; its space Discrete\(2\) has 0 to 1"),
        (
            MultiDiscrete([2, 3]),
            [1, 3],
            r"\[1, 3\]; its space MultiDiscrete.* has \[0 0\] to \[1 2\]",
        ),
        (MultiDiscrete([2, 3]), [1], r"of shape \(1,\); its space .* says shape \(2,\)"),
        (Discrete(3), 1.5, r"the observation 1\.5; its space Discrete\(3\) has 0 to 2"),
        (Discrete(3), "one", "the observation 'one'"),
        (MultiBinary(2), [0.5, 1], "dtype float64, with values that int8 cannot hold"),
    ],
    ids=str,
)
def test_what_is_not_of_the_space_is_refused_by_its_entry(space: Space[Any], obs: Any, why: str) -> None:
    with pytest.raises(ContractError, match=why):
        observations_of("E", space)("step", obs)


@pytest.mark.parametrize(
    ("space", "why"),
    [
        (Text(5), r"E has the observation space Text.*TransformObservation where you register"),
        (Dict(a=UNIT, b=Tuple([Text(5)])), r"the observation space Text\(.* as entry \['b'\]\[0\]"),
        (Sequence(UNIT), "the observation space Sequence"),
        (Graph(UNIT, None), "the observation space Graph"),
        (Dict(), "holds nothing to learn from"),
        (Discrete(2**20 + 1), "one-hot, 1048577 numbers; up to 1048576 are stored: make it a Box"),
        (MultiDiscrete([2**62, 2**62]), f"one-hot, {2**63} numbers"),
        (Dict(a=Discrete(2**40)), f"Discrete.* as entry .'a'.*{2**40} numbers"),
        (Dict(a=Box(0, 1, (0,))), r"observations of shape \(0,\)"),
        (MultiDiscrete(NOTHING), "holds nothing to learn from"),
        (
            Dict(a=UNIT, b=MultiDiscrete(NOTHING)),
            r"MultiDiscrete\(\[\]\) as entry \['b'\], which holds nothing to learn",
        ),
        (Dict(a=Box(0, 1, (2,), np.longdouble)), f"observations of dtype {np.dtype(np.longdouble).name}"),
    ],
    ids=str,
)
def test_other_observations_are_refused(space: Space[Any], why: str) -> None:
    with pytest.raises(EnvError, match=why):
        observations_of("E", space)


def test_an_environment_of_dicts_and_combinations() -> None:
    class Arm(gym.Env[Any, Any]):
        observation_space = Dict(camera=BYTES, joints=UNIT)
        action_space = MultiDiscrete([3, 2])

        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            return {"camera": np.full((2, 2, 1), 255, np.uint8), "joints": np.zeros(2, np.float32)}, {}

        def step(self, action: Any) -> Any:
            assert self.action_space.contains(action), action
            return self.reset()[0], float(action[0]), False, False, {}

    env = Checked(Arm())
    entries = ObsEntry("camera", (2, 2, 1), "uint8"), ObsEntry("joints", (2,), "float32")
    assert schema_of(env) == Schema((6,), "float32", 6, entries=entries)
    assert env.reset()[0].tolist() == [1, 1, 1, 1, 0, 0]
    assert [env.step(number)[1] for number in range(6)] == [0, 0, 1, 1, 2, 2]
