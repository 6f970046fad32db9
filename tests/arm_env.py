"""An environment whose spaces have all that is numbered, narrowed, flattened or divided; and a user's encoder."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Tuple
from torch import nn


class ArmEnv(gym.Env[Any, Any]):
    """Pays by how far the action is from what the observation asks for; 12 env steps an episode."""

    def __init__(self) -> None:
        joints = Tuple([Box(-1.0, 1.0, (2,), np.float64), Discrete(3, start=-1)])
        self.observation_space = Dict(camera=Box(0, 255, (3, 4, 1), np.uint8), joints=joints)
        self.action_space = MultiDiscrete([3, 2], start=[5, -1])
        self._t = 0

    def _seen(self) -> Any:
        camera = self.np_random.integers(0, 256, (3, 4, 1), np.uint8)
        return {
            "camera": camera,
            "joints": (self.np_random.uniform(-1, 1, 2), np.int64(self.np_random.integers(3) - 1)),
        }

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self._t, self._wanted = 0, self.np_random.integers(8, size=2)
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        self._t += 1
        reward = -float(np.abs(self._wanted - action).sum())
        return self._seen(), reward, self._t == 12, False, {}


class Sines(nn.Module):
    """An encoder: sines of linear functions of the observation."""

    def __init__(self, schema: Any, config: Any) -> None:
        super().__init__()
        self.features = config.hidden[-1]
        self.linear = nn.Linear(math.prod(schema.input_shape), self.features)

    def forward(self, obs: Any) -> Any:
        return torch.sin(self.linear(obs.flatten(1)))


class Branching(Sines):
    """One that does something else with other values, which no graph is."""

    def forward(self, obs: Any) -> Any:
        return super().forward(obs) if obs.sum() < 9 else -super().forward(obs)


gym.register("Arm-v0", entry_point=f"{__name__}:ArmEnv")
