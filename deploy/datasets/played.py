"""Episodes that a policy plays, as they become a dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from actors.contract import Env, Stepped
from deploy.datasets.episode import Episode
from replay.chunk import Schema

Array = npt.NDArray[Any]


class Recorder(gym.Wrapper[Any, Any, Any, Any]):
    """Hands each whole episode of an environment that ``make_env`` made to ``finished``. One that is begun anew, since
    its environment raised, is none."""

    def __init__(self, env: Env, schema: Schema, max_episode_steps: int, finished: Callable[[Episode], None]) -> None:
        """``max_episode_steps``: env steps after which whoever plays ends an episode, which counts as truncated."""
        super().__init__(env)
        self._schema, self._limit, self._finished = schema, max_episode_steps, finished
        self._seed: int | None = None
        self._begin()

    def _begin(self) -> None:
        self._obs, self._actions, self._rewards = list[Array](), list[int](), list[float]()
        self._extras: dict[str, list[Array]] = {column.name: [] for column in self._schema.extras}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The environment's reset."""
        self._begin()
        self._seed = seed
        obs, infos = self.env.reset(seed=seed, options=options)
        self._keep(obs, infos)
        return obs, infos

    def step(self, action: Any) -> Stepped:
        """The environment's step."""
        stepped = obs, reward, terminated, truncated, infos = self.env.step(action)
        self._keep(obs, infos)
        self._actions.append(int(action))
        self._rewards.append(float(reward))
        cut = len(self._actions) >= self._limit and not terminated
        if terminated or truncated or cut:
            self._finish(bool(terminated), bool(truncated) or cut)
        return stepped

    def _keep(self, obs: Any, infos: Mapping[str, Any]) -> None:
        self._obs.append(np.array(obs[-1] if self._schema.stack > 1 else obs))  # the environment may write there again
        for name, kept in self._extras.items():
            kept.append(infos[name])

    def _finish(self, terminated: bool, truncated: bool) -> None:
        episode = Episode(
            np.stack(self._obs),
            np.array(self._actions),
            np.array(self._rewards),
            terminated,
            truncated,
            {name: np.stack(kept) for name, kept in self._extras.items()},
            self._seed,
        )
        self._begin()
        self._finished(episode)
