"""What the encoders of pictures have in common."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from learner.networks.config import NetworkConfig
from replay.chunk import Schema


def channels_first(obs: Tensor, schema: Schema) -> Tensor:
    """Returns pictures <float32>[B, *input_shape] as [B, C, H, W]; a stack's frames become channels.

    In memory the channels are last: convolutions are quicker so (docs/performance.md).
    """
    picture = schema.picture_shape
    assert picture is not None
    if schema.channels_last and len(schema.obs_shape) == 3:  # [B, (S,) H, W, C]
        obs = obs.movedim(-1, -3)
    return obs.reshape(-1, *picture).contiguous(memory_format=torch.channels_last)


def flat(pictures: Tensor) -> Tensor:
    """Maps [B, C, H, W] to [B, H * W * C]: no copy where the channels are last in memory."""
    return pictures.movedim(1, -1).flatten(1)


def picture_norm(channels: int, config: NetworkConfig) -> nn.Module:
    """Returns the layer norm of a convolution's output, over channels and pixels of each picture, with one scale and
    shift per channel; nothing where the configuration has none."""
    return nn.GroupNorm(1, channels) if config.layer_norm else nn.Identity()
