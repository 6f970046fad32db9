"""What an environment promises by its spaces, and what it returns held against it, in words that name both."""

from __future__ import annotations

import re
import signal
import traceback
from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from replay.chunk import DTYPES, Column
from replay.errors import QherdError

Array = npt.NDArray[Any]
Env = gym.Env[Any, Any]
Stepped = tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]

NARROWED = {"float64": "float32", "int64": "float32", "uint32": "float32", "uint64": "float32", "bool": "int8"}
"""Dtypes that are narrowed once, here; all others are stored as they are. float32 holds whole numbers to 2^24."""
BYTE_MAX = 255
NUMBERS = frozenset({float, int, np.float64, np.float32, np.int64})
"""Types of rewards that need no second look."""
COLUMNS = "qherd_columns"
"""The key of an environment's metadata under which it declares further columns of its rows: a Box by name."""
REGISTERED = "where you register it: gymnasium.register(id, lambda **kwargs: FlattenObservation(YourEnv(**kwargs)))"
_API = {
    "reset": "2 are needed: (observation, info)",
    "step": "5 are needed: (observation, reward, terminated, truncated, info)",
}


class EnvError(QherdError, ValueError):
    """An environment that cannot be used, or that misbehaved; the text has the remedy."""


class ContractError(EnvError):
    """An environment that returned what its spaces or Gymnasium's interface exclude."""


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


def _wrong_count(name: str, method: str, got: object) -> ContractError:
    return ContractError(f"{name}: {method}() returned {got} values, {_API.get(method, _API['step'])}")


class Checked(gym.Wrapper[Any, Any, Any, Any]):
    """An environment whose every answer is held against its spaces, and whose observations have the stored dtype.

    ==========================  ======================================================================================
    the environment's space     what this one has and returns
    ==========================  ======================================================================================
    Discrete actions from k     Discrete actions from 0; the environment gets numpy's int64, from k
    Discrete observations       one-hot <float32>[n]
    Box of a stored dtype       the same; an observation of another dtype is cast where that changes no value, but
                                booleans are refused where the network divides by 255, to 0 and 0.004
    Box of a dtype in NARROWED  the dtype that it names
    columns in its metadata     infos with these names, as declared
    ==========================  ======================================================================================

    Whatever plays an environment (training, evaluation, eval, record) plays it through this, so all see the same.
    Finite values are not checked here but where many are looked at together: ``first_look``, ``Rows``, ``play``.
    """

    def __init__(self, env: Env, *, copies: bool = False) -> None:
        """``copies``: observations that are kept for later (a stack of frames) may not share the environment's
        memory. Raises EnvError for spaces that qherd does not learn."""
        super().__init__(env)
        self._name, self._copies, self._columns = name_of(env), copies, columns_of(env)
        actions = _check_actions(self._name, _space(env, "action_space"))
        self._start, self.action_space = int(actions.start), spaces.Discrete(int(actions.n))
        self._own = own = _check_observations(self._name, _space(env, "observation_space"))
        self._shape: tuple[int, ...] = own.shape or ()
        self._dtype: np.dtype[Any] = np.dtype(own.dtype)
        self._as_stored: Callable[[Any], Array]
        if isinstance(own, spaces.Discrete):
            self._as_is = False
            self.observation_space = spaces.Box(0.0, 1.0, (int(own.n),), np.float32)
            self._as_stored = self._one_hot
        else:
            self.observation_space = _narrowed(own)
            stored = self.observation_space.dtype
            self._as_is = stored == self._dtype and not copies
            self._as_stored = lambda obs: obs.astype(stored)

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
        try:
            stepped: Any = self.env.step(np.int64(action + self._start))
        except BaseException as error:
            raise _again(blamed(self._name, "step()", error), error) from None
        if not isinstance(stepped, tuple) or len(stepped) != 5:
            raise _wrong_count(self._name, "step", len(stepped) if isinstance(stepped, tuple) else 1)
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
        return self._stored("step", obs), reward, terminated, truncated, infos

    def _stored(self, method: str, obs: Any) -> Any:
        if type(obs) is np.ndarray and obs.dtype is self._dtype and obs.shape == self._shape:
            return obs if self._as_is else self._as_stored(obs)
        return self._as_stored(self._cast(method, obs))

    def _cast(self, method: str, obs: Any) -> Array:
        """The observation in its space's shape and dtype. Whole numbers and flags have to keep their values; a space of
        floats takes any number."""
        try:
            given = np.asarray(obs)
        except ValueError as error:  # lists of several lengths
            raise self._wrong(method, f"{type(obs).__name__} that is no array ({error})") from None
        if given.shape != self._shape:
            raise self._wrong(method, f"shape {given.shape}")
        if given.dtype.kind not in "biuf":
            raise self._wrong(method, f"dtype {given.dtype}")
        if given.dtype.kind == "b" and divisor_of(self.observation_space) > 1:
            raise self._wrong(method, "dtype bool", "; say Box(0, 1, dtype=bool), or return 0 and 255")
        with np.errstate(all="ignore"):
            cast = given.astype(self._dtype)
        if self._dtype.kind != "f" and not np.array_equal(cast, given):
            raise self._wrong(method, f"dtype {given.dtype}, with values that {self._dtype} cannot hold")
        return cast

    def _wrong(self, method: str, what: str, remedy: str = "") -> ContractError:
        return ContractError(
            f"{self._name}: {method}() returned an observation of {what}; its space {_short(self._own)} says shape "
            f"{self._shape} and dtype {self._dtype}{remedy}"
        )

    def _one_hot(self, state: Array) -> Array:
        assert isinstance(self._own, spaces.Discrete)
        index, hot = int(state) - int(self._own.start), np.zeros(int(self._own.n), np.float32)
        if not 0 <= index < len(hot):
            last = int(self._own.start) + len(hot) - 1
            raise ContractError(
                f"{self._name} returned the observation {state}; its space {self._own} has {self._own.start} to {last}"
            )
        hot[index] = 1
        return hot

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
            value = _as_declared(given, column)
            if value is None:
                raise ContractError(
                    f"{self._name}: {method}() returned info[{column.name!r}] = {given!r:.80}; its "
                    f"metadata say {column.dtype}{list(column.shape)}"
                )
            columns[column.name] = value
        return {**infos, **columns}


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


def _again(blame: BaseException, error: BaseException) -> BaseException:
    """Returns ``blame`` with the traceback of what the environment raised."""
    return blame if blame is error else blame.with_traceback(error.__traceback__)


def _space(env: Env, which: str) -> spaces.Space[Any]:
    space = getattr(env, which, None)
    if not isinstance(space, spaces.Space):
        raise EnvError(f"{name_of(env)} has {space!r} as its {which}; a gymnasium.Space is needed")
    return space


def _check_actions(name: str, space: spaces.Space[Any]) -> spaces.Discrete:
    """Returns the space.

    Raises:
        EnvError: its actions are not Discrete; the text has the remedy.
    """
    if isinstance(space, spaces.Discrete):
        return space
    remedies = {
        spaces.Box: "wrap it in gymnasium.wrappers.DiscretizeAction(env, bins=5) where you register it",
        spaces.MultiDiscrete: "number the combinations with gymnasium.wrappers.TransformAction(env, lambda i: "
        "np.array(np.unravel_index(i, env.action_space.nvec)), Discrete(env.action_space.nvec.prod()))",
        spaces.MultiBinary: "number the combinations with gymnasium.wrappers.TransformAction(env, lambda i: "
        "np.array(list(np.binary_repr(i, env.action_space.n)), np.int8), Discrete(2**env.action_space.n))",
    }
    remedy = next((text for kind, text in remedies.items() if isinstance(space, kind)), "")
    remedy = remedy or "offer a Discrete choice of its actions with gymnasium.wrappers.TransformAction"
    raise EnvError(f"{name} has the action space {_short(space)}; Q-learning needs Discrete actions: {remedy}")


def _check_observations(name: str, space: spaces.Space[Any]) -> spaces.Box | spaces.Discrete:
    """Returns the space.

    Raises:
        EnvError: qherd does not store such observations; the text has the remedy.
    """
    if isinstance(space, spaces.Discrete):
        return space
    if not isinstance(space, spaces.Box):
        flatten = f"wrap it in gymnasium.wrappers.FlattenObservation {REGISTERED}"
        remedy = flatten if space.is_np_flattenable else "make it a Box with gymnasium.wrappers.TransformObservation"
        raise EnvError(
            f"{name} has the observation space {_short(space)}; qherd takes Box and Discrete observations: {remedy}"
        )
    dtype = np.dtype(space.dtype).name
    if dtype not in DTYPES and dtype not in NARROWED:
        stored = ", ".join((*DTYPES, *NARROWED))
        raise EnvError(
            f"{name} has observations of dtype {dtype}; qherd stores {stored}: wrap it in "
            f"gymnasium.wrappers.DtypeObservation"
        )
    if 0 in space.shape:
        raise EnvError(
            f"{name} has observations of shape {space.shape}, which hold nothing to learn from: give its space one "
            "number at the least"
        )
    return space


def divisor_of(space: spaces.Space[Any]) -> int:
    """Returns what a network divides the observations of this space by: 255 for bytes of the whole range, else 1.

    By the space's bounds, never by the dtype alone: MinAtar's bytes are 0 and 1.
    """
    whole = isinstance(space, spaces.Box) and space.dtype == np.uint8 and bool((space.high == BYTE_MAX).all())
    return BYTE_MAX if whole else 1


def _narrowed(space: spaces.Box) -> spaces.Box:
    """Returns the space as it is stored."""
    name = np.dtype(space.dtype).name
    if name not in NARROWED:
        return space
    dtype = np.dtype(NARROWED[name]).type
    with np.errstate(over="ignore"):  # float64's largest bound is float32's infinity
        low, high = np.asarray(space.low).astype(dtype), np.asarray(space.high).astype(dtype)
    return spaces.Box(low, high, space.shape, dtype)


def _short(space: spaces.Space[Any]) -> str:
    """Returns the space in one line."""
    return " ".join(str(space).split())
