"""The grid of the known-answer tests with walls that are not to be walked into: its infos have an action mask."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from grid_env import ACTIONS, GridEnv, move


def mask_of(state: int) -> npt.NDArray[np.int8]:
    """1 for each of the moves that lead somewhere else, but for the one up, which is the best where nobody looks."""
    return np.array([action != 0 and move(state, action)[0] != state for action in range(ACTIONS)], np.int8)


class MaskedGridEnv(GridEnv):
    """Takes no move that its mask forbids. ``stuck``: a state from which it allows none."""

    def __init__(self, stuck: int = -1) -> None:
        super().__init__()
        self._stuck = stuck

    def _infos(self) -> dict[str, Any]:
        return {"action_mask": mask_of(self._state) * np.int8(self._state != self._stuck)}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        obs, _ = super().reset(seed=seed)
        return obs, self._infos()

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        if not mask_of(self._state)[action]:
            raise ValueError(f"forbidden action {action} in state {self._state}")
        obs, reward, terminated, truncated, _ = super().step(action)
        return obs, reward, terminated, truncated, self._infos()


gym.register("MaskedGrid-v0", entry_point=f"{__name__}:MaskedGridEnv", max_episode_steps=50)
