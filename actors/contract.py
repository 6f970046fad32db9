"""What an environment promises by its spaces, and what it returns held against it, in words that name both."""

from __future__ import annotations

import contextlib
import re
import signal
import traceback
from collections.abc import Mapping
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from actors.errors import ContractError, EnvError
from actors.spaces import numbered_actions, observations_of
from replay.chunk import ACTION_MASK, DTYPES, Column

Array = npt.NDArray[Any]
Env = gym.Env[Any, Any]
Stepped = tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]

NUMBERS = frozenset({float, int, np.float64, np.float32, np.int64})
"""Types of rewards that need no second look."""
COLUMNS = "qherd_columns"
"""The key of an environment's metadata under which it declares further columns of its rows: a Box by name."""
_API = {
    "reset": "2 are needed: (observation, info)",
    "step": "5 are needed: (observation, reward, terminated, truncated, info)",
}


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end; raised by a handler, so that no environment is blamed for it."""


def name_of(env: Env) -> str:
    """Returns what messages call this environment."""
    return env.spec.id if env.spec else str(env)


def blamed(name: str, what: str, error: BaseException) -> BaseException:
    """Returns the error to raise where ``what`` of the environment ``name`` raised ``error``: itself where it is clear.

    ``sys.exit()`` and the like become an EnvError, since they would end qherd without a word. What the process was
    asked by a signal stays as it is: an exception of a handler is a subclass of KeyboardInterrupt, Ray's SystemExit
    has a message of its own, and without a handler of qherd's a KeyboardInterrupt is the user's.
    """
    if isinstance(error, Exception):
        return _misshapen(name, what, error) or error
    if type(error) is KeyboardInterrupt:
        users = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    else:
        users = isinstance(error, KeyboardInterrupt) or hasattr(error, "ray_terminate_msg")
    if users:
        return error
    called = f"called sys.exit({error.code!r})" if isinstance(error, SystemExit) else f"raised {type(error).__name__}"
    return EnvError(f"{name}: {what} {called}; an environment has to end its episode instead, or raise an Exception")


def _misshapen(name: str, what: str, error: Exception) -> ContractError | None:
    """In words what gymnasium's own wrappers raise as they unpack another number of values than they need."""
    if (
        what == "reset()"
        and isinstance(error, TypeError)
        and re.search(r"unexpected keyword.*'(seed|options)'", str(error))
    ):
        return ContractError(f"{name}: {error}; Gymnasium calls reset(seed=..., options=...)")
    if not (isinstance(error, ValueError | TypeError) and "unpack" in str(error)):
        return None
    frames = traceback.extract_tb(error.__traceback__)
    if "/gymnasium/" not in frames[-1].filename.replace("\\", "/"):
        return None
    got = re.search(r"got (\d+)", str(error))
    method = what.partition("(")[0]
    return _wrong_count(name, method, got.group(1) if got else "another number of")


def _five(name: str, stepped: Any) -> Stepped:
    """Returns what ``step`` returned where it is a tuple of a class of its own. Raises ContractError where it is not
    five values."""
    if not isinstance(stepped, tuple) or len(stepped) != 5:
        raise _wrong_count(name, "step", len(stepped) if isinstance(stepped, tuple) else 1)
    return stepped


def _wrong_count(name: str, method: str, got: object) -> ContractError:
    return ContractError(f"{name}: {method}() returned {got} values, {_API.get(method, _API['step'])}")


class Checked(gym.Wrapper[Any, Any, Any, Any]):
    """An environment whose every answer is held against its spaces, and whose observations have the stored dtype.

    Actions and observations are those that ``actors.spaces`` makes of the environment's. Columns that its metadata
    declare, and the action masks that are obeyed, are in the infos in the column's dtype and shape.

    Whatever plays an environment (training, evaluation, eval, record) plays it through this, so all see the same.
    Finite values are not checked here but where many are looked at together: ``first_look``, ``Rows``, ``play``.
    """

    def __init__(self, env: Env, *, copies: bool = False, masked: bool = False) -> None:
        """``copies``: observations that are kept for later (a stack of frames) may not share the environment's
        memory. ``masked``: the action masks in its infos hold.

        Raises:
            EnvError: spaces that qherd does not learn.
        """
        super().__init__(env)
        self._name = name_of(env)
        actions, self._action_of, about_actions = numbered_actions(self._name, _space(env, "action_space"))
        self.action_space = spaces.Discrete(actions)
        self._masked = masked
        if masked:
            self.metadata = _declaring_masks(env, actions)
        self._columns = columns_of(self)
        self._stored = observations_of(self._name, _space(env, "observation_space"), copies=copies)
        self.observation_space, self.entries = self._stored.space, self._stored.entries
        self.about: dict[str, Any] = {"observation": self._stored.about, "actions": about_actions, "masked": masked}
        """The environment's own observations and actions as plain values; see ``learner.networks.portable.Policy``."""
        self._usual = self._stored.usual  # looked at in step, since a call more would be felt in every env step

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The environment's reset, checked."""
        try:
            begun: Any = self.env.reset(seed=seed, options=options)
        except BaseException as error:
            raise _again(blamed(self._name, "reset()", error), error) from None
        if not isinstance(begun, tuple) or len(begun) != 2:
            raise _wrong_count(self._name, "reset", len(begun) if isinstance(begun, tuple) else 1)
        obs, infos = begun
        self._check_infos("reset", infos)
        if self._columns:
            infos = self._with_columns("reset", infos)
        return self._stored("reset", obs), infos

    def step(self, action: Any) -> Stepped:
        """The environment's step, checked."""
        if self._action_of is not None:
            action = self._action_of(action)
        elif type(action) is not np.int64:
            action = np.int64(action)
        try:
            stepped: Any = self.env.step(action)
        except BaseException as error:
            raise _again(blamed(self._name, "step()", error), error) from None
        if type(stepped) is not tuple or len(stepped) != 5:
            stepped = _five(self._name, stepped)
        obs, reward, terminated, truncated, infos = stepped
        if type(reward) not in NUMBERS:
            reward = self._number(reward)
        if terminated is not True and terminated is not False:
            terminated = self._flag("terminated", terminated)
        if truncated is not True and truncated is not False:
            truncated = self._flag("truncated", truncated)
        if type(infos) is not dict:
            self._check_infos("step", infos)
        if self._columns:
            infos = self._with_columns("step", infos)
        dtype, shape, stored_as = self._usual
        if type(obs) is not np.ndarray or obs.dtype is not dtype or obs.shape != shape:
            obs = self._stored("step", obs)
        elif stored_as is not None:
            obs = obs.astype(stored_as)
        return obs, reward, terminated, truncated, infos

    def _number(self, reward: Any) -> float:
        if np.ndim(reward) == 0 and isinstance(reward, int | float | np.generic | np.ndarray):
            array = np.asarray(reward)
            if array.dtype.kind in "biuf":
                return float(array)
        raise ContractError(f"{self._name}: step() returned the reward {reward!r}; a number is needed")

    def _flag(self, which: str, flag: Any) -> bool:
        if isinstance(flag, bool | np.bool_) or (isinstance(flag, int | np.integer) and flag in (0, 1)):
            return bool(flag)
        raise ContractError(f"{self._name}: step() returned {which} = {flag!r}; True or False is needed")

    def _check_infos(self, method: str, infos: Any) -> None:
        if not isinstance(infos, Mapping):
            raise ContractError(f"{self._name}: {method}() returned {infos!r} as its info; a dict is needed")

    def _with_columns(self, method: str, infos: Mapping[str, Any]) -> dict[str, Any]:
        """The infos, those that are columns in the column's dtype and memory of their own."""
        columns: dict[str, Array] = {}
        for column in self._columns:
            given = infos.get(column.name)
            if self._masked and column.name == ACTION_MASK:
                columns[column.name] = self._as_mask(method, given, column.shape)
                continue
            value = _as_declared(given, column)
            if value is None:
                raise ContractError(
                    f"{self._name}: {method}() returned info[{column.name!r}] = {given!r:.80}; its "
                    f"metadata say {column.dtype}{list(column.shape)}"
                )
            columns[column.name] = value
        return {**infos, **columns}

    def _as_mask(self, method: str, given: Any, shape: tuple[int, ...]) -> Array:
        """Returns an action mask as <uint8>[A], in memory of its own."""
        with contextlib.suppress(ValueError):  # lists of several lengths
            value = np.asarray(given)
            if value.shape == shape and value.dtype.kind in "biu" and ((value == 0) | (value == 1)).all():
                return value.astype(np.uint8)
        raise ContractError(
            f"{self._name}: {method}() returned info[{ACTION_MASK!r}] = {given!r:.80}; an array of {shape[0]} flags, 0 "
            "or 1, is needed with every observation, or --env.action-mask ignore, which takes all actions for allowed"
        )


def _as_declared(given: Any, column: Column) -> Array | None:
    """Returns a column's value in its shape and dtype, in memory of its own; None where it has another shape or kind,
    or is a whole number that the dtype does not hold."""
    try:
        value = np.asarray(given)
    except ValueError:  # lists of several lengths
        return None
    if value.shape != column.shape or not np.can_cast(value.dtype, column.dtype, "same_kind"):
        return None
    with np.errstate(all="ignore"):
        cast = value.astype(column.dtype)
    return cast if cast.dtype.kind == "f" or np.array_equal(cast, value) else None


def columns_of(env: Env) -> tuple[Column, ...]:
    """Returns the columns that an environment declares, whose values it has in its infos under the same names.

    Raises ContractError where it declares something else than Boxes of dtypes that are stored.
    """
    declared = (env.metadata or {}).get(COLUMNS, {})  # None where an older environment has no metadata
    if not isinstance(declared, Mapping):
        raise ContractError(f"{name_of(env)}: {COLUMNS} in its metadata is {declared!r:.80}; Boxes by name are needed")
    for name, box in declared.items():
        if not isinstance(box, spaces.Box) or np.dtype(box.dtype).name not in DTYPES:
            raise ContractError(
                f"{name_of(env)}: {COLUMNS}[{name!r}] in its metadata is {box!r:.80}; a Box of one of the dtypes "
                f"{', '.join(DTYPES)} is needed"
            )
    return tuple(Column(name, np.dtype(box.dtype).name, tuple(box.shape)) for name, box in declared.items())


def _declaring_masks(env: Env, actions: int) -> dict[str, Any]:
    """Returns the environment's metadata with one more column, its action masks."""
    columns_of(env)  # raises where what it declares itself is not well declared
    metadata = {**(env.metadata or {})}
    return {**metadata, COLUMNS: {**metadata.get(COLUMNS, {}), ACTION_MASK: spaces.Box(0, 1, (actions,), np.uint8)}}


def _again(blame: BaseException, error: BaseException) -> BaseException:
    """Returns ``blame`` with the traceback of what the environment raised."""
    return blame if blame is error else blame.with_traceback(error.__traceback__)


def _space(env: Env, which: str) -> spaces.Space[Any]:
    space = getattr(env, which, None)
    if not isinstance(space, spaces.Space):
        raise EnvError(f"{name_of(env)} has {space!r} as its {which}; a gymnasium.Space is needed")
    return space
