"""What a network computes, as a list of operations by name: learner/networks/portable.py runs it without torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from learner.networks.choice import encoder_of, parts_of
from learner.networks.config import NetworkConfig, NetworkSpec
from learner.networks.shapes import IMPALA_CHANNELS, NATURE_CONVOLUTIONS, config_of_parts

if TYPE_CHECKING:
    from replay.chunk import Schema

Program = list[dict[str, Any]]
FLAT: dict[str, Any] = {"op": "flatten", "picture": True}
"""See ``convolutions.flat``."""


def program_of(spec: NetworkSpec, schema: Schema) -> Program | None:
    """Returns the operations from observations to Q values, with published weights (which have their spectral norm
    divided out); None for a network with a part of the user's own."""
    encoder = encoder_of(spec.config, schema)
    if encoder not in _ENCODERS or spec.head not in HEADS:
        return None
    scale: Program = [{"op": "scale", "divisor": schema.obs_divisor}] if schema.obs_divisor != 1 else []
    head = {"op": "head", "head": spec.head, "options": dict(spec.options), "dueling": spec.config.dueling}
    return [*scale, *_ENCODERS[encoder]("encoder", spec.config, schema), *core_of(spec, schema.num_actions), head]


def core_of(spec: NetworkSpec, num_actions: int) -> Program:
    """Returns the operation of the recurrent core as a list of one; of none where there is no core."""
    config = spec.config
    if config.core == "none":
        return []
    given = {"actions": num_actions, "reward_scale": spec.reward_scale, "reward_clip": spec.reward_clip}
    previous = given if config.core_previous else None
    return [{"op": "core", "name": "core.rnn", "kind": config.core, "size": config.core_size, "previous": previous}]


def core_width(spec: NetworkSpec, num_actions: int) -> int:
    """Returns the numbers of a lane's recurrent state; 0 without a core."""
    from learner.networks.portable import Memory  # it has numpy, before which the command qherd pins BLAS' threads

    return Memory.of(core_of(spec, num_actions)).width


HEADS = ("values", "atoms", "quantiles", "implicit_quantiles")
"""Those that the operation ``head`` computes."""


def _layers(name: str, config: NetworkConfig) -> Program:
    program: Program = []
    for layer in range(len(config.hidden)):
        if config.layer_norm:
            program += [
                {"op": "linear", "name": f"{name}.layers.{layer}"},
                {"op": "norm", "name": f"{name}.norms.{layer}"},
                {"op": "relu"},
            ]
        else:
            program.append({"op": "linear", "name": f"{name}.layers.{layer}", "relu": True})
    return program


def _mlp(name: str, config: NetworkConfig, schema: Schema) -> Program:
    flatten: Program = [{"op": "flatten"}] if len(schema.input_shape) != 1 else []
    return flatten + _layers(name, config)


def _picture(schema: Schema) -> Program:
    moved = schema.channels_last and len(schema.obs_shape) == 3
    return [{"op": "picture", "shape": list(schema.picture_shape or ()), "channels_last": moved}]


def _conv(name: str, stride: int = 1, padding: int = 0) -> dict[str, Any]:
    return {"op": "conv", "name": name, "stride": stride, "padding": padding}


def _norm(name: str, config: NetworkConfig) -> Program:
    return [{"op": "norm", "name": name, "picture": True}] if config.layer_norm else []


def _minatar(name: str, config: NetworkConfig, schema: Schema) -> Program:
    convolution = [*_picture(schema), _conv(f"{name}.conv"), *_norm(f"{name}.norm", config), {"op": "relu"}]
    return [*convolution, FLAT, *_layers(name, config)]


def _nature(name: str, config: NetworkConfig, schema: Schema) -> Program:
    program = _picture(schema)
    for index, layer in enumerate(NATURE_CONVOLUTIONS):
        program += [_conv(f"{name}.convs.{index}", layer.stride), *_norm(f"{name}.conv_norms.{index}", config)]
        program.append({"op": "relu"})
    return [*program, FLAT, *_layers(name, config)]


def _impala(name: str, config: NetworkConfig, schema: Schema) -> Program:
    program = _picture(schema)
    for stage in range(len(IMPALA_CHANNELS)):
        program += [_conv(f"{name}.stages.{stage}.0", 1, 1), {"op": "max_pool", "size": 3, "stride": 2, "padding": 1}]
        for block in (2, 3):
            inner: Program = []
            for conv in (0, 1):
                part = f"{name}.stages.{stage}.{block}"
                inner += [*_norm(f"{part}.norms.{conv}", config), {"op": "relu"}, _conv(f"{part}.convs.{conv}", 1, 1)]
            program.append({"op": "residual", "program": inner})
    pools: dict[str, Program] = {
        "flat": [FLAT],
        "max6": [{"op": "max_fields", "fields": 6}, FLAT],
        "gap": [{"op": "mean_pixels"}],
    }
    return [*program, {"op": "relu"}, *pools[config.impala.pool], *_layers(name, config)]


def _entries(name: str, config: NetworkConfig, schema: Schema) -> Program:
    own, parts = config_of_parts(config), []
    for index, part in enumerate(parts_of(schema)):
        steps = _ENCODERS[part.encoder](f"{name}.parts.{index}", own, part.schema)
        where = [[each.start, each.stop] for each in part.where]
        parts.append({"where": where, "shape": list(part.schema.input_shape), "program": steps})
    return [{"op": "parts", "parts": parts}, *_layers(name, config)]


_ENCODERS: dict[str, Callable[[str, NetworkConfig, Schema], Program]] = {
    "mlp": _mlp,
    "minatar": _minatar,
    "nature": _nature,
    "impala": _impala,
    "entries": _entries,
}
