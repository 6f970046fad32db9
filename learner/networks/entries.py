"""The encoder of observations that are a Dict or Tuple of pictures and other entries."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from learner.networks import ENCODERS
from learner.networks.choice import Part, parts_of
from learner.networks.config import NetworkConfig
from learner.networks.mlp import LinearLayers
from learner.networks.shapes import config_of_parts
from replay.chunk import Schema
from replay.registry import load


class EntriesEncoder(LinearLayers):
    """An encoder for each picture, and an MLP for all other entries together, each with the first linear layer of
    ``hidden``; their features one after another, and then all linear layers of ``hidden``."""

    def __init__(self, schema: Schema, config: NetworkConfig) -> None:
        """Raises ValueError for observations that are no Dict or Tuple with a picture."""
        parts, own = parts_of(schema), config_of_parts(config)
        encoders = [load(ENCODERS, part.encoder, "encoder")(part.schema, own) for part in parts]
        super().__init__(sum(encoder.features for encoder in encoders), config)
        self._parts = parts
        self.parts = nn.ModuleList(encoders)

    def forward(self, obs: Tensor) -> Tensor:
        """Maps obs <float32>[B, *input_shape] to features <float32>[B, F]."""
        features = [encoder(of_part(obs, part)) for encoder, part in zip(self.parts, self._parts, strict=True)]
        return self.through_layers(torch.cat(features, 1))


def of_part(obs: Tensor, part: Part) -> Tensor:
    """Returns a part's own numbers <float32>[B, *part.schema.input_shape] of flat observations <float32>[B, (S,) N]."""
    own = [obs[..., where] for where in part.where]
    return (own[0] if len(own) == 1 else torch.cat(own, -1)).reshape(obs.shape[0], *part.schema.input_shape)
