"""The recurrent core: acting in numpy and in torch, one time step after another, and whole sequences for learning."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from actors.policy import flat, make_policy
from learner.learner import host_arrays
from learner.networks import NetworkConfig, NetworkSpec, build_network, core_width, parameter_shapes
from learner.networks.numpy_mlp import NumpyMlp
from learner.networks.portable import ACTION, REWARD, Policy, PolicyState, fed, recurrent
from learner.networks.program import core_of, program_of
from learner.networks.q_network import QNetwork
from learner.networks.torch_policy import TorchPolicy
from replay.chunk import Schema

Array = npt.NDArray[Any]
VECTOR, PICTURE = Schema((3,), "float32", 2), Schema((5, 6, 2), "uint8", 3, obs_divisor=255)
LANES, STEPS, TOLERANCE = 4, 7, 1e-5
OPTIONS: dict[str, dict[str, float]] = {
    "quantiles": {"quantiles": 5},
    "implicit_quantiles": {"cosines": 6, "fractions": 5},
}


def spec(
    core: str, previous: bool = False, head: str = "values", *, clip: bool = False, dueling: bool = False
) -> NetworkSpec:
    config = NetworkConfig.model_validate(
        {"hidden": (8,), "core": core, "core_size": 6, "core_previous": previous, "dueling": dueling}
    )
    return NetworkSpec(config, head, OPTIONS.get(head, {}), reward_scale=0.5, reward_clip=clip)


CASES = [
    pytest.param(VECTOR, spec("lstm"), id="lstm"),
    pytest.param(VECTOR, spec("gru"), id="gru"),
    pytest.param(VECTOR, spec("lstm", True, dueling=True), id="lstm-previous-dueling"),
    pytest.param(VECTOR, spec("gru", True, clip=True), id="gru-previous-clipped"),
    pytest.param(VECTOR, spec("lstm", False, "quantiles"), id="lstm-quantiles"),
    pytest.param(VECTOR, spec("gru", True, "implicit_quantiles"), id="gru-implicit"),
    pytest.param(PICTURE, spec("lstm", True), id="picture-lstm-previous"),
]


def episode(schema: Schema, lanes: int = LANES, steps: int = STEPS) -> tuple[Array, Array, Array]:
    """Observations [T, E, ...], actions <int64>[T, E] and rewards <float64>[T, E]."""
    rng = np.random.default_rng(5)
    shape = (steps, lanes, *schema.input_shape)
    obs = rng.normal(size=shape) if schema.obs_dtype == "float32" else rng.integers(0, 256, shape)
    return (
        obs.astype(schema.obs_dtype),
        rng.integers(0, schema.num_actions, (steps, lanes)),
        rng.normal(0, 3, (steps, lanes)),
    )


def network(schema: Schema, wanted: NetworkSpec) -> QNetwork:
    torch.manual_seed(3)
    return build_network(wanted, schema).requires_grad_(False)


def stepped(online: QNetwork, given: tuple[Array, Array, Array]) -> tuple[Array, list[dict[str, Array]]]:
    """The learner's network one time step after another: Q values [T, E, A], and the state before each step and after
    the last."""
    assert online.core is not None
    states: list[dict[str, Array]] = [online.core.memory.initial_state(given[0].shape[1])]
    q = []
    for obs, action, reward in zip(*given, strict=True):
        before = {name: torch.from_numpy(array) for name, array in states[-1].items()}
        output, after = online.step(torch.from_numpy(obs), before)
        q.append(output.q.numpy())
        states.append(dict(fed({name: tensor.numpy() for name, tensor in after.items()}, action, reward)))
    return np.stack(q), states


@pytest.mark.parametrize(("schema", "wanted"), CASES)
def test_an_actors_recurrent_policy_equals_the_learners_network(schema: Schema, wanted: NetworkSpec) -> None:
    """Over an episode, its state included; so does what the network is as operations of numpy, in JSON."""
    online, given = network(schema, wanted), episode(schema)
    arrays, policy = host_arrays(online), make_policy(wanted, schema)
    assert {name: array.shape for name, array in arrays.items()} == parameter_shapes(wanted, schema)
    assert isinstance(policy, NumpyMlp if schema is VECTOR else TorchPolicy)
    policy.load(arrays)
    program = json.loads(json.dumps(program_of(wanted, schema)))
    portable = recurrent(program, arrays)
    expected, states = stepped(online, given)
    state: PolicyState = policy.initial_state(LANES)
    other = state
    for t, (obs, action, reward) in enumerate(zip(*given, strict=True)):
        assert flat(state).shape == (LANES, core_width(wanted, schema.num_actions))
        q, state = policy(obs, state)
        also, other = portable(obs.astype(np.float32), other)
        state, other = fed(state, action, reward), fed(other, action, reward)
        np.testing.assert_allclose(q, expected[t], atol=TOLERANCE)
        np.testing.assert_allclose(also, expected[t], atol=TOLERANCE)
        np.testing.assert_allclose(flat(state), flat(states[t + 1]), atol=TOLERANCE)
        np.testing.assert_allclose(flat(other), flat(states[t + 1]), atol=TOLERANCE)
    assert np.ptp(expected, 0).min() > 0, "the values are of the time step"


def test_a_state_has_the_arrays_of_its_core_in_the_order_of_their_names() -> None:
    assert core_width(NetworkSpec(), 2) == 0
    assert core_width(spec("gru"), 2) == 6
    assert core_width(spec("lstm"), 2) == 12
    assert core_width(spec("lstm", True), 2) == 14
    state = make_policy(spec("lstm", True), VECTOR).initial_state(1)
    assert list(state) == ["c", "h", ACTION, REWARD]
    assert fed({"h": np.zeros((1, 6))}, np.array([1]), np.array([2.0])).keys() == {"h"}
    named = {name: np.full((1, 1), value) for name, value in ((REWARD, 4.0), ("c", 1.0), (ACTION, 3.0), ("h", 2.0))}
    np.testing.assert_array_equal(flat(named), [[1, 2, 3, 4]])


@pytest.mark.parametrize("core", ["lstm", "gru"])
def test_a_network_with_a_core_remembers(core: str) -> None:
    """The same observation has other values after other ones, and after another action and reward where those are
    given; a numpy policy leaves the state that it was given as it is."""
    wanted = spec(core, previous=True)
    policy = make_policy(wanted, VECTOR)
    policy.load(host_arrays(network(VECTOR, wanted)))
    start = policy.initial_state(3)
    obs = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0]], np.float32)
    _, state = policy(obs, start)
    assert all(not array.any() for array in start.values())
    same = np.ones((3, 3), np.float32)
    q, _ = policy(same, fed(state, np.array([0, 0, 0]), np.zeros(3)))
    np.testing.assert_array_equal(q[0], q[2])
    assert np.abs(q[0] - q[1]).min() > 1e-4
    of_actions, _ = policy(same, fed(state, np.array([0, 0, 1]), np.array([0.0, 0.0, 0.0])))
    of_rewards, _ = policy(same, fed(state, np.array([0, 0, 0]), np.array([0.0, 0.0, 2.0])))
    for q in (of_actions, of_rewards):
        assert np.abs(q[0] - q[2]).min() > 1e-4


@pytest.mark.parametrize(("schema", "wanted"), CASES)
def test_sequences_equal_their_steps(schema: Schema, wanted: NetworkSpec) -> None:
    """Burnt in from states in the middle of an episode, over no, some or all of the first steps, and then unrolled."""
    online, given = network(schema, wanted), episode(schema)
    core = online.core
    assert core is not None
    expected, states = stepped(online, given)
    burn_in, lengths = 3, [0, 2, 3, 1]
    state = torch.from_numpy(np.stack([flat(states[burn_in - length])[lane] for lane, length in enumerate(lengths)]))
    x = online.features(torch.from_numpy(given[0]).flatten(0, 1)).reshape(STEPS, LANES, -1)
    if core.previous:
        before = [flat(each)[:, -2:] for each in states[:-1]]
        action, reward = (torch.from_numpy(np.stack(before)[..., column]) for column in (0, 1))
        x = core.with_previous(x, action, core.trained_reward(reward))
    cells = core.burn_in(x[:burn_in], core.unpacked(state), lengths)
    out, after = core.unroll(x[burn_in:], cells)
    q = online.head(out.flatten(0, 1)).q.reshape(STEPS - burn_in, LANES, -1)
    np.testing.assert_allclose(q, expected[burn_in:], atol=TOLERANCE)
    for name, cell in after.items():
        np.testing.assert_allclose(cell, states[-1][name], atol=TOLERANCE)


@pytest.mark.parametrize("lengths", [[0] * LANES, [3] * LANES])
def test_a_burn_in_of_nothing_or_of_all_is_that_of_each(lengths: list[int]) -> None:
    online, given = network(VECTOR, spec("lstm")), episode(VECTOR)
    assert online.core is not None
    _, states = stepped(online, given)
    state = torch.from_numpy(flat(states[3 - lengths[0]]))
    cells = online.core.burn_in(
        online.features(torch.from_numpy(given[0][:3]).flatten(0, 1)).reshape(3, LANES, -1),
        online.core.unpacked(state),
        lengths,
    )
    for name, cell in cells.items():
        np.testing.assert_allclose(cell, states[3][name], atol=TOLERANCE)


ABOUT = {
    "observation": {
        "entries": [{"path": [], "shape": [3], "dtype": "float32", "stored": "float32", "space": "Box", "divisor": 1}],
        "space": "Box", "flattened": False, "divided": False, "dtype": "float32", "shape": [3],
    },
    "actions": {"n": 2, "start": 0}, "masked": False, "stack": 1,
}  # fmt: skip


@pytest.mark.parametrize("previous", [False, True])
def test_a_loaded_policy_remembers_each_lanes_episode(previous: bool) -> None:
    """As the run's own policy does; ``reset`` begins an episode in one lane, and new lanes begin one."""
    wanted = spec("lstm", previous)
    arrays = host_arrays(network(VECTOR, wanted))
    own = make_policy(wanted, VECTOR)
    own.load(arrays)
    acting = Policy({**ABOUT, "core": core_of(wanted, 2)}, own)
    obs, _, rewards = episode(VECTOR)
    state = own.initial_state(2)
    for t in range(4):
        if t == 2:
            acting.reset(1)
            state = {name: array * np.array([[1], [0]], np.float32) for name, array in state.items()}
        expected, state = own(obs[t, :2], state)
        action, q = acting.act(obs[t, :2], reward=rewards[t - 1, :2] if previous else None)
        np.testing.assert_array_equal(q, expected)
        np.testing.assert_array_equal(action, expected.argmax(1))
        state = fed(state, action, rewards[t, :2])
    more = {name: np.concatenate([array, np.zeros_like(array)]) for name, array in state.items()}
    expected, _ = own(obs[4], more)
    np.testing.assert_array_equal(acting.act(obs[4], reward=[*rewards[3, :2], np.nan, np.nan]).q, expected)
    acting.reset()
    np.testing.assert_array_equal(acting.act(obs[0, 0]).q, own(obs[0, :1], own.initial_state(1))[0][0])
    if previous:
        with pytest.raises(ValueError, match=r"given the reward None.*of shape \(\), or call reset\(\)"):
            acting.act(obs[1, 0])
        with pytest.raises(ValueError, match=r"given the reward \[nan\]"):
            acting.act(obs[1, 0], reward=[np.nan])
