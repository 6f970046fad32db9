"""The encoder of MinAtar's reference DQN, for small pictures."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from learner.networks.config import NetworkConfig
from learner.networks.convolutions import channels_first, flat, picture_norm
from learner.networks.mlp import LinearLayers
from learner.networks.shapes import MINATAR_CHANNELS, MINATAR_KERNEL, minatar_picture
from replay.chunk import Schema


class MinAtarEncoder(LinearLayers):
    """One 3 x 3 convolution with 16 channels, then linear layers, each with a ReLU after it.

    Young and Tian, arXiv 1903.03176; their network has one linear layer of 128 units.
    """

    def __init__(self, schema: Schema, config: NetworkConfig) -> None:
        """Raises ValueError for observations that are no pictures, or smaller than the kernel."""
        channels, height, width = minatar_picture(schema)
        super().__init__(MINATAR_CHANNELS * (height - MINATAR_KERNEL + 1) * (width - MINATAR_KERNEL + 1), config)
        self._schema = schema
        self.conv = nn.Conv2d(channels, MINATAR_CHANNELS, MINATAR_KERNEL)
        self.norm = picture_norm(MINATAR_CHANNELS, config)

    def forward(self, obs: Tensor) -> Tensor:
        """Maps obs <float32>[B, *input_shape] to features <float32>[B, F]."""
        return self.through_layers(flat(torch.relu(self.norm(self.conv(channels_first(obs, self._schema))))))
