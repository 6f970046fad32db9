"""Q-networks in torch. ``actors/policy.py`` computes the same function in numpy; a test holds the two equal."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from learner.config import NetworkConfig
from replay.chunk import Schema


class MlpQNetwork(nn.Module):
    """Linear layers with ReLU between them; a dueling head is one layer of 1 + A outputs.

    Observations of any shape are flattened; uint8 ones (pixels) are scaled by 1/255 as they arrive on the device.
    """

    def __init__(self, schema: Schema, config: NetworkConfig) -> None:
        super().__init__()
        self._dueling = config.dueling
        sizes = config.layer_sizes(math.prod(schema.input_shape), schema.num_actions)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, obs: Tensor) -> Tensor:
        """obs <obs_dtype>[B, *input_shape] to Q values <float32>[B, A]."""
        x: Tensor = obs.reshape(len(obs), -1).to(torch.float32)
        if obs.dtype == torch.uint8:
            x = x / 255
        *hidden, head = self.layers
        for layer in hidden:
            x = torch.relu(layer(x))
        x = head(x)
        if not self._dueling:
            return x
        value, advantage = x[:, :1], x[:, 1:]
        return value + advantage - advantage.mean(1, keepdim=True)


def flatten_parameters(module: nn.Module) -> Tensor:
    """Move the module's parameters into one vector, of which they become views, and return it as one parameter.

    Its ``.grad`` holds every parameter's gradient, so that clipping, Adam, target copies and publishing are each one
    operation instead of one per layer (measured in docs/performance.md).
    """
    parameters = list(module.parameters())
    vector = nn.Parameter(torch.cat([parameter.detach().reshape(-1) for parameter in parameters]))
    vector.grad = torch.zeros_like(vector)
    offset = 0
    for parameter in parameters:
        end = offset + parameter.numel()
        parameter.data = vector.data[offset:end].view_as(parameter)
        parameter.grad = vector.grad[offset:end].view_as(parameter)
        offset = end
    return vector
