"""An environment bound by latency, as one behind a network or a simulator is: it sleeps, and takes no CPU.

``--env.id slow_env:Sleeps-v0 --env.path benchmarks``
"""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

Obs = npt.NDArray[np.float32]


class Sleeps(gym.Env[Obs, np.int64]):
    """``seconds`` of sleep per env step, four floats, two actions, episodes of ``length`` env steps."""

    def __init__(self, seconds: float = 0.005, length: int = 200) -> None:
        self._seconds, self._length, self._steps = seconds, length, 0
        self.observation_space = gym.spaces.Box(0, 1, (4,), np.float32)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        time.sleep(self._seconds)
        self._steps += 1
        return self._observe(), float(action), self._steps >= self._length, False, {}

    def _observe(self) -> Obs:
        return self.np_random.random(4, np.float32)


gym.register("Sleeps-v0", "slow_env:Sleeps")
