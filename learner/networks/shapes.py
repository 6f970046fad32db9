"""The shapes of a network's parameters, without torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise, product
from typing import TYPE_CHECKING, NamedTuple

from learner.networks.choice import LEAST, described, encoder_of, parts_of, remedy
from learner.networks.config import NetworkConfig, NetworkSpec

if TYPE_CHECKING:
    from replay.chunk import Schema

Shapes = dict[str, tuple[int, ...]]


class Convolution(NamedTuple):
    """A convolution without padding, its kernel a square."""

    channels: int
    kernel: int
    stride: int


MINATAR_CHANNELS, MINATAR_KERNEL = 16, 3
"""The convolution of MinAtar's reference DQN (Young and Tian, arXiv 1903.03176, examples/dqn.py)."""
NATURE_CONVOLUTIONS = (Convolution(32, 8, 4), Convolution(64, 4, 2), Convolution(64, 3, 1))
"""DQN's (Mnih et al. 2015, doi 10.1038/nature14236)."""
GATES = {"lstm": 4, "gru": 3}
"""Vectors of ``core_size`` that a core computes from its inputs."""
IMPALA_CHANNELS = (16, 32, 32)
"""Of IMPALA's stages (arXiv 1802.01561)."""


def parameter_shapes(spec: NetworkSpec, schema: Schema) -> Shapes:
    """Returns the shape of each parameter by its name. Builds the network, without memory, where it is a user's own."""
    encoder = encoder_of(spec.config, schema)
    if encoder not in _ENCODERS or spec.head not in _HEADS:
        return _shapes_of_a_users_own(spec, schema)
    shapes, features = _ENCODERS[encoder](spec.config, schema)
    core, features = _core(spec.config, features, schema.num_actions)
    outputs, further = _HEADS[spec.head](spec, features)
    linear = _linear("head.linear", features, outputs * (schema.num_actions + int(spec.config.dueling)))
    return shapes | core | further | linear


def core_inputs(config: NetworkConfig, features: int, num_actions: int) -> int:
    """Returns how many numbers the core is given of each time step: the features, and the previous action, one-hot,
    and reward where it is given them."""
    return features + (num_actions + 1 if config.core_previous else 0)


def _core(config: NetworkConfig, features: int, num_actions: int) -> tuple[Shapes, int]:
    if config.core == "none":
        return {}, features
    gates, inputs = GATES[config.core] * config.core_size, core_inputs(config, features, num_actions)
    shapes: Shapes = {"weight_ih": (gates, inputs), "weight_hh": (gates, config.core_size)}
    shapes |= {"bias_ih": (gates,), "bias_hh": (gates,)}
    return {f"core.rnn.{name}_l0": shape for name, shape in shapes.items()}, config.core_size


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, units: int) -> Shapes:
    return {f"{name}.weight": (units,), f"{name}.bias": (units,)}


def _conv(name: str, inputs: int, outputs: int, kernel: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (outputs,)}


def _layers(inputs: int, config: NetworkConfig) -> tuple[Shapes, int]:
    shapes: Shapes = {}
    for layer, (size, units) in enumerate(pairwise((inputs, *config.hidden))):
        shapes |= _linear(f"encoder.layers.{layer}", size, units)
    if config.layer_norm:
        for layer, units in enumerate(config.hidden):
            shapes |= _norm(f"encoder.norms.{layer}", units)
    return shapes, (inputs, *config.hidden)[-1]


def _mlp(config: NetworkConfig, schema: Schema) -> tuple[Shapes, int]:
    return _layers(math.prod(schema.input_shape), config)


def _picture(encoder: str, schema: Schema) -> tuple[int, int, int]:
    """Returns channels, height and width. Raises ValueError for observations that are no pictures of the encoder's
    least size."""
    picture, least = schema.picture_shape, LEAST[encoder]
    if picture is None or min(picture[1:]) < least:
        raise ValueError(
            f"the encoder {encoder} wants pictures of at least {least} x {least} pixels, got {described(schema)}; "
            f"{remedy(schema)}"
        )
    return picture


def minatar_picture(schema: Schema) -> tuple[int, int, int]:
    """Returns channels, height and width of the pictures. Raises ValueError where it is no encoder for them."""
    return _picture("minatar", schema)


def _minatar(config: NetworkConfig, schema: Schema) -> tuple[Shapes, int]:
    channels, height, width = minatar_picture(schema)
    shapes = _conv("encoder.conv", channels, MINATAR_CHANNELS, MINATAR_KERNEL)
    if config.layer_norm:
        shapes |= _norm("encoder.norm", MINATAR_CHANNELS)
    pixels = (height - MINATAR_KERNEL + 1) * (width - MINATAR_KERNEL + 1)
    layers, features = _layers(MINATAR_CHANNELS * pixels, config)
    return shapes | layers, features


def nature_sizes(schema: Schema) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """Returns the pictures' channels, height and width, and height and width after the last convolution. Raises
    ValueError where it is no encoder for them."""
    picture = _picture("nature", schema)
    _, height, width = picture
    for _, kernel, stride in NATURE_CONVOLUTIONS:
        height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
    return picture, (height, width)


def _nature(config: NetworkConfig, schema: Schema) -> tuple[Shapes, int]:
    (channels, _, _), (height, width) = nature_sizes(schema)
    shapes: Shapes = {}
    for index, layer in enumerate(NATURE_CONVOLUTIONS):
        shapes |= _conv(f"encoder.convs.{index}", channels, layer.channels, layer.kernel)
        if config.layer_norm:
            shapes |= _norm(f"encoder.conv_norms.{index}", layer.channels)
        channels = layer.channels
    layers, features = _layers(channels * height * width, config)
    return shapes | layers, features


def impala_features(config: NetworkConfig, schema: Schema) -> tuple[int, int]:
    """Returns the pictures' channels, and how many numbers the linear layers get. Raises ValueError where it is no
    encoder for them."""
    channels, height, width = _picture("impala", schema)
    for _ in IMPALA_CHANNELS:
        height, width = (height + 1) // 2, (width + 1) // 2
    pixels = {"flat": height * width, "max6": 36, "gap": 1}[config.impala.pool]
    return channels, IMPALA_CHANNELS[-1] * config.impala.width * pixels


def _impala(config: NetworkConfig, schema: Schema) -> tuple[Shapes, int]:
    channels, inputs = impala_features(config, schema)
    shapes: Shapes = {}
    for stage, base in enumerate(IMPALA_CHANNELS):
        wide = base * config.impala.width
        shapes |= _conv(f"encoder.stages.{stage}.0", channels, wide, 3)
        for block, conv in product((2, 3), (0, 1)):
            name = f"encoder.stages.{stage}.{block}"
            shapes |= _conv(f"{name}.convs.{conv}", wide, wide, 3)
            if config.layer_norm:
                shapes |= _norm(f"{name}.norms.{conv}", wide)
        channels = wide
    layers, features = _layers(inputs, config)
    return shapes | layers, features


def config_of_parts(config: NetworkConfig) -> NetworkConfig:
    """Returns what each part of the encoder entries is made with: the first linear layer only."""
    return config.model_copy(update={"hidden": config.hidden[:1]})


def _entries(config: NetworkConfig, schema: Schema) -> tuple[Shapes, int]:
    shapes: Shapes = {}
    inputs = 0
    for index, part in enumerate(parts_of(schema)):
        own, features = _ENCODERS[part.encoder](config_of_parts(config), part.schema)
        shapes |= {name.replace("encoder.", f"encoder.parts.{index}.", 1): shape for name, shape in own.items()}
        inputs += features
    layers, features = _layers(inputs, config)
    return shapes | layers, features


_ENCODERS: dict[str, Callable[[NetworkConfig, Schema], tuple[Shapes, int]]] = {
    "mlp": _mlp,
    "minatar": _minatar,
    "nature": _nature,
    "impala": _impala,
    "entries": _entries,
}
_HEADS: dict[str, Callable[[NetworkSpec, int], tuple[int, Shapes]]] = {
    "values": lambda spec, features: (1, {}),
    "atoms": lambda spec, features: (int(spec.options["atoms"]), {}),
    "quantiles": lambda spec, features: (int(spec.options["quantiles"]), {}),
    "implicit_quantiles": lambda spec, features: (1, _linear("head.embedding", int(spec.options["cosines"]), features)),
}
"""Outputs per action, and the shapes of parameters beside the last layer's."""


def _shapes_of_a_users_own(spec: NetworkSpec, schema: Schema) -> Shapes:
    import torch

    from learner.networks import build_network

    with torch.device("meta"):
        network = build_network(spec, schema)
    return {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
