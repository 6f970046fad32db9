"""The Q-network in torch and its twin in numpy: the same function."""

from __future__ import annotations

import json
import math
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.testing import assert_close

from actors.policy import make_policy
from learner.learner import host_arrays
from learner.networks import ENCODERS, HEADS, NetworkConfig, NetworkSpec, build_network, encoder_of, parameter_shapes
from learner.networks.heads import AtomsHead, ImplicitQuantilesHead
from learner.networks.impala import SpectralConv2d
from learner.networks.numpy_mlp import NumpyMlp
from learner.networks.portable import network as network_of
from learner.networks.program import program_of
from learner.networks.q_network import QNetwork, flatten_parameters, in_shape_order, set_in_shape_order
from learner.networks.shapes import MINATAR_CHANNELS
from learner.weights import pack, unpack
from replay.chunk import DTYPES, ObsEntry, Schema

TOLERANCE = 1e-5
"""Of numpy's Q values against torch's, relative to the largest one: float32 roundings of the sums of up to 15 layers,
in the order that a processor's kernels add in (an AMD EPYC: 2.2e-6)."""


OPTIONS: dict[str, dict[str, float]] = {
    "quantiles": {"quantiles": 7},
    "atoms": {"atoms": 5, "v_min": -2.0, "v_max": 3.0},
    "implicit_quantiles": {"cosines": 6, "fractions": 5},
}
"""What a head wants to know beside the network's configuration."""
PICTURES = (
    Schema((10, 10, 4), "uint8", 6),
    Schema((4, 7, 9), "uint8", 3, obs_divisor=255, channels_last=False),
    Schema((5, 6), "uint8", 2, stack=3, obs_divisor=255),
    Schema((8, 6, 2), "float32", 2, stack=2),
)
SEVERAL = (
    ObsEntry("a", (3,), "float32"),
    ObsEntry("b", (5, 6, 2), "uint8"),
    ObsEntry("c", (2, 4, 3), "float32", channels_last=False),
    ObsEntry("d", (2,), "float32"),
    ObsEntry("e", (4, 4), "uint8"),
)
ENTRIES = (
    Schema((3 + 60 + 24 + 2 + 16,), "float32", 3, entries=SEVERAL),
    Schema((2 * 16,), "uint8", 2, stack=2, obs_divisor=255, entries=(SEVERAL[4], SEVERAL[4])),
    Schema((36 * 36 + 3,), "float32", 2, entries=(ObsEntry("eye", (36, 36, 1), "uint8"), SEVERAL[0])),
)


def spec(
    hidden: tuple[int, ...] = (),
    dueling: bool = False,
    encoder: str = "auto",
    head: str = "values",
    **options: Any,
) -> NetworkSpec:
    config = NetworkConfig(encoder=encoder, hidden=hidden, dueling=dueling, **options)
    return NetworkSpec(config, head, OPTIONS.get(head, {}))


def network(schema: Schema, *hidden: int, dueling: bool = False) -> QNetwork:
    torch.manual_seed(3)
    return build_network(spec(hidden, dueling), schema)


def assert_same(q: npt.NDArray[Any], expected: npt.NDArray[Any], within: float = 1.0) -> None:
    assert_allclose(q, expected, rtol=0, atol=TOLERANCE * max(within, float(np.abs(expected).max())))


def observations(schema: Schema, count: int) -> npt.NDArray[Any]:
    """Random observations over the whole range that the dtype's environments use."""
    rng = np.random.default_rng(7)
    dtype = np.dtype(schema.obs_dtype)
    if dtype.kind == "f":
        return rng.normal(size=(count, *schema.input_shape)).astype(dtype)
    bounds = np.iinfo(dtype)
    low, high = max(bounds.min, -1000), min(bounds.max, 1000)
    return rng.integers(low, high, (count, *schema.input_shape), dtype, endpoint=True)


def cases() -> list[Any]:
    """Every encoder that takes the schema x head x dueling x hidden layers."""
    flat = [*(Schema((3, 2), dtype, 4) for dtype in DTYPES), Schema((8,), "float32", 1), Schema((9, 5, 2), "uint8", 18)]
    big = (Schema((36, 41), "uint8", 4, stack=2, obs_divisor=255), Schema((37, 36, 3), "float32", 2))
    by_encoder: dict[str, tuple[Schema, ...]] = {
        "mlp": (*flat, Schema((6,), "uint8", 2, obs_divisor=255), *PICTURES),
        "minatar": PICTURES,
        "nature": big,
        "impala": (PICTURES[0], big[0]),
        "entries": ENTRIES,
    }
    assert by_encoder.keys() == ENCODERS.keys()
    given: list[Any] = [
        pytest.param(
            schema,
            spec(hidden, dueling, encoder, head, layer_norm=layer_norm),
            id=f"{schema}-{encoder}-{head}-{hidden}-{dueling}-{layer_norm}",
        )
        for encoder, schemas in by_encoder.items()
        for schema in schemas
        for head in HEADS
        for hidden, layer_norm in (((), False), ((16,), False), ((32, 8), True))
        for dueling in (False, True)
        # every schema with one head, every head with one schema; where the forward takes longer, one case of each head
        if (encoder in ("mlp", "minatar", "entries") and (head == "values" or schema is schemas[0]))
        or (schema is schemas[-1] and hidden == (32, 8) and dueling == (head == "values"))
    ]
    pools: list[Any] = [
        pytest.param(
            PICTURES[0],
            spec((8,), encoder="impala", impala={"width": 2, "pool": pool, "spectral_norm": norm}),
            id=f"impala-{pool}-{norm}",
        )
        for pool in ("flat", "max6", "gap")
        for norm in (False, True)
    ]
    return given + pools


@pytest.mark.parametrize(("schema", "wanted"), cases())
def test_an_actors_policy_equals_the_learners_network(schema: Schema, wanted: NetworkSpec) -> None:
    """Also after the weights went over the wire; the parameters' shapes are known without the network. So does what a
    network is as operations of numpy, in JSON."""
    torch.manual_seed(3)
    online = build_network(wanted, schema)
    policy = make_policy(wanted, schema)
    arrays = unpack(pack(1, 0, 0, host_arrays(online)))[1]
    policy.load(arrays)
    assert isinstance(policy, NumpyMlp) == (wanted.config.encoder == "mlp")
    assert {name: array.shape for name, array in arrays.items()} == parameter_shapes(wanted, schema)
    assert {name: array.tobytes() for name, array in policy.state().items()} == {
        name: array.tobytes() for name, array in arrays.items()
    }
    obs = observations(schema, 64 if math.prod(schema.input_shape) < 1000 else 4)
    with torch.no_grad():
        output = online(torch.from_numpy(obs))
    expected, within = output.q.numpy(), 1.0
    if wanted.head == "atoms":  # a rounding of the largest logit changes a probability by as much, relatively
        assert output.distribution is not None
        within = float(output.distribution.abs().max()) * (OPTIONS["atoms"]["v_max"] - OPTIONS["atoms"]["v_min"])
    q, state = policy(obs, policy.initial_state(len(obs)))
    assert q.dtype == expected.dtype == np.float32
    assert q.shape == expected.shape == (len(obs), schema.num_actions)
    assert_same(q, expected, within)
    assert_same(policy(obs[:1], state)[0], expected[:1], within)
    program = program_of(wanted, schema)
    assert program is not None
    assert_same(network_of(json.loads(json.dumps(program)), arrays)(obs), expected, within)


@pytest.mark.parametrize("schema", PICTURES, ids=str)
def test_the_convolution_sees_the_picture(schema: Schema) -> None:
    """A kernel that looks at one channel of its middle pixel, a linear layer that looks at one place: Q is that pixel,
    wherever the schema has its channels and its stack."""
    online = build_network(spec((), encoder="minatar"), schema)
    channels, height, width = schema.picture_shape or (0, 0, 0)
    channel, row, column = channels - 1, 2, 4
    encoder, head = cast(Any, online.encoder), cast(Any, online.head)
    with torch.no_grad():
        for parameter in online.parameters():
            parameter.zero_()
        encoder.conv.weight[0, channel, 1, 1] = 1.0
        head.linear.weight[0, MINATAR_CHANNELS * ((row - 1) * (width - 2) + column - 1)] = 1.0
        obs = np.abs(observations(schema, 3))
        frames = obs.reshape(3, schema.stack, *schema.obs_shape)
        pixel = (
            frames[:, -1, row, column]
            if len(schema.obs_shape) == 2
            else (frames[:, -1, row, column, -1] if schema.channels_last else frames[:, -1, -1, row, column])
        )
        q = online(torch.from_numpy(obs)).q[:, 0].numpy()
    assert height > row
    assert_allclose(q, pixel / np.float32(schema.obs_divisor), rtol=1e-6)


@pytest.mark.parametrize("schema", [*PICTURES, *ENTRIES, Schema((3,), "int8", 2)])
def test_observations_that_were_scaled_before_have_the_same_values(schema: Schema) -> None:
    online = network(schema)
    shape = (7, *schema.input_shape)
    obs = torch.randint(0, 100, shape).to(getattr(torch, schema.obs_dtype))
    given = obs.clone()
    scaled = online.scaled(obs)
    assert torch.equal(obs, given)
    assert scaled.dtype == torch.float32
    assert torch.equal(scaled, obs.float() / schema.obs_divisor)
    assert torch.equal(online.scaled(scaled), scaled)
    assert torch.equal(online(scaled).q, online(obs).q)


def test_auto_takes_an_encoder_that_fits() -> None:
    schemas = [
        Schema((10, 10, 4), "uint8", 6),
        Schema((35, 99, 4), "uint8", 6),
        Schema((84, 84), "uint8", 6, stack=4),
        Schema((36, 36, 3), "uint8", 6),
        Schema((10, 10), "float32", 2),
        Schema((2, 9, 1), "uint8", 2),
    ]
    chosen = [encoder_of(NetworkConfig(), schema) for schema in schemas]
    assert chosen == ["minatar", "minatar", "nature", "nature", "mlp", "mlp"]
    for schema in schemas:
        build_network(spec((4,)), schema)


@pytest.mark.parametrize(
    ("wanted", "schema", "why"),
    [
        (
            spec(encoder="resnet"),
            PICTURES[0],
            "encoder 'resnet' is unknown: use mlp, minatar, nature, impala, entries, or module:Name of your own",
        ),
        (spec(encoder="no_such:Encoder"), PICTURES[0], "cannot be imported: No module named 'no_such'"),
        (spec(encoder="json:Encoder"), PICTURES[0], "cannot be imported: module 'json' has no attribute 'Encoder'"),
        (
            spec(encoder="minatar"),
            Schema((8,), "float32", 2),
            "wants pictures of at least 3 x 3 pixels, got .* use mlp",
        ),
        (spec(encoder="minatar"), Schema((2, 9, 1), "uint8", 2), "wants pictures of at least 3 x 3 pixels, got"),
        (
            spec(encoder="nature"),
            PICTURES[0],
            r"nature wants pictures of at least 36 x 36 pixels, got .*\(10, 10, 4\); use minatar",
        ),
        (spec(encoder="impala"), Schema((8,), "float32", 2), "impala wants pictures of at least 3 x 3 .* use mlp"),
        (NetworkSpec(head="duck"), PICTURES[0], "head 'duck' is unknown: use values, atoms, quantiles, implicit_"),
    ],
)
def test_what_cannot_be_built_is_refused_in_words(wanted: NetworkSpec, schema: Schema, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        build_network(wanted, schema)


class Normalised(nn.Module):
    """A user's encoder, with a buffer."""

    features = 4

    def __init__(self, schema: Schema, config: NetworkConfig) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)


class Halved(nn.Module):
    """A user's encoder without parameters."""

    def __init__(self, schema: Schema, config: NetworkConfig) -> None:
        super().__init__()
        self.features = int(np.prod(schema.input_shape))

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return obs.flatten(1) / 2


def test_a_users_own_encoder() -> None:
    """By module:Class; its parameters' shapes are known, too, and an actor uses it as it is."""
    wanted, schema = spec(encoder="test_networks:Halved"), Schema((3,), "float32", 2)
    online, policy = build_network(wanted, schema), make_policy(wanted, schema)
    assert parameter_shapes(wanted, schema) == {"head.linear.weight": (2, 3), "head.linear.bias": (2,)}
    policy.load(host_arrays(online))
    obs = observations(schema, 5)
    with torch.no_grad():
        expected = torch.nn.functional.linear(torch.from_numpy(obs) / 2, *online.head.parameters())
    assert_same(policy(obs, {})[0], expected.numpy())


def test_buffers_are_refused() -> None:
    """Target network, average and actors would not follow them."""
    with pytest.raises(ValueError, match="the network has buffers: encoder"):
        build_network(spec(encoder="test_networks:Normalised"), Schema((4,), "float32", 2))


def test_scalar_observations() -> None:
    """A Box of shape () is one number per observation."""
    online = network(Schema((), "float32", 2), 4)
    policy = make_policy(spec((4,)), Schema((), "float32", 2))
    policy.load(host_arrays(online))
    obs = np.linspace(-1, 1, 5, dtype=np.float32)
    with torch.no_grad():
        assert_same(policy(obs, {})[0], online(torch.from_numpy(obs)).q.numpy())


def test_a_linear_network_by_hand() -> None:
    """Q = W s + b; pixels are scaled by 1/255 where the space says that they go up to there."""
    online = network(Schema((2,), "uint8", 2, obs_divisor=255))
    layer = online.head.linear
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        layer.bias.copy_(torch.tensor([10.0, 20.0]))
        q = online(torch.tensor([[255, 0], [0, 51]], dtype=torch.uint8)).q
    torch.testing.assert_close(q, torch.tensor([[11.0, 23.0], [10.4, 20.8]]))


def test_a_dueling_head_by_hand() -> None:
    """Value 5, advantages 1 and 3: Q = 5 + (1 - 2), 5 + (3 - 2); a shift of all advantages changes nothing."""
    online = network(Schema((1,), "float32", 2), dueling=True)
    layer = online.head.linear
    assert isinstance(layer, nn.Linear)
    for shift in (0.0, 100.0):
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor([5.0, 1.0 + shift, 3.0 + shift]))
            torch.testing.assert_close(online(torch.zeros(1, 1)).q, torch.tensor([[4.0, 6.0]]))


def test_flat_parameters_are_the_modules() -> None:
    """The same function as before, and the vector, its gradient and the layers share memory."""
    online = network(Schema((3,), "float32", 2), 5)
    obs = torch.randn(4, 3)
    before = online(obs).q.detach()
    vector = flatten_parameters(online)
    torch.testing.assert_close(online(obs).q.detach(), before, rtol=0, atol=0)
    assert vector.numel() == sum(parameter.numel() for parameter in online.parameters()) == 3 * 5 + 5 + 5 * 2 + 2
    online(obs).q.sum().backward()
    assert vector.grad is not None
    gradients = [p.grad.reshape(-1) for p in online.parameters() if p.grad is not None]
    torch.testing.assert_close(in_shape_order(vector.grad, online), torch.cat(gradients), rtol=0, atol=0)
    assert vector.grad.abs().sum() > 0
    with torch.no_grad():
        vector.zero_()
    assert not online(obs).q.any()


def test_weights_lie_in_memory_as_they_are_multiplied() -> None:
    """Linear layers' with the inputs first, convolutions' with the channels last, in the flat vector, too; what files
    hold is in the order of the shapes, so that it outlives a change of that."""
    online = build_network(spec((5,), encoder="minatar"), Schema((4, 4, 2), "uint8", 3))
    in_order = torch.cat([parameter.detach().reshape(-1) for parameter in online.parameters()])
    vector = flatten_parameters(online)
    encoder, head = cast(Any, online.encoder), cast(Any, online.head)
    for layer in (*encoder.layers, head.linear):
        assert layer.weight.stride() == layer.weight.grad.stride() == (1, layer.out_features)
    assert encoder.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert_close(in_shape_order(vector.detach(), online), in_order, rtol=0, atol=0)
    values = torch.arange(len(in_order), dtype=torch.float32)
    set_in_shape_order(vector.detach(), online, values)
    assert_close(torch.cat([parameter.detach().reshape(-1) for parameter in online.parameters()]), values)


def test_a_parameter_that_is_part_of_another_tensor() -> None:
    module = nn.Linear(3, 2, bias=False)
    module.weight.data = torch.arange(24.0).view(4, 6)[1:3, ::2]
    vector = flatten_parameters(module)
    assert vector.tolist() == [6.0, 8.0, 10.0, 12.0, 14.0, 16.0]
    assert module.weight.tolist() == [[6.0, 8.0, 10.0], [12.0, 14.0, 16.0]]


def test_spectral_norm_divides_by_the_greatest_singular_value() -> None:
    """Of random and of ill-conditioned matrices, for learning and for acting; its gradient is that of the quotient."""
    torch.manual_seed(0)
    conv = SpectralConv2d(6, 5, 3, padding=1)
    for scale in (1.0, 1e-3, 50.0):
        with torch.no_grad():
            conv.weight.copy_(torch.randn(5, 6, 3, 3) * scale)
            conv.weight[0] *= 3
        exact = torch.linalg.matrix_norm(conv.weight.detach().flatten(1), 2)
        assert_close(conv.folded_weight().detach(), conv.weight.detach() / exact, rtol=1e-4, atol=1e-6)
    weight = conv.weight.detach().clone().requires_grad_()
    chosen = torch.randn(5, 6, 3, 3)
    (weight / torch.linalg.matrix_norm(weight.flatten(1), 2) * chosen).sum().backward()
    (conv.folded_weight() * chosen).sum().backward()  # type: ignore[no-untyped-call]
    assert_close(conv.weight.grad, weight.grad, rtol=1e-3, atol=1e-6)


def test_a_convolution_of_zeros_has_no_spectral_norm_to_divide_by() -> None:
    conv = SpectralConv2d(2, 2, 3, padding=1)
    nn.init.zeros_(conv.weight)
    assert not conv.folded_weight().any()


def test_an_implicit_quantile_function_by_hand() -> None:
    """Two cosines, cos(0) = 1 and cos(pi tau): with weights 1 and 2 the embedding of tau is 1 + 2 cos(pi tau), at 1/2
    it is 1, at 1 relu(-1). Expected values are means over the midpoints 1/4 and 3/4: of 1 + sqrt 2 and 0."""
    head = ImplicitQuantilesHead(1, 1, NetworkSpec(head="implicit_quantiles", options={"cosines": 2, "fractions": 2}))
    with torch.no_grad():
        head.embedding.weight.copy_(torch.tensor([[1.0, 2.0]]))
        head.embedding.bias.zero_()
        head.linear.weight.fill_(10.0)
        head.linear.bias.fill_(0.5)
        quantiles = head.quantiles(torch.tensor([[3.0]]), torch.tensor([[0.5, 1.0, 0.0]]))
        assert_close(quantiles, torch.tensor([[[30.5, 0.5, 90.5]]]), rtol=0, atol=1e-4)
        assert_close(head(torch.tensor([[3.0]])).q, torch.tensor([[30 * (1 + 2**0.5) / 2 + 0.5]]))


def test_atoms_by_hand() -> None:
    """Atoms -1, 0 and 1 with probabilities 1/6, 2/6, 3/6: the expected value is 1/3."""
    head = AtomsHead(1, 1, NetworkSpec(head="atoms", options={"atoms": 3, "v_min": -1.0, "v_max": 1.0}))
    with torch.no_grad():
        head.linear.weight.zero_()
        head.linear.bias.copy_(torch.tensor([1.0, 2.0, 3.0]).log())
        assert_close(head(torch.zeros(1, 1)).q, torch.tensor([[1 / 3]]))
