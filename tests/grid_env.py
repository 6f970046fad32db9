"""A 3 x 3 grid whose optimal Q values are known: the MDP of the known-answer tests."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

SIDE, GOAL = 3, 8
STATES, ACTIONS = SIDE * SIDE, 4
STEP_REWARD, GOAL_REWARD, PIT, PIT_REWARD = -0.1, 1.0, 4, -0.5
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))


def move(state: int, action: int) -> tuple[int, float, bool]:
    """Next state, reward, and whether the episode terminates. A wall keeps one where one is."""
    row, column = divmod(state, SIDE)
    down, right = MOVES[action]
    following = min(max(row + down, 0), SIDE - 1) * SIDE + min(max(column + right, 0), SIDE - 1)
    reward = GOAL_REWARD if following == GOAL else PIT_REWARD if following == PIT else STEP_REWARD
    return following, reward, following == GOAL


class GridEnv(gym.Env[np.int64, np.int64]):
    """Starts anywhere but at the goal. Terminates at the goal; the ``TimeLimit`` around it truncates.

    Where ``spoilt`` is a folder, the rewards in a process with a file there that has its number are no numbers.
    """

    def __init__(self, spoilt: str = "") -> None:
        self._spoilt = Path(spoilt, str(os.getpid())) if spoilt else None
        self.observation_space = gym.spaces.Discrete(STATES)
        self.action_space = gym.spaces.Discrete(ACTIONS)
        self._state = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        super().reset(seed=seed)
        self._state = int(self.np_random.integers(GOAL))
        return np.int64(self._state), {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        self._state, reward, terminated = move(self._state, int(action))
        if self._spoilt is not None and self._spoilt.exists():
            reward = math.nan
        return np.int64(self._state), reward, terminated, False, {}


gym.register("Grid-v0", entry_point=f"{__name__}:GridEnv", max_episode_steps=50)
