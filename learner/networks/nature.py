"""The encoder of DQN (Mnih et al. 2015, doi 10.1038/nature14236), for pictures such as Atari's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from learner.networks.config import NetworkConfig
from learner.networks.convolutions import channels_first, flat, picture_norm
from learner.networks.mlp import LinearLayers
from learner.networks.shapes import NATURE_CONVOLUTIONS, nature_sizes
from replay.chunk import Schema


class NatureEncoder(LinearLayers):
    """Three convolutions, then linear layers (the paper has one, of 512 units), each with a ReLU after it."""

    def __init__(self, schema: Schema, config: NetworkConfig) -> None:
        """Raises ValueError for observations that are no pictures, or too small."""
        (channels, _, _), (height, width) = nature_sizes(schema)
        super().__init__(NATURE_CONVOLUTIONS[-1].channels * height * width, config)
        self._schema = schema
        self.convs, self.conv_norms = nn.ModuleList(), nn.ModuleList()
        for layer in NATURE_CONVOLUTIONS:
            self.convs.append(nn.Conv2d(channels, layer.channels, layer.kernel, layer.stride))
            self.conv_norms.append(picture_norm(layer.channels, config))
            channels = layer.channels

    def forward(self, obs: Tensor) -> Tensor:
        """Maps obs <float32>[B, *input_shape] to features <float32>[B, F]."""
        x = channels_first(obs, self._schema)
        for conv, norm in zip(self.convs, self.conv_norms, strict=True):
            x = torch.relu(norm(conv(x)))
        return self.through_layers(flat(x))
