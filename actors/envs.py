"""Gymnasium environments as lanes: NEXT_STEP autoreset, one-hot for discrete observations, clear refusals."""

from __future__ import annotations

import difflib
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import (
    FrameStackObservation,
    OrderEnforcing,
    PassiveEnvChecker,
    RecordEpisodeStatistics,
    TimeLimit,
    TransformObservation,
)

from actors.config import EnvConfig
from actors.lanes import Lane, RecordedLane
from replay.chunk import DTYPES, Schema

NARROWED = {"float64": "float32", "int64": "float32", "uint32": "float32", "uint64": "float32", "bool": "int8"}
"""Dtypes that are narrowed once, here; all others are stored as they are. float32 holds whole numbers to 2^24."""


class EnvError(ValueError):
    """An environment that cannot be used, or that misbehaved; the text says what to do."""


def make_env(config: EnvConfig, *, training: bool, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """One environment with storable observations. ``training`` applies ``env.max_episode_steps``."""
    if config.path is not None and str(config.path) not in sys.path:
        sys.path.append(str(config.path))
    arguments: dict[str, Any] = dict(config.kwargs)
    if training and config.max_episode_steps:
        arguments["max_episode_steps"] = config.max_episode_steps
    if render_mode:
        arguments["render_mode"] = render_mode
    try:
        env = gym.make(config.id, disable_env_checker=True, **arguments)
    except gym.error.Error as error:
        reason = str(error).rstrip(". ")
        raise EnvError(f"environment {config.id!r} cannot be made: {reason}{_nearest(config.id)}") from error
    except Exception as error:  # a user's module or constructor may raise anything
        reason = f"{type(error).__name__}: {error}"
        hint = "; for a module of your own give its folder with --env.path" if ":" in config.id else ""
        raise EnvError(f"environment {config.id!r} cannot be made: {reason}{hint}") from error
    if isinstance(env.observation_space, gym.spaces.Discrete):
        env = _one_hot(env)
    elif isinstance(env.observation_space, gym.spaces.Box) and env.observation_space.dtype.name in NARROWED:
        env = _Narrow(env, env.observation_space)
    return FrameStackObservation(env, config.frame_stack) if config.frame_stack > 1 else env


def schema_of(env: gym.Env[Any, Any]) -> Schema:
    """The schema of the rows that this environment leaves. Raises EnvError for spaces that qherd does not learn."""
    name = name_of(env)
    actions, observations = env.action_space, env.observation_space
    if not isinstance(actions, gym.spaces.Discrete):
        raise EnvError(f"{name} has the action space {actions}; Q-learning needs Discrete actions")
    if actions.start != 0:
        raise EnvError(f"{name} numbers its actions from {actions.start}; qherd needs Discrete actions from 0")
    if not isinstance(observations, gym.spaces.Box):
        raise EnvError(f"{name} has the observation space {observations}; qherd takes Box and Discrete observations")
    dtype, stack = np.dtype(observations.dtype).name, stack_of(env)
    if dtype not in DTYPES:
        raise EnvError(f"{name} has observations of dtype {dtype}; qherd stores {', '.join((*DTYPES, *NARROWED))}")
    shape = tuple(observations.shape)[1 if stack > 1 else 0 :]
    # by what the space says, never by the dtype alone: MinAtar's bytes are 0 and 1
    divisor = 255 if dtype == "uint8" and bool((observations.high == 255).all()) else 1
    channels_last = not (len(shape) == 3 and shape[0] < min(shape[1:]))
    return Schema(shape, dtype, int(actions.n), stack, divisor, channels_last)


def name_of(env: gym.Env[Any, Any]) -> str:
    """What messages call this environment."""
    return env.spec.id if env.spec else str(env)


def stack_of(env: gym.Env[Any, Any]) -> int:
    """How many frames this environment's observations stack, where the newest alone tells all: gymnasium's wrapper,
    padded with the episode's first frame, and nothing around it that changes observations. 1 for all others."""
    while isinstance(env, gym.Wrapper):
        if type(env) is FrameStackObservation:
            plain = env.padding_type == "reset" and isinstance(env.env.observation_space, gym.spaces.Box)
            return env.stack_size if plain else 1
        if type(env) not in (
            OrderEnforcing,
            PassiveEnvChecker,
            TimeLimit,
            RecordEpisodeStatistics,
            _Narrow,
            Lane,
            RecordedLane,
        ):
            return 1
        env = env.env
    return 1


def make_lanes(
    config: EnvConfig,
    lanes: int,
    restarts: int = 5,
    *,
    recorded: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> SyncVectorEnv:
    """``lanes`` environments stepped together; the step after an end resets and leaves a boundary row.

    One that raises is made anew, up to ``restarts`` times within ten minutes (actors/lanes.py). ``recorded`` lanes
    can be brought back to where they were, by ``Rollout.restore``.
    """
    kind = RecordedLane if recorded else Lane

    def lane(index: int) -> Callable[[], Lane]:
        return lambda: kind(lambda: make_env(config, training=True), config.id, index, restarts, clock)

    return SyncVectorEnv([lane(index) for index in range(lanes)], copy=False, autoreset_mode=AutoresetMode.NEXT_STEP)


def _one_hot(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    space = env.observation_space
    assert isinstance(space, gym.spaces.Discrete)
    eye, start = np.eye(int(space.n), dtype=np.float32), int(space.start)
    box = gym.spaces.Box(0.0, 1.0, (int(space.n),), np.float32)
    return TransformObservation(env, lambda state: eye[int(state) - start], box)


class _Narrow(TransformObservation):
    """Observations in the dtype that ``NARROWED`` names."""

    def __init__(self, env: gym.Env[Any, Any], space: gym.spaces.Box) -> None:
        dtype = np.dtype(NARROWED[space.dtype.name]).type
        with np.errstate(over="ignore"):  # float64's largest bound is float32's infinity
            low, high = np.asarray(space.low).astype(dtype), np.asarray(space.high).astype(dtype)
        box = gym.spaces.Box(low, high, space.shape, dtype)
        super().__init__(env, lambda obs: np.asarray(obs, dtype), box)


def _nearest(env_id: str) -> str:
    """A hint at registered names like ``env_id``."""
    near = difflib.get_close_matches(env_id, gym.registry, n=3, cutoff=0.6)
    return (
        f"; did you mean {' or '.join(near)}?"
        if near
        else "; see the ids with python -c 'import gymnasium as g; g.pprint_registry()'"
    )
