"""One state, one action, one step: a return of -1 in one of four episodes, and of 1 in the others."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class TwoPointEnv(gym.Env[np.int64, np.int64]):
    """Draws its only reward."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Discrete(1)
        self.action_space = gym.spaces.Discrete(1)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        super().reset(seed=seed)
        return np.int64(0), {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        return np.int64(0), 1.0 - 2.0 * (self.np_random.random() < 0.25), True, False, {}


gym.register("TwoPoint-v0", entry_point=f"{__name__}:TwoPointEnv")
