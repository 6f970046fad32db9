"""Environments whose single observations do not show what matters: a policy has to remember (docs/recurrent.md).

``qherd train memory_envs:MaskedCartPole-v1 --env.path examples --preset r2d2`` learns one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
CART_POLE_VELOCITIES, LANDER_VELOCITIES = (1, 3), (2, 3, 5)
"""Of their observations, the velocities of cart and pole, and the lander's: along both axes and of its angle."""
BREAKOUT_TRAIL = 2
"""The channel that shows where the ball was one step ago, and so where it goes."""


class Without(gym.ObservationWrapper[Array, Any, Array]):
    """An environment some of whose numbers, or of whose pictures' channels, are not observed."""

    def __init__(self, env: gym.Env[Array, Any], hidden: Sequence[int]) -> None:
        """``hidden``: which ones, along the last axis."""
        super().__init__(env)
        self._hidden, space = tuple(hidden), env.observation_space
        assert isinstance(space, gym.spaces.Box)
        low, high = (self.observation(bound) for bound in (space.low, space.high))
        self.observation_space = gym.spaces.Box(low, high, dtype=space.dtype.type)

    def observation(self, observation: Array) -> Array:
        """Returns what is left of an observation."""
        return np.delete(observation, self._hidden, -1)


class Flickering(gym.ObservationWrapper[Array, Any, Array]):
    """An environment each of whose frames is blank with probability ``blank`` (Hausknecht and Stone, arXiv 1507.06527).
    Which are is drawn from the environment's own generator, and so follows from its seed."""

    def __init__(self, env: gym.Env[Array, Any], blank: float = 0.5) -> None:
        super().__init__(env)
        self._blank = blank

    def observation(self, observation: Array) -> Array:
        """Returns the frame, or a blank one."""
        return np.zeros_like(observation) if self.unwrapped.np_random.random() < self._blank else observation


class Seeded(gym.Wrapper[Array, Any, Array, Any]):
    """Gymnasium's generator gets the seed, too, of an environment whose ``reset`` seeds random numbers of its own only,
    as MinAtar's does."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        gym.Env.reset(self.unwrapped, seed=seed)
        return self.env.reset(seed=seed, options=options)


def masked_cart_pole(**arguments: Any) -> gym.Env[Array, Any]:
    """Makes CartPole without velocities: position and angle only, from which they can be told over two steps and
    more."""
    return Without(_bare("CartPole-v1", arguments), CART_POLE_VELOCITIES)


def masked_lunar_lander(**arguments: Any) -> gym.Env[Array, Any]:
    """Makes LunarLander without velocities: position, angle and whether its legs stand."""
    return Without(_bare("LunarLander-v3", arguments), LANDER_VELOCITIES)


def masked_breakout(**arguments: Any) -> gym.Env[Array, Any]:
    """Makes MinAtar's Breakout without the ball's trail: where the ball comes from takes two frames."""
    return Without(_minatar("Breakout", arguments), [BREAKOUT_TRAIL])


def flickering_breakout(blank: float = 0.5, **arguments: Any) -> gym.Env[Array, Any]:
    """Makes MinAtar's Breakout with a screen that shows nothing in one of two frames."""
    return Flickering(_minatar("Breakout", arguments), blank)


def _bare(name: str, arguments: dict[str, Any]) -> gym.Env[Array, Any]:
    """Makes an environment without gymnasium's wrappers: the ids below have their own."""
    return gym.make(name, **arguments).unwrapped


def _minatar(game: str, arguments: dict[str, Any]) -> gym.Env[Array, Any]:
    from minatar.gym import register_envs  # of qherd's extra minatar

    if f"MinAtar/{game}-v1" not in gym.registry:
        register_envs()
    return Seeded(_bare(f"MinAtar/{game}-v1", arguments))


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


gym.register("MaskedCartPole-v1", f"{__name__}:masked_cart_pole", max_episode_steps=500)
gym.register("MaskedLunarLander-v3", f"{__name__}:masked_lunar_lander", max_episode_steps=1000)
gym.register("MaskedBreakout-v1", f"{__name__}:masked_breakout")
gym.register("FlickeringBreakout-v1", f"{__name__}:flickering_breakout")
gym.register("TMaze-v0", f"{__name__}:TMaze")
