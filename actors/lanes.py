"""A lane: one training environment that is made anew where it raises, so that the others of its actor go on.

``SyncVectorEnv.step`` has stepped the lanes before the one that raises, and leaves no way to step only the others. So
each lane catches its own exceptions. What a lane leaves then:

==========================  ========================================================================================
the environment raises      the lane
==========================  ========================================================================================
in ``step`` at row t        row t is a boundary row: its observation is valid, its action ignored. Row t+1 is the
                            first of an episode of a new environment
in ``reset`` after an end   row t is a boundary row anyway; row t+1 is the first of an episode of a new environment
while it is made anew       raises LaneError, which ends the actor
beyond the lane's budget    raises LaneError, which ends the actor
==========================  ========================================================================================
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np

from actors.restarts import CrashLoopError, Restarts, cause

REBUILT = "rebuilt"
"""The one key that the infos of a lane may have: the line that says which environment was made anew, and why."""

Env = gym.Env[Any, Any]
Stepped = tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]


class LaneError(RuntimeError):
    """An environment that raises again and again; the text has its last error's own words."""


class Lane(gym.Wrapper[Any, Any, Any, Any]):
    """An environment that is made anew where it raises. Its infos are dropped, since no row has them.

    Each environment of a lane has a seed of its own, derived from the one that the lane was reset with.
    """

    def __init__(
        self, make: Callable[[], Env], env_id: str, index: int, restarts: int, clock: Callable[[], float]
    ) -> None:
        """``restarts`` bounds how often the environment may be made anew within ten minutes."""
        super().__init__(make())
        self._make, self._env_id, self._index = make, env_id, index
        self._restarts = Restarts(f"the environment in lane {index} of {env_id}", restarts, clock)
        self._seed: int | None = None
        self._env_steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; with a ``seed`` in all the lane's further environments, too."""
        if seed is not None:
            self._seed = seed
        try:
            return self._begin(seed), {}
        except Exception as error:  # an environment may raise anything
            return self._rebuild(error)

    def step(self, action: Any) -> Stepped:
        """The environment's step; where it raises, the first observation of a new environment's first episode."""
        try:
            obs, reward, terminated, truncated, _ = self.env.step(action)
        except Exception as error:  # an environment may raise anything
            obs, infos = self._rebuild(error)
            return obs, 0.0, False, False, infos
        self._env_steps += 1
        return obs, reward, terminated, truncated, {}

    def _begin(self, seed: int | None) -> Any:
        """The first observation of an episode."""
        return self.env.reset(seed=seed)[0]

    def _rebuild(self, error: Exception) -> tuple[Any, dict[str, Any]]:
        """The first observation of a new environment, and the infos that say so. Does not wait as other restarts do:
        the actor's other lanes would wait along."""
        try:
            self._restarts.died(error)
        except CrashLoopError as crash_loop:
            raise LaneError(str(crash_loop)) from error
        with contextlib.suppress(Exception):
            self.env.close()
        try:
            self.env = self._make()
            obs = self._begin(self._next_seed())
        except Exception as again:
            raise LaneError(
                f"the environment in lane {self._index} of {self._env_id} could not be made anew: {cause(again)}; it "
                f"had to be because of {cause(error)}"
            ) from again
        return obs, {REBUILT: f"lane {self._index}: {cause(error)}, after env step {self._env_steps} of it"}

    def _next_seed(self) -> int | None:
        """The seed of this lane's n-th rebuilt environment: a stream of the lane's own, never the first seed again."""
        if self._seed is None:
            return None
        stream = np.random.SeedSequence(self._seed, spawn_key=(self._restarts.total,))
        return int(stream.generate_state(1)[0])
