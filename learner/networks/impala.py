"""The residual encoder of IMPALA (Espeholt et al., arXiv 1802.01561)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from learner.networks.config import NetworkConfig
from learner.networks.convolutions import channels_first, flat, picture_norm
from learner.networks.mlp import LinearLayers
from learner.networks.shapes import IMPALA_CHANNELS, impala_features
from replay.chunk import Schema

SQUARINGS = 5
"""Of W W^T, before its product with a vector: 2^5 steps of the power method."""


class SpectralConv2d(nn.Conv2d):
    """A 3 x 3 convolution whose weight matrix [out, in * 9] is divided by its greatest singular value.

    Miyato et al. (arXiv 1802.05957) keep a vector from step to step for that. Here the power method begins anew each
    time, at a fixed vector, by squaring a matrix of [out, out]: nothing but parameters has to be copied, saved and
    published.
    """

    def folded_weight(self) -> Tensor:
        """Returns the weight that the convolution is made with <float32>[out, in, 3, 3]."""
        matrix = self.weight.flatten(1)
        gram = matrix @ matrix.T
        with torch.no_grad():
            power = gram / gram.trace().clamp(min=1e-12)
            for _ in range(SQUARINGS):
                power = power @ power
                power = power / power.trace().clamp(min=1e-12)
            vector = power @ torch.linspace(1.0, 2.0, len(power), dtype=power.dtype, device=power.device)
            vector = vector / torch.linalg.vector_norm(vector).clamp(min=1e-12)
        folded: Tensor = self.weight / (vector @ gram @ vector).clamp(min=1e-12).sqrt()
        return folded

    def forward(self, x: Tensor) -> Tensor:
        """Maps x <float32>[B, in, H, W] to <float32>[B, out, H, W]."""
        return functional.conv2d(x, self.folded_weight(), self.bias, padding=1)


class ResidualBlock(nn.Module):
    """``x + conv(relu(norm(conv(relu(norm(x))))))``."""

    def __init__(self, channels: int, config: NetworkConfig) -> None:
        super().__init__()
        kind = SpectralConv2d if config.impala.spectral_norm else nn.Conv2d
        self.norms = nn.ModuleList(picture_norm(channels, config) for _ in range(2))
        self.convs = nn.ModuleList(kind(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Maps x <float32>[B, C, H, W] to the same shape."""
        y = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = conv(torch.relu(norm(y)))
        return x + y


class ImpalaEncoder(LinearLayers):
    """Three stages of a convolution, a maximum over 3 x 3 pixels with stride 2 and two residual blocks; then a ReLU,
    what ``impala.pool`` asks for, and linear layers."""

    def __init__(self, schema: Schema, config: NetworkConfig) -> None:
        """Raises ValueError for observations that are no pictures."""
        channels, features = impala_features(config, schema)
        super().__init__(features, config)
        self._schema, self._pool = schema, config.impala.pool
        stages = []
        for base in IMPALA_CHANNELS:
            wide = base * config.impala.width
            blocks = (ResidualBlock(wide, config) for _ in range(2))
            stages.append(nn.Sequential(nn.Conv2d(channels, wide, 3, padding=1), nn.MaxPool2d(3, 2, 1), *blocks))
            channels = wide
        self.stages = nn.Sequential(*stages)

    def forward(self, obs: Tensor) -> Tensor:
        """Maps obs <float32>[B, *input_shape] to features <float32>[B, F]."""
        x = torch.relu(self.stages(channels_first(obs, self._schema)))
        if self._pool == "gap":
            x = x.mean((2, 3))
        elif self._pool == "max6":
            x = functional.adaptive_max_pool2d(x, 6)
        return self.through_layers(x.flatten(1) if self._pool == "gap" else flat(x))
