"""A picture with a line and a rule beside it, which says what the line means: neither tells the action alone."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

SIDE, STEPS = 4, 8


def picture_of(across: int, at: int) -> npt.NDArray[np.uint8]:
    """A line through a dark picture <uint8>[4, 4, 1]: from left to right, or (``across`` 0) from top to bottom."""
    picture = np.zeros((SIDE, SIDE, 1), np.uint8)
    picture[(at, slice(None)) if across else (slice(None), at)] = 255
    return picture


class SignalEnv(gym.Env[dict[str, Any], np.int64]):
    """Each of 8 env steps shows another picture and another rule, and pays 1 for the action that is the line's
    direction, under rule 1 for the other one. ``side``: of what there is to see of the picture."""

    def __init__(self, side: int = SIDE) -> None:
        self.observation_space = gym.spaces.Dict(
            picture=gym.spaces.Box(0, 255, (side, side, 1), np.uint8), rule=gym.spaces.Discrete(2)
        )
        self.action_space = gym.spaces.Discrete(2)
        self._side, self._t, self._right = side, 0, 0

    def _shown(self) -> dict[str, Any]:
        across, at, rule = (int(number) for number in self.np_random.integers([2, SIDE, 2]))
        self._right = across ^ rule
        return {"picture": picture_of(across, at)[: self._side, : self._side], "rule": np.int64(rule)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self._t = 0
        return self._shown(), {}

    def step(self, action: np.int64) -> Any:
        self._t += 1
        reward = float(action == self._right)
        return self._shown(), reward, self._t == STEPS, False, {}


gym.register("Signal-v0", entry_point=f"{__name__}:SignalEnv")
