"""Q-networks: encoders and heads by name. A new one is a file here and a line in a registry, or a user's own class.

Nothing here imports torch before ``build_network`` is called: actors without a torch policy, ``plan`` and ``doctor``
use the rest.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from learner.networks.config import NetworkConfig, NetworkSpec
from learner.networks.shapes import encoder_of, parameter_shapes

if TYPE_CHECKING:
    from learner.networks.q_network import QNetwork
    from replay.chunk import Schema

__all__ = [
    "ENCODERS",
    "HEADS",
    "NetworkConfig",
    "NetworkSpec",
    "build_network",
    "encoder_of",
    "load",
    "parameter_shapes",
]

ENCODERS: dict[str, str] = {
    "mlp": "learner.networks.mlp:MlpEncoder",
    "minatar": "learner.networks.minatar:MinAtarEncoder",
}
"""Encoder classes by name: ``(schema, config)``, an attribute ``features``, and ``forward`` from scaled observations
<float32>[B, *input_shape] to features <float32>[B, features]."""

HEADS: dict[str, str] = {
    "values": "learner.networks.heads:ValuesHead",
    "quantiles": "learner.networks.heads:QuantilesHead",
}
"""Head classes by name: ``(features, num_actions, spec)``, and ``forward`` from features to a ``QOutput``."""


def build_network(spec: NetworkSpec, schema: Schema) -> QNetwork:
    """Builds the network in torch, with fresh parameters.

    Raises:
        ValueError: an encoder or head that is neither registered nor importable, or that refuses the schema.
    """
    from learner.networks.q_network import QNetwork

    encoder = load(ENCODERS, encoder_of(spec.config, schema), "encoder")(schema, spec.config)
    return QNetwork(encoder, load(HEADS, spec.head, "head")(encoder.features, schema.num_actions, spec), schema)


def load(registry: Mapping[str, str], name: str, what: str) -> Any:
    """Returns the object that a registry has by this name, or a user's own by ``module:Name``.

    Raises:
        ValueError: an unknown name, or a module that cannot be imported or has no such name.
    """
    module, colon, attribute = registry.get(name, name).partition(":")
    if not colon:
        raise ValueError(f"{what} {name!r} is unknown: use {', '.join(registry)}, or module:Name of your own")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{what} {name!r} cannot be imported: {error}; give its folder with --env.path") from error
    except (Exception, SystemExit) as error:  # a user's module may raise anything, and may call sys.exit()
        raise ValueError(f"{what} {name!r} cannot be imported: {type(error).__name__}: {error}") from error
