"""From env steps to rows: what the steps of a chunk left, accounted once per chunk instead of once per step.

A step is on the actor's hot path, where every numpy call costs microseconds; all that can wait until the chunk closes
(flags, Q values, episode returns, counters) is done then, for [T, E] at once (measured in docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from actors.errors import EnvError
from replay.chunk import BOUNDARY, FIRST, TERMINATED, TRUNCATED, Counters, Schema
from replay.state import State, array_in

Array = npt.NDArray[Any]
CARRIED = ("ended", "fresh", "returns", "env_steps")
"""What ``Rows`` carries from chunk to chunk, for each lane."""


class Columns(NamedTuple):
    """The columns of a chunk, as ``replay.chunk.Chunk`` has them."""

    obs: Array
    action: Array
    reward: Array
    q_taken: Array
    q_max: Array
    flags: Array
    extras: Mapping[str, Array]
    core_state: Array | None = None


class Rows:
    """What T time steps of E lanes leave, and where each lane stands between two chunks.

    ``obs``, ``q``, ``action``, ``reward``, ``terminated`` and ``truncated`` are [T, E, ...]; the steps write them, and
    ``extras``, the schema's further columns.
    ``broken`` [T, E] is for the steps at which a lane's environment was made anew; it is false where none was.
    """

    def __init__(self, steps: int, lanes: int, schema: Schema, env_name: str) -> None:
        self._env_name = env_name
        self.obs = np.zeros((steps, lanes, *schema.obs_shape), schema.obs_dtype)
        self.q = np.zeros((steps, lanes, schema.num_actions), np.float32)
        self.action = np.zeros((steps, lanes), np.int32)
        self.reward = np.zeros((steps, lanes), np.float64)
        self.terminated = np.zeros((steps, lanes), np.bool_)
        self.truncated = np.zeros((steps, lanes), np.bool_)
        self.broken = np.zeros((steps, lanes), np.bool_)
        self.extras = {each.name: np.zeros((steps, lanes, *each.shape), each.dtype) for each in schema.extras}
        self._ended = np.zeros((1, lanes), np.bool_)
        self._fresh = np.ones((1, lanes), np.bool_)
        self._returns = np.zeros(lanes, np.float64)
        self._env_steps = np.zeros(lanes, np.int64)

    def finish_chunk(self, steps: int, counters: Counters) -> tuple[Columns, Counters]:
        """Returns the first ``steps`` time steps as columns, and the counters with them.

        The step after an episode's end is its boundary row: it has the terminal observation and an ignored action. So
        is a step at which the lane's environment was made anew: what it had played of an episode is no episode.

        Raises:
            EnvError: an observation or a reward is not finite.
        """
        ended, broken = self.terminated[:steps] | self.truncated[:steps], self.broken[:steps]
        boundary = np.concatenate((self._ended, ended[:-1])) | broken
        self._check_finite(boundary)
        first = np.concatenate((self._fresh, boundary[:-1]))
        flags = (
            self.terminated[:steps] * np.uint8(TERMINATED)
            | self.truncated[:steps] * np.uint8(TRUNCATED)
            | boundary * np.uint8(BOUNDARY)
            | first * np.uint8(FIRST)
        )
        q, action = self.q[:steps], self.action[:steps]
        q_taken = np.take_along_axis(q, action[..., None], 2)[..., 0]
        q_taken[boundary] = 0
        extras = {name: column[:steps] for name, column in self.extras.items()}
        columns = Columns(
            self.obs[:steps], action, self.reward[:steps].astype(np.float32), q_taken, q.max(2), flags, extras
        )  # fmt: skip
        episodes, return_sum = self._finish_episodes(self.reward[:steps], ended, broken)
        self._ended, self._fresh = ended[-1:].copy(), boundary[-1:].copy()
        self._env_steps += np.count_nonzero(~boundary, axis=0)
        self.broken[:] = False
        counted = counters._replace(
            env_steps=counters.env_steps + int(np.count_nonzero(~boundary)),
            rows=counters.rows + boundary.size,
            episodes=counters.episodes + episodes,
            return_sum=counters.return_sum + return_sum,
        )
        return columns, counted

    def state(self) -> dict[str, Array]:
        """Returns where each lane stands between two chunks: [1, E] or [E] each."""
        return {name: np.array(getattr(self, f"_{name}")) for name in CARRIED}

    def restore(self, carried: Mapping[str, Array]) -> None:
        """See ``replay.state``."""
        for name, like in self.state().items():
            setattr(self, f"_{name}", np.array(array_in(State({}, carried), name, like.shape, like.dtype)))

    def boundary(self, t: int) -> Array:
        """Returns the lanes whose time step ``t`` of the chunk that is being collected is a boundary row: <bool>[E]."""
        ended = self._ended[0] if t == 0 else self.terminated[t - 1] | self.truncated[t - 1]
        return np.asarray(ended | self.broken[t])

    def boundary_rows(
        self, obs: Array, q: Array, extras: Mapping[str, Array], counters: Counters
    ) -> tuple[Columns, Counters]:
        """Returns one boundary row per lane at the observations <obs_dtype>[E, ...] and extras [E, ...] where the lanes
        stand."""
        grid = (1, len(obs))
        zeros = np.zeros(grid, np.float32)
        flags = BOUNDARY | self._fresh * np.uint8(FIRST)
        here = {name: column[None] for name, column in extras.items()}
        columns = Columns(obs[None], np.zeros(grid, np.int32), zeros, zeros, q.max(1)[None], flags, here)
        return columns, counters._replace(rows=counters.rows + len(obs))

    def _finish_episodes(self, reward: Array, ended: Array, broken: Array) -> tuple[int, float]:
        """Returns how many episodes ended, and the sum of their returns; drops those of broken ones."""
        episodes, return_sum, start = 0, 0.0, 0
        over = ended | broken
        for t in np.flatnonzero(over.any(1)).tolist():
            self._returns += reward[start : t + 1].sum(0)
            start = t + 1
            episodes += int(np.count_nonzero(ended[t]))
            return_sum += float(self._returns[ended[t]].sum())
            self._returns[over[t]] = 0
        self._returns += reward[start:].sum(0)
        return episodes, return_sum

    def _check_finite(self, boundary: Array) -> None:
        """Refuses what the learner would have to refuse, while environment and lane can still be named."""
        steps = len(boundary)
        wrong_reward = ~(np.abs(self.reward[:steps]) <= np.finfo(np.float32).max)
        if wrong_reward.any():
            t, lane = np.argwhere(wrong_reward)[0]
            what = f"the reward {self.reward[t, lane]}, which float32 has to hold,"
        else:
            found = self._not_finite({"an observation": self.obs, **self.extras}, steps)
            if found is None:
                return
            what, t, lane = found
        env_step = self._env_steps[lane] + np.count_nonzero(~boundary[:t, lane])
        raise EnvError(f"{self._env_name} returned {what} in lane {lane} after env step {env_step} of it")

    @staticmethod
    def _not_finite(columns: Mapping[str, Array], steps: int) -> tuple[str, int, int] | None:
        """Returns the first of these columns that is not finite, and where; None where all are."""
        for name, column in columns.items():
            if column.dtype.kind == "f" and not np.isfinite(column[:steps]).all():
                wrong = ~np.isfinite(column[:steps]).reshape(steps, column.shape[1], -1).all(2)
                t, lane = np.argwhere(wrong)[0].tolist()
                return f"{name} that is not finite as {column.dtype}", t, lane
        return None
