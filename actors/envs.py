"""Gymnasium environments as lanes: made, held to their spaces, NEXT_STEP autoreset."""

from __future__ import annotations

import difflib
import importlib
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
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
)

from actors.atari import AtariLanes, atari_arguments, atari_spec
from actors.closing import close_all
from actors.config import ATARI, EnvConfig
from actors.contract import Checked, Stepped, blamed, columns_of, name_of
from actors.errors import ContractError, EnvError
from actors.lanes import Lane, Lanes, RecordedLane
from actors.spaces import channels_last, divisor_of
from replay.chunk import ACTION_MASK, ObsEntry, Schema


def use_path(config: EnvConfig) -> None:
    """Makes this process import from ``env.path``, too, which comes after all other folders."""
    if config.path is not None and str(config.path) not in sys.path:
        sys.path.append(str(config.path))


@dataclass(frozen=True)
class Where:
    """Which of a run's environments one is: the slot of its actor (-1: the evaluator's), its lane there, and a number
    that no other has at the same time."""

    slot: int = 0
    lane: int = 0
    index: int = 0

    def fill(self, value: Any) -> Any:
        """Returns an argument with its {slot}, {lane} and {index} filled in, or {index+5000}; alone a whole number."""
        if not isinstance(value, str):
            return value
        if alone := _PLACEHOLDER.fullmatch(value):
            return self._number(alone)
        return _PLACEHOLDER.sub(lambda found: str(self._number(found)), value)

    def _number(self, found: re.Match[str]) -> int:
        return int(getattr(self, found.group(1))) + int(found.group(2) or 0)


REPORT_EVERY_S = 30.0
"""How often it is reported who is still making environments."""
ALONE = Where()
"""An environment that has no others beside it."""


def make_env(
    config: EnvConfig, *, training: bool, render_mode: str | None = None, where: Where = ALONE, games: int = 1
) -> gym.Env[Any, Any]:
    """Makes one environment with storable observations. ``training`` applies ``env.max_episode_steps``. Of Atari's
    several ``games`` may be made as one, for ``AtariLanes``.

    Raises:
        EnvError: it cannot be made, or has spaces that qherd does not learn.
    """
    use_path(config)
    arguments: dict[str, Any] = {name: where.fill(value) for name, value in config.kwargs.items()}
    atari = config.id.startswith(ATARI)
    if atari:
        arguments = atari_arguments(arguments, config.max_episode_steps, training=training) | {"games": games}
    elif training and config.max_episode_steps:
        arguments["max_episode_steps"] = config.max_episode_steps
    if render_mode:
        arguments["render_mode"] = render_mode
    _import_module(config)
    _register_suite(config)
    try:
        made = gym.make(atari_spec(config.id) if atari else config.id, disable_env_checker=True, **arguments)
    except gym.error.Error as error:
        reason = str(error).partition(" Did you mean")[0].rstrip(". ")
        raise EnvError(f"environment {config.id!r} cannot be made: {reason}{_nearest(config.id)}") from error
    except BaseException as error:  # a user's constructor may raise anything, and may call sys.exit()
        raise _not_made(config, "its constructor", error) from error
    try:
        env: gym.Env[Any, Any] = Checked(made, copies=config.frame_stack > 1, masked=config.action_mask == "obey")
    except EnvError:
        made.close()
        raise
    return FrameStack(env, config.frame_stack) if config.frame_stack > 1 else env


class FrameStack(FrameStackObservation):
    """gymnasium's wrapper with one copy of the frames for each step instead of three: of Atari's that is a tenth of
    the step."""

    def step(self, action: Any) -> Stepped:
        """The environment's step, with the newest frames stacked."""
        obs, reward, terminated, truncated, infos = self.env.step(action)
        self.obs_queue.append(obs)
        return np.stack(self.obs_queue), reward, terminated, truncated, infos


def _import_module(config: EnvConfig) -> None:
    """Imports the module of ``module:EnvId``, as gymnasium would, so that its errors differ from a constructor's."""
    module = config.id.rpartition(":")[0]
    try:
        if module:
            importlib.import_module(module)
    except BaseException as error:  # a user's module may raise anything
        missing = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        hint = "; give its folder with --env.path" if missing else ""
        raise _not_made(config, f"importing {module}", error, hint) from error


SUITES = {"ALE": ("ale_py", "atari"), "MinAtar": ("minatar.gym", "minatar")}
"""Namespaces of environments that Gymnasium does not register by itself: the module that does, and qherd's extra that
installs it."""


def _register_suite(config: EnvConfig) -> None:
    """Has the package of ``Namespace/Env`` register its environments, so that their names are enough."""
    namespace, slash, _ = config.id.partition("/")
    if not slash or namespace not in SUITES:
        return
    module, extra = SUITES[namespace]
    try:
        suite = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise EnvError(
            f"environment {config.id!r} needs the package {error.name}: pip install 'qherd[{extra}]', or in a clone "
            f".venv/bin/python -m pip install -c constraints.txt -e '.[{extra}]'"
        ) from error
    if not any(name.startswith(f"{namespace}/") for name in gym.registry):
        suite.register_envs()


def _not_made(config: EnvConfig, what: str, error: BaseException, hint: str = "") -> BaseException:
    blame = blamed(config.id, what, error)
    file = error.filename if isinstance(error, FileNotFoundError) else None
    if isinstance(file, str) and not Path(file).is_absolute():
        hint += f"; relative paths begin in the folder that it works in, {Path.cwd()}"
    if isinstance(blame, Exception) and not isinstance(blame, EnvError):
        return EnvError(f"environment {config.id!r} cannot be made: {what}: {type(error).__name__}: {error}{hint}")
    return blame


def schema_of(env: gym.Env[Any, Any]) -> Schema:
    """Returns the schema of the rows that this environment leaves, which ``make_env`` made.

    Raises:
        ContractError: a column cannot be stored.
    """
    actions, observations, stack = env.action_space, env.observation_space, stack_of(env)
    assert isinstance(actions, gym.spaces.Discrete)
    assert isinstance(observations, gym.spaces.Box)
    dtype, shape = np.dtype(observations.dtype).name, tuple(observations.shape)[1 if stack > 1 else 0 :]
    columns, num_actions = columns_of(env), int(actions.n)
    for column in columns:
        if column.name == ACTION_MASK and column.shape != (num_actions,):
            raise ContractError(
                f"{name_of(env)}: the column {ACTION_MASK} in its metadata has the shape {column.shape}, and there are "
                f"{num_actions} actions: give it ({num_actions},)"
            )
    try:
        return Schema(
            shape,
            dtype,
            num_actions,
            stack,
            divisor_of(observations),
            channels_last(shape),
            columns,
            entries_of(env),
        )
    except ContractError:
        raise
    except ValueError as error:
        raise ContractError(f"{name_of(env)}: {error}") from error


def entries_of(env: gym.Env[Any, Any]) -> tuple[ObsEntry, ...]:
    """Returns the entries that this environment's observations are flattened from; none where they are no Dict or
    Tuple."""
    checked = checked_of(env)
    return () if checked is None else checked.entries


def about_of(env: gym.Env[Any, Any]) -> dict[str, Any]:
    """Returns the own observations and actions of an environment that ``make_env`` made; see ``Checked.about``."""
    checked = checked_of(env)
    assert checked is not None
    return checked.about


def checked_of(env: gym.Env[Any, Any]) -> Checked | None:
    """Returns the wrapper that holds this environment to its spaces; None where ``make_env`` did not make it."""
    while isinstance(env, gym.Wrapper):
        if isinstance(env, Checked):
            return env
        env = env.env
    return None


def stack_of(env: gym.Env[Any, Any]) -> int:
    """Returns how many frames this environment's observations stack, where the newest alone has all that is new:
    gymnasium's wrapper, padded with the episode's first frame, and nothing around it that changes them. Else 1."""
    while isinstance(env, gym.Wrapper):
        if isinstance(env, FrameStackObservation) and type(env) in (FrameStackObservation, FrameStack):
            plain = env.padding_type == "reset" and isinstance(env.env.observation_space, gym.spaces.Box)
            return env.stack_size if plain else 1
        if type(env) not in (
            OrderEnforcing,
            PassiveEnvChecker,
            TimeLimit,
            RecordEpisodeStatistics,
            Checked,
            Lane,
            RecordedLane,
        ):
            return 1
        env = env.env
    return 1


_PLACEHOLDER = re.compile(r"\{(slot|lane|index)(?:\+(\d+))?\}")
EVALUATORS = 1000
"""Numbers that evaluation's environments have for themselves: those of the actors' lanes follow."""


def make_lanes(
    config: EnvConfig,
    lanes: int,
    restarts: int = 5,
    *,
    recorded: bool = False,
    slot: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> Lanes:
    """Makes ``lanes`` environments that are stepped together; the step after an end resets and leaves a boundary row.

    One that raises is made anew, up to ``restarts`` times within ten minutes (actors/lanes.py). ``recorded`` lanes
    can be brought back to where they were, by ``Rollout.restore``; those of Atari that are not are one environment.
    """
    if config.id.startswith(ATARI) and not recorded:
        return AtariLanes(make_env(config, training=True, where=Where(slot), games=lanes), config.frame_stack)
    kind = RecordedLane if recorded else Lane

    made = list[Lane]()
    try:
        for index in range(lanes):
            where = Where(slot, index, EVALUATORS + slot * lanes + index)
            made.append(kind(partial(make_env, config, training=True, where=where), config.id, index, restarts, clock))
        _check_alike(config.id, made)
        ready = [lambda lane=lane: lane for lane in made]
        return SyncVectorEnv(ready, copy=False, autoreset_mode=AutoresetMode.NEXT_STEP)
    except BaseException:
        close_all(made)
        raise


def _check_alike(env_id: str, lanes: list[Lane]) -> None:
    """Raises ContractError where two environments have different spaces."""
    for index, lane in enumerate(lanes):
        own, first = ((env.observation_space, env.action_space) for env in (lane, lanes[0]))
        if own != first:
            raise ContractError(
                f"{env_id}: the environment of lane {index} has the spaces {own[0]} and {own[1]}, that of lane 0 "
                f"{first[0]} and {first[1]}; all have to be alike"
            )


def _nearest(env_id: str) -> str:
    """Returns a hint at registered names like ``env_id``."""
    near = difflib.get_close_matches(env_id, gym.registry, n=3, cutoff=0.6)
    suite = "".join(f", {module}" for namespace, (module, _) in SUITES.items() if env_id.startswith(f"{namespace}/"))
    return (
        f"; did you mean {' or '.join(near)}?"
        if near
        else f"; see the ids with python -c 'import gymnasium as g{suite}; g.pprint_registry()'"
    )
