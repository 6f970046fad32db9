"""Which encoder an observation gets, and the shapes of a network's parameters, without torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

from learner.networks.config import NetworkConfig, NetworkSpec

if TYPE_CHECKING:
    from replay.chunk import Schema

Shapes = dict[str, tuple[int, ...]]
SMALL_PICTURE = 16
"""Height and width up to which ``auto`` takes the encoder of MinAtar's 10 x 10 pictures."""
MINATAR_CHANNELS, MINATAR_KERNEL = 16, 3
"""The convolution of MinAtar's reference DQN (Young and Tian, arXiv 1903.03176, examples/dqn.py)."""


def encoder_of(config: NetworkConfig, schema: Schema) -> str:
    """Returns the encoder's name, ``auto`` resolved by the observation's shape."""
    if config.encoder != "auto":
        return config.encoder
    picture = schema.picture_shape
    return "minatar" if picture is not None and max(picture[1:]) <= SMALL_PICTURE else "mlp"


def parameter_shapes(spec: NetworkSpec, schema: Schema) -> Shapes:
    """Returns the shape of each parameter by its name. Builds the network, without memory, where it is a user's own."""
    encoder = encoder_of(spec.config, schema)
    if encoder not in _ENCODERS or spec.head not in _HEADS:
        return _shapes_of_a_users_own(spec, schema)
    shapes, features = _ENCODERS[encoder](spec.config, schema)
    outputs = _HEADS[spec.head](spec) * (schema.num_actions + int(spec.config.dueling))
    return shapes | _linear("head.linear", features, outputs)


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _layers(inputs: int, hidden: tuple[int, ...]) -> tuple[Shapes, int]:
    shapes: Shapes = {}
    for layer, (size, units) in enumerate(pairwise((inputs, *hidden))):
        shapes |= _linear(f"encoder.layers.{layer}", size, units)
    return shapes, (inputs, *hidden)[-1]


def _mlp(config: NetworkConfig, schema: Schema) -> tuple[Shapes, int]:
    return _layers(math.prod(schema.input_shape), config.hidden)


def _minatar(config: NetworkConfig, schema: Schema) -> tuple[Shapes, int]:
    picture = schema.picture_shape
    if picture is None:
        raise ValueError(f"the encoder minatar wants pictures, got observations of shape {schema.obs_shape}; use mlp")
    channels, height, width = picture
    kernel = MINATAR_KERNEL
    if min(height, width) < kernel:
        raise ValueError(f"the encoder minatar wants at least {kernel} x {kernel} pixels, got {height} x {width}")
    shapes: Shapes = {
        "encoder.conv.weight": (MINATAR_CHANNELS, channels, kernel, kernel),
        "encoder.conv.bias": (MINATAR_CHANNELS,),
    }
    layers, features = _layers(MINATAR_CHANNELS * (height - kernel + 1) * (width - kernel + 1), config.hidden)
    return shapes | layers, features


_ENCODERS: dict[str, Callable[[NetworkConfig, Schema], tuple[Shapes, int]]] = {"mlp": _mlp, "minatar": _minatar}
_HEADS: dict[str, Callable[[NetworkSpec], int]] = {
    "values": lambda spec: 1,
    "quantiles": lambda spec: int(spec.options["quantiles"]),
}
"""Outputs per action."""


def _shapes_of_a_users_own(spec: NetworkSpec, schema: Schema) -> Shapes:
    import torch

    from learner.networks import build_network

    with torch.device("meta"):
        network = build_network(spec, schema)
    return {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
