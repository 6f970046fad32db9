"""Environments for the actor's tests: each observation says which lane, episode and time it is of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

TERMINATES, TRUNCATES, BOTH = "terminates", "truncates", "both"
ENDS = (TERMINATES, TRUNCATES, BOTH)


class ScriptedEnv(gym.Env[npt.NDArray[np.float32], np.int64]):
    """Episode k of a lane has ``lengths[k % len]`` env steps and ends as ``ENDS[k % 3]``.

    The observation is (seed, episode, t), the reward 100 * episode + t of the step that was taken at t, negative for
    action 1. ``bad``: the value of the reward or observation at ``bad_at`` = (episode, t).
    """

    def __init__(
        self,
        lengths: tuple[int, ...] = (3, 1, 5, 2),
        bad_reward: float | None = None,
        bad_obs: float | None = None,
        bad_at: tuple[int, int] = (0, 2),
    ) -> None:
        self.action_space = gym.spaces.Discrete(2)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self._lengths, self._bad_at = lengths, bad_at
        self._bad_reward, self._bad_obs = bad_reward, bad_obs
        self._seed, self._episode, self._t = -1, -1, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._seed = seed % 10_000
        self._episode += 1
        self._t = 0
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        reward = (100.0 * self._episode + self._t) * (-1 if action else 1)
        if self._bad_reward is not None and (self._episode, self._t) == self._bad_at:
            reward = self._bad_reward
        self._t += 1
        over = self._t >= self._lengths[self._episode % len(self._lengths)]
        end = ENDS[self._episode % 3] if over else ""
        return self._observe(), reward, end in (TERMINATES, BOTH), end in (TRUNCATES, BOTH), {}

    def _observe(self) -> npt.NDArray[np.float32]:
        obs = np.array([self._seed, self._episode, self._t], np.float32)
        if self._bad_obs is not None and (self._episode, self._t) == self._bad_at:
            obs[1] = self._bad_obs
        return obs


class RaisingEnv(ScriptedEnv):
    """A ScriptedEnv that asks ``fault`` before it is made, reset and stepped, by that word, with itself."""

    def __init__(self, fault: Callable[[str, RaisingEnv], None], lengths: tuple[int, ...] = (3, 1, 5, 2)) -> None:
        super().__init__(lengths)
        self._fault = fault
        fault("make", self)

    @property
    def at(self) -> tuple[int, int, int]:
        """Seed, episode and time."""
        return self._seed, self._episode, self._t

    def reset(self, **arguments: Any) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        self._fault("reset", self)
        return super().reset(**arguments)

    def step(self, action: np.int64) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self._fault("step", self)
        return super().step(action)


class DrawnEnv(gym.Env[npt.NDArray[np.float32], np.int64]):
    """Episodes whose number and length (1 to 9 env steps) are drawn, and whose observations drift by drawn steps."""

    def __init__(self) -> None:
        self.action_space = gym.spaces.Discrete(2)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self._number, self._left, self._at = 0, 0, 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self._number, self._left = (int(drawn) for drawn in self.np_random.integers((0, 1), (1000, 10)))
        self._at = 0.0
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self._at += self.np_random.normal() + (1 if action else -1)
        self._left -= 1
        return self._observe(), self._at, self._left == 0 and self._number % 2 == 0, self._left == 0, {}

    def _observe(self) -> npt.NDArray[np.float32]:
        return np.array([self._number, self._left, self._at], np.float32)


class SpacesEnv(gym.Env[Any, Any]):
    """Any spaces; the observations are samples, and ``state`` where one is given."""

    def __init__(self, observation: gym.Space[Any], action: gym.Space[Any] | None = None, state: Any = None) -> None:
        self.observation_space = observation
        self.action_space = action or gym.spaces.Discrete(2)
        self._state = state

    def _observe(self) -> Any:
        return self.observation_space.sample() if self._state is None else self._state

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._observe(), 0.0, False, False, {}


gym.register("Scripted-v0", entry_point=f"{__name__}:ScriptedEnv")
gym.register("Raising-v0", entry_point=f"{__name__}:RaisingEnv")
gym.register("Drawn-v0", entry_point=f"{__name__}:DrawnEnv")
gym.register("Spaces-v0", entry_point=f"{__name__}:SpacesEnv")
