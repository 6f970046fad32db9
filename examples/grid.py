"""Small grids whose optimal Q values are known: four states and nine, for examples/q_table.py."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt

ACTIONS = 4
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
"""Up, right, down, left: change of row and column."""
STEP_REWARD, GOAL_REWARD, PIT_REWARD = -0.1, 1.0, -0.5


class Grid(NamedTuple):
    """A square with a goal, where an episode ends, and a pit, which costs; states are counted row by row."""

    side: int
    goal: int
    pit: int

    @property
    def states(self) -> int:
        """The goal included."""
        return self.side**2

    def move(self, state: int, action: int) -> tuple[int, float, bool]:
        """Next state, reward, and whether the episode terminates. A wall keeps one where one is."""
        row, column = divmod(state, self.side)
        down, right = MOVES[action]
        last = self.side - 1
        following = min(max(row + down, 0), last) * self.side + min(max(column + right, 0), last)
        if following == self.goal:
            return following, GOAL_REWARD, True
        return following, PIT_REWARD if following == self.pit else STEP_REWARD, False

    def value_iteration(self, gamma: float) -> npt.NDArray[np.float64]:
        """Q* <float64>[states, ACTIONS], of the goal 0: ``Q(s, a) = r + gamma max_b Q(s', b)`` until nothing moves."""
        q = np.zeros((self.states, ACTIONS))
        before = np.ones_like(q)
        while not np.array_equal(q, before):
            before = q.copy()
            for state in set(range(self.states)) - {self.goal}:
                for action in range(ACTIONS):
                    following, reward, terminated = self.move(state, action)
                    q[state, action] = reward + (0.0 if terminated else gamma * q[following].max())
        return q


GRIDS = {"4 states": Grid(2, goal=3, pit=1), "9 states": Grid(3, goal=8, pit=4)}


class GridEnv(gym.Env[np.int64, np.int64]):
    """A grid as an environment; an episode starts anywhere but at the goal."""

    def __init__(self, name: str) -> None:
        self._grid = GRIDS[name]
        self.observation_space = gym.spaces.Discrete(self._grid.states)
        self.action_space = gym.spaces.Discrete(ACTIONS)
        self._state = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        super().reset(seed=seed)
        starts = [state for state in range(self._grid.states) if state != self._grid.goal]
        self._state = int(self.np_random.choice(starts))
        return np.int64(self._state), {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        self._state, reward, terminated = self._grid.move(self._state, int(action))
        return np.int64(self._state), reward, terminated, False, {}


gym.register("ExampleGrid-v0", f"{__name__}:GridEnv", max_episode_steps=50)
