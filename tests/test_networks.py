"""The Q-network in torch and its twin in numpy: the same function."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from actors.policy import NumpyMlp
from learner.config import NetworkConfig
from learner.learner import host_arrays
from learner.networks import MlpQNetwork, flatten_parameters
from learner.weights import pack, unpack
from replay.chunk import DTYPES, Schema

TOLERANCE = 2e-6
"""Of numpy's Q values against torch's, relative to the largest one: a few float32 roundings of a sum."""


def network(schema: Schema, *hidden: int, dueling: bool = False) -> MlpQNetwork:
    torch.manual_seed(3)
    return MlpQNetwork(schema, NetworkConfig(hidden=hidden, dueling=dueling))


def assert_same(q: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    assert_allclose(q, expected, rtol=0, atol=TOLERANCE * max(1.0, float(np.abs(expected).max())))


def observations(schema: Schema, count: int) -> npt.NDArray[Any]:
    """Random observations over the whole range that the dtype's environments use."""
    rng = np.random.default_rng(7)
    dtype = np.dtype(schema.obs_dtype)
    if dtype.kind == "f":
        return rng.normal(size=(count, *schema.obs_shape)).astype(dtype)
    bounds = np.iinfo(dtype)
    low, high = max(bounds.min, -1000), min(bounds.max, 1000)
    return rng.integers(low, high, (count, *schema.obs_shape), dtype, endpoint=True)


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("hidden", [(), (16,), (32, 32, 8)])
@pytest.mark.parametrize(
    "schema",
    [*(Schema((3, 2), dtype, 4) for dtype in DTYPES), Schema((8,), "float32", 1), Schema((9, 5, 2), "uint8", 18)],
    ids=str,
)
def test_numpy_equals_torch(schema: Schema, hidden: tuple[int, ...], dueling: bool) -> None:
    """Also after the weights went over the wire."""
    online = network(schema, *hidden, dueling=dueling)
    policy = NumpyMlp(dueling)
    policy.load(unpack(pack(1, 0, 0, host_arrays(online)))[1])
    obs = observations(schema, 64)
    with torch.no_grad():
        expected = online(torch.from_numpy(obs)).numpy()
    q = policy(obs)
    assert q.dtype == expected.dtype == np.float32
    assert q.shape == expected.shape == (64, schema.num_actions)
    assert_same(q, expected)
    assert_same(policy(obs[:1]), expected[:1])


def test_scalar_observations() -> None:
    """A Box of shape () is one number per observation."""
    online = network(Schema((), "float32", 2), 4)
    policy = NumpyMlp(dueling=False)
    policy.load(host_arrays(online))
    obs = np.linspace(-1, 1, 5, dtype=np.float32)
    with torch.no_grad():
        assert_same(policy(obs), online(torch.from_numpy(obs)).numpy())


def test_a_linear_network_by_hand() -> None:
    """Q = W s + b; pixels are scaled by 1/255."""
    online = network(Schema((2,), "uint8", 2))
    layer = online.layers[0]
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        layer.bias.copy_(torch.tensor([10.0, 20.0]))
        q = online(torch.tensor([[255, 0], [0, 51]], dtype=torch.uint8))
    torch.testing.assert_close(q, torch.tensor([[11.0, 23.0], [10.4, 20.8]]))


def test_a_dueling_head_by_hand() -> None:
    """Value 5, advantages 1 and 3: Q = 5 + (1 - 2), 5 + (3 - 2); a shift of all advantages changes nothing."""
    online = network(Schema((1,), "float32", 2), dueling=True)
    layer = online.layers[0]
    assert isinstance(layer, nn.Linear)
    for shift in (0.0, 100.0):
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor([5.0, 1.0 + shift, 3.0 + shift]))
            torch.testing.assert_close(online(torch.zeros(1, 1)), torch.tensor([[4.0, 6.0]]))


def test_flat_parameters_are_the_modules() -> None:
    """The same function as before, and the vector, its gradient and the layers share memory."""
    online = network(Schema((3,), "float32", 2), 5)
    obs = torch.randn(4, 3)
    before = online(obs).detach()
    vector = flatten_parameters(online)
    torch.testing.assert_close(online(obs).detach(), before, rtol=0, atol=0)
    assert vector.numel() == sum(parameter.numel() for parameter in online.parameters()) == 3 * 5 + 5 + 5 * 2 + 2
    online(obs).sum().backward()
    assert vector.grad is not None
    gradients = [p.grad.reshape(-1) for p in online.parameters() if p.grad is not None]
    torch.testing.assert_close(vector.grad, torch.cat(gradients), rtol=0, atol=0)
    assert vector.grad.abs().sum() > 0
    with torch.no_grad():
        vector.zero_()
    assert not online(obs).any()
