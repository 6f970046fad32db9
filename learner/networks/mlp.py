"""The multi-layer perceptron as an encoder."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from learner.networks.config import NetworkConfig
from replay.chunk import Schema


class MlpEncoder(nn.Module):
    """Flattens observations of any shape; linear layers, each with a ReLU after it."""

    def __init__(self, schema: Schema, config: NetworkConfig) -> None:
        super().__init__()
        self.layers, self.features = linear_layers(math.prod(schema.input_shape), config.hidden)

    def forward(self, obs: Tensor) -> Tensor:
        """Maps obs <float32>[B, *input_shape] to features <float32>[B, F]."""
        x = obs.reshape(len(obs), -1)
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


def linear_layers(inputs: int, hidden: tuple[int, ...]) -> tuple[nn.ModuleList, int]:
    """Returns linear layers of these units and the number of features that the last one gives."""
    sizes = (inputs, *hidden)
    return nn.ModuleList(nn.Linear(size, units) for size, units in pairwise(sizes)), sizes[-1]
