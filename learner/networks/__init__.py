"""Q-networks: encoders and heads by name. A new one is a file here and a line in a registry, or a user's own class.

Nothing here imports torch before ``build_network`` is called: actors without a torch policy, ``plan`` and ``doctor``
use the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from learner.networks.choice import choice_of, encoder_of
from learner.networks.config import NetworkConfig, NetworkSpec
from learner.networks.program import core_width
from learner.networks.shapes import parameter_shapes
from replay.registry import load, make

if TYPE_CHECKING:
    from learner.networks.q_network import QNetwork
    from replay.chunk import Schema

__all__ = [
    "ENCODERS",
    "HEADS",
    "NetworkConfig",
    "NetworkSpec",
    "build_network",
    "choice_of",
    "core_width",
    "encoder_of",
    "parameter_shapes",
]

ENCODERS: dict[str, str] = {
    "mlp": "learner.networks.mlp:MlpEncoder",
    "minatar": "learner.networks.minatar:MinAtarEncoder",
    "nature": "learner.networks.nature:NatureEncoder",
    "impala": "learner.networks.impala:ImpalaEncoder",
    "entries": "learner.networks.entries:EntriesEncoder",
}
"""Encoder classes by name: ``(schema, config)``, an attribute ``features``, and ``forward`` from scaled observations
<float32>[B, *input_shape] to features <float32>[B, features]."""

HEADS: dict[str, str] = {
    "values": "learner.networks.heads:ValuesHead",
    "atoms": "learner.networks.heads:AtomsHead",
    "quantiles": "learner.networks.heads:QuantilesHead",
    "implicit_quantiles": "learner.networks.heads:ImplicitQuantilesHead",
}
"""Head classes by name: ``(features, num_actions, spec)``, and ``forward`` from features to a ``QOutput``."""


def build_network(spec: NetworkSpec, schema: Schema) -> QNetwork:
    """Builds the network in torch, with fresh parameters.

    Raises:
        ValueError: an encoder or head that is neither registered nor importable, or that refuses the schema.
    """
    from torch.nn import Module

    from learner.networks.q_network import QNetwork, arrange_weights

    name = encoder_of(spec.config, schema)
    kind = load(ENCODERS, name, "encoder")
    encoder = make(name, "encoder", lambda: kind(schema, spec.config))
    features = getattr(encoder, "features", None)
    if not isinstance(encoder, Module) or not isinstance(features, int):
        raise ValueError(
            f"encoder {name!r} is a {type(encoder).__name__}; it has to be a torch.nn.Module with features, an int"
        )
    core = None
    if spec.config.core != "none":
        from learner.networks.recurrent import RecurrentCore

        core = RecurrentCore(features, schema.num_actions, spec)
        features = core.features
    head_kind = load(HEADS, spec.head, "head")
    head = make(spec.head, "head", lambda: head_kind(features, schema.num_actions, spec))
    network = QNetwork(encoder, head, schema, core)
    arrange_weights(network)
    return network
