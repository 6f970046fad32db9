"""The multi-layer perceptron as an encoder, and the linear layers at the end of every other one."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn

from learner.networks.config import NetworkConfig
from replay.chunk import Schema


class LinearLayers(nn.Module):
    """Linear layers, each with a ReLU after it, and a LayerNorm between the two where the configuration has it."""

    def __init__(self, inputs: int, config: NetworkConfig) -> None:
        super().__init__()
        sizes = (inputs, *config.hidden)
        self.layers = nn.ModuleList(nn.Linear(size, units) for size, units in pairwise(sizes))
        self.norms = nn.ModuleList(nn.LayerNorm(units) for units in config.hidden) if config.layer_norm else None
        self.features = sizes[-1]

    def through_layers(self, x: Tensor) -> Tensor:
        """Maps x <float32>[B, inputs] to features <float32>[B, F]."""
        if self.norms is None:
            for layer in self.layers:
                x = layer(x).relu()
        else:
            for layer, norm in zip(self.layers, self.norms, strict=True):
                x = norm(layer(x)).relu()
        return x


class MlpEncoder(LinearLayers):
    """Flattens observations of any shape, and has linear layers."""

    def __init__(self, schema: Schema, config: NetworkConfig) -> None:
        super().__init__(math.prod(schema.input_shape), config)

    def forward(self, obs: Tensor) -> Tensor:
        """Maps obs <float32>[B, *input_shape] to features <float32>[B, F]."""
        return self.through_layers(obs if obs.dim() == 2 else obs.reshape(obs.shape[0], -1))
