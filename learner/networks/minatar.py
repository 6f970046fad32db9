"""The encoder of MinAtar's reference DQN, for small pictures."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from learner.networks.config import NetworkConfig
from learner.networks.mlp import linear_layers
from learner.networks.shapes import MINATAR_CHANNELS, MINATAR_KERNEL
from replay.chunk import Schema


class MinAtarEncoder(nn.Module):
    """One 3 x 3 convolution with 16 channels, then linear layers, each with a ReLU after it.

    Young and Tian, arXiv 1903.03176; their network has one linear layer of 128 units.
    """

    def __init__(self, schema: Schema, config: NetworkConfig) -> None:
        """Raises ValueError for observations that are no pictures, or smaller than the kernel."""
        super().__init__()
        picture = schema.picture_shape
        if picture is None or min(picture[1:]) < MINATAR_KERNEL:
            raise ValueError(
                f"the encoder minatar wants pictures of at least {MINATAR_KERNEL} x {MINATAR_KERNEL} pixels, got "
                f"observations of shape {schema.obs_shape}; use mlp"
            )
        self._schema = schema
        channels, height, width = picture
        self.conv = nn.Conv2d(channels, MINATAR_CHANNELS, MINATAR_KERNEL)
        pixels = (height - MINATAR_KERNEL + 1) * (width - MINATAR_KERNEL + 1)
        self.layers, self.features = linear_layers(MINATAR_CHANNELS * pixels, config.hidden)

    def forward(self, obs: Tensor) -> Tensor:
        """Maps obs <float32>[B, *input_shape] to features <float32>[B, F]."""
        x = torch.relu(self.conv(channels_first(obs, self._schema))).flatten(1)
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


def channels_first(obs: Tensor, schema: Schema) -> Tensor:
    """Returns pictures <float32>[B, *input_shape] as [B, C, H, W]; a stack's frames become channels."""
    picture = schema.picture_shape
    assert picture is not None
    if schema.channels_last and len(schema.obs_shape) == 3:  # [B, (S,) H, W, C]
        obs = obs.movedim(-1, -3)
    return obs.reshape(-1, *picture)
