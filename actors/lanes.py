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

A lane that is recorded can also be brought back to where it was, in another process: an environment has no state that
could be kept, but what it does follows from its random numbers and the actions. So what has been played of the newest
episode is played again, and compared with what it showed.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import SyncVectorEnv

from actors.atari import AtariLanes
from actors.closing import close_all
from actors.contract import Env, Stepped, columns_of
from actors.errors import EnvError
from actors.seeds import training_seed
from actors.supervision.restarts import CrashLoopError, Restarts, cause
from replay.errors import QherdError
from replay.state import count, restore_rng, rng_state

LOG = logging.getLogger("qherd.actor")
Lanes = SyncVectorEnv | AtariLanes
"""An actor's environments, stepped together."""
REBUILT = "rebuilt"
"""The one key that the infos of a lane may have: the line that says which environment was made anew, and why."""

MAX_RECORDED_STEPS = 1 << 20
"""Env steps of an episode that are recorded, 4 bytes each; a longer one cannot be replayed."""


class LaneError(EnvError):
    """An environment that raises again and again; the text has its last error's own words."""


class NotReplayable(QherdError, RuntimeError):
    """A lane that cannot be brought back to where it was; the text has its environment, its number and the reason."""


class Lane(gym.Wrapper[Any, Any, Any, Any]):
    """An environment that is made anew where it raises. Of its infos those that it declares as columns of its rows are
    kept, as ``extras``; the others are dropped.

    Each environment of a lane has a seed of its own, derived from the one that the lane was reset with.
    """

    def __init__(
        self, make: Callable[[], Env], env_id: str, index: int, restarts: int, clock: Callable[[], float]
    ) -> None:
        """``restarts`` bounds how often the environment may be made anew within ten minutes."""
        super().__init__(make())
        self._make, self._env_id, self._index = make, env_id, index
        self._columns = columns_of(self.env)
        self.extras: dict[str, npt.NDArray[Any]] = {}
        """By name, as they are at the newest observation."""
        self._restarts = Restarts(f"the environment in lane {index} of {env_id}", restarts, clock)
        self._seed: int | None = None
        self._env_steps = 0
        self._closed = False

    def close(self) -> None:
        """Closes the environment, once."""
        if not self._closed:
            self._closed = True
            self.env.close()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins an episode; with a ``seed`` in all the lane's further environments, too."""
        if seed is not None:
            self._seed = seed
        try:
            return self._begin(seed), {}
        except Exception as error:  # an environment may raise anything
            return self._rebuild(error)

    def step(self, action: Any) -> Stepped:
        """The environment's step; where it raises, the first observation of a new environment's first episode."""
        try:
            obs, reward, terminated, truncated, infos = self.env.step(action)
            if self._columns:
                self._keep(infos)
        except Exception as error:  # an environment may raise anything
            obs, infos = self._rebuild(error)
            return obs, 0.0, False, False, infos
        self._env_steps += 1
        return obs, reward, terminated, truncated, {}

    def _begin(self, seed: int | None) -> Any:
        """Begins an episode; returns its first observation."""
        obs, infos = self.env.reset(seed=seed)
        if self._columns:
            self._keep(infos)
        return obs

    def _keep(self, infos: Mapping[str, Any]) -> None:
        self.extras = {column.name: infos[column.name] for column in self._columns}

    def _rebuild(self, error: Exception) -> tuple[Any, dict[str, Any]]:
        """Makes a new environment; returns its first observation, and the infos with the reason. Does not wait as other
        restarts do: the actor's other lanes would wait along."""
        try:
            self._restarts.died(error)
        except CrashLoopError as crash_loop:
            raise LaneError(str(crash_loop)) from error
        LOG.warning("lane %d: its environment raised and is made anew", self._index, exc_info=error)
        unclosed = "".join(f"; {line}" for line in close_all([self]))
        try:
            self.env, self._closed = self._make(), False
            obs = self._begin(self._next_seed())
        except Exception as again:
            raise LaneError(
                f"the environment in lane {self._index} of {self._env_id} could not be made anew: {cause(again)}; it "
                f"had to be because of {cause(error)}"
            ) from again
        return obs, {REBUILT: f"lane {self._index}: {cause(error)}, after env step {self._env_steps} of it{unclosed}"}

    def _next_seed(self) -> int | None:
        """Returns the seed of this lane's n-th rebuilt environment: a stream of its own, never the first seed again."""
        if self._seed is None:
            return None
        return training_seed(np.random.SeedSequence(self._seed, spawn_key=(self._restarts.total,)))


@dataclass
class _Played:
    """How an environment came to where it is: its first reset's ``seed``; the state of its random numbers before its
    newest reset (None where that was the first); the actions since."""

    seed: int | None
    rng: dict[str, Any] | None = None
    actions: array[int] = field(default_factory=lambda: array("i"))


class RecordedLane(Lane):
    """A lane that records what has been played of its episode, so that another lane can be brought to where it is."""

    def __init__(
        self, make: Callable[[], Env], env_id: str, index: int, restarts: int, clock: Callable[[], float]
    ) -> None:
        super().__init__(make, env_id, index, restarts, clock)
        self._refused = replay_refused(self.env)
        self._played = _Played(None)
        self._owes_reset = False

    def step(self, action: Any) -> Stepped:
        """See ``Lane``. If the lane was restored at an episode's end, the first call resets instead of stepping: the
        new vector env has not recorded that a reset is due."""
        if self._owes_reset:
            self._owes_reset = False
            obs, infos = self.reset()
            return obs, 0.0, False, False, infos
        played = self._played
        stepped = super().step(action)
        if len(played.actions) < MAX_RECORDED_STEPS:
            played.actions.append(int(action))  # of no use where the step raised: another episode is played then
        return stepped

    def _begin(self, seed: int | None) -> Any:
        if seed is not None:
            self._played = _Played(seed)
        elif self._refused is None:
            self._played = _Played(self._played.seed, rng_state(self.env.unwrapped.np_random))
        return super()._begin(seed)

    def state(self) -> tuple[dict[str, Any], npt.NDArray[np.int32]]:
        """Returns values for JSON, and the actions <int32>[env steps of this episode]."""
        values = {
            "seed": self._seed,
            "env_steps": self._env_steps,
            "restarts": self._restarts.state(),
            "played_seed": self._played.seed,
            "played_rng": self._played.rng,
            "rng": None if self._refused else rng_state(self.env.unwrapped.np_random),
        }
        return values, np.array(self._played.actions, np.int32)

    def restore(
        self, values: Mapping[str, Any], actions: npt.NDArray[np.int32], obs: npt.NDArray[Any], ended: bool
    ) -> None:
        """Brings the lane to where the one was that gave ``values`` and ``actions``, showed ``obs`` last, and had
        ``ended`` there.

        Raises:
            NotReplayable: the environment is known not to allow it, or does not show the same again.
        """
        reason = self._refused
        if len(actions) >= MAX_RECORDED_STEPS:
            reason = f"its episode has {MAX_RECORDED_STEPS} env steps or more, which are not recorded"
        if reason is None:
            self._seed, self._owes_reset = values["seed"], ended
            self._env_steps = count(values["env_steps"], "env_steps")
            self._restarts.restore(values["restarts"])
            self._played = _Played(values["played_seed"], values["played_rng"], array("i", actions.tolist()))
            reason = self._replay(values["rng"], obs, ended)
        if reason is not None:
            raise NotReplayable(
                f"lane {self._index} of {self._env_id} cannot be brought back to where it was: {reason}"
            )

    def _replay(self, rng: Mapping[str, Any], obs: npt.NDArray[Any], ended: bool) -> str | None:
        """Plays what was played in a new environment; returns the reason why that does not lead to the same, if so."""
        close_all([self])
        try:
            self.env, self._closed = self._make(), False
            shown, over = self._play_again()
        except Exception as error:  # an environment may raise anything
            return f"{cause(error)}, which it did not raise before"
        shown = np.asarray(shown)
        if shown.dtype != obs.dtype or shown.shape != obs.shape or shown.tobytes() != obs.tobytes():
            return "with the same random numbers and actions it showed another observation"
        if over != ended:
            return f"with the same random numbers and actions its episode {'ended' if over else 'went on'}"
        if rng_state(self.env.unwrapped.np_random) != rng:
            return "with the same actions it drew other random numbers"
        return None

    def _play_again(self) -> tuple[Any, bool]:
        """Returns the observation at which the newest episode stands in ``self.env``, and whether it is over."""
        (obs, infos), over = self.env.reset(seed=self._played.seed), False
        if self._played.rng is not None:
            restore_rng(self.env.unwrapped.np_random, self._played.rng)
            obs, infos = self.env.reset()
        for action in self._played.actions:
            obs, _, terminated, truncated, infos = self.env.step(np.int64(action))
            over = bool(terminated or truncated)
        self._keep(infos)
        return obs, over


def replay_refused(env: Env) -> str | None:
    """Returns why this environment is known not to be replayable; None where it may be, which replaying it finds out.

    ========================  ===============================================================================
    environment               why not
    ========================  ===============================================================================
    Atari (``ale_py``)        an emulator with random numbers and a state of its own, beside ``np_random``
    MinAtar                   random numbers of its own, and an action that it remembers across episodes
    other random generators   gymnasium's ``np_random`` is a numpy Generator over PCG64; others are not kept
    ========================  ===============================================================================
    """
    env_id = env.spec.id if env.spec else ""
    if env_id.startswith("ALE/") or type(env.unwrapped).__module__.split(".")[0] == "ale_py":
        return "an Atari emulator has random numbers and a state of its own"
    if env_id.startswith("MinAtar/") or type(env.unwrapped).__module__.split(".")[0] == "minatar":
        return "MinAtar has random numbers of its own, and remembers its last action across episodes"
    rng = getattr(env.unwrapped, "np_random", None)
    if not (isinstance(rng, np.random.Generator) and isinstance(rng.bit_generator, np.random.PCG64)):
        return f"its np_random is a {type(rng).__name__}, not gymnasium's numpy Generator over PCG64"
    return None
