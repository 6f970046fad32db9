"""DQN's encoder at half its width: a quarter of the multiplications, for learners without a GPU."""

from __future__ import annotations

from torch import Tensor, nn

from learner.networks.config import NetworkConfig
from learner.networks.convolutions import channels_first, flat
from replay.chunk import Schema


class HalfNature(nn.Module):
    """Three convolutions of 16, 32 and 32 channels, and a linear layer of 256 units, each with a ReLU after it."""

    features = 256

    def __init__(self, schema: Schema, config: NetworkConfig) -> None:
        """Of ``config`` only ``layer_norm`` counts: a layer norm before the linear layer's ReLU."""
        super().__init__()
        self._schema = schema
        self.convs = nn.Sequential(
            nn.Conv2d(schema.picture_shape[0], 16, 8, 4),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, 2),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, 1),
            nn.ReLU(),
        )
        self.linear = nn.Linear(32 * 7 * 7, self.features)
        self.norm = nn.LayerNorm(self.features) if config.layer_norm else nn.Identity()

    def forward(self, obs: Tensor) -> Tensor:
        """Maps obs <float32>[B, 4, 84, 84] to features <float32>[B, 256]."""
        return self.norm(self.linear(flat(self.convs(channels_first(obs, self._schema))))).relu()
