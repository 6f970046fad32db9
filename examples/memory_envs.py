"""Environments whose single observations do not show what matters: a policy has to remember (docs/recurrent.md).

``qherd train memory_envs:MaskedCartPole-v1 --env.path examples --preset r2d2`` learns one of them.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
VELOCITIES = (1, 3)
"""Of CartPole's observation, the velocities of cart and pole."""


class MaskedCartPole(gym.ObservationWrapper[Array, np.int64, Array]):
    """CartPole without velocities: position and angle only, from which they can be told over two steps and more."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(gym.make("CartPole-v1", **arguments).unwrapped)  # the time limit is registered below
        space = self.env.observation_space
        assert isinstance(space, gym.spaces.Box)
        self.observation_space = gym.spaces.Box(np.delete(space.low, VELOCITIES), np.delete(space.high, VELOCITIES))

    def observation(self, observation: Array) -> Array:
        return np.delete(observation, VELOCITIES)


class TMaze(gym.Env[Array, np.int64]):
    """A corridor with a junction at its end (Bakker 2001). A cue at its entrance, seen in the first step only, tells
    which way to take at the junction, ``length`` steps later; each action before goes on.

    An observation is [cue of -1 or 1, 0 after the first step; 1 at the junction]. The right way is rewarded with 1, the
    wrong one with 0. All junctions look alike, so a policy without memory takes the right way in half of the episodes,
    whatever it does.
    """

    def __init__(self, length: int = 10) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self._length, self._cue, self._at = length, 1, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self._cue, self._at = int(self.np_random.choice((-1, 1))), 0
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        if self._at == self._length:
            return self._observation(), float((int(action) == 1) == (self._cue == 1)), True, False, {}
        self._at += 1
        return self._observation(), 0.0, False, False, {}

    def _observation(self) -> Array:
        return np.array([self._cue if self._at == 0 else 0, self._at == self._length], np.float32)


gym.register("MaskedCartPole-v1", f"{__name__}:MaskedCartPole", max_episode_steps=500)
gym.register("TMaze-v0", f"{__name__}:TMaze")
