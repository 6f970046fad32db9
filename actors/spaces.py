"""Spaces that qherd learns: how their actions are numbered, and what is stored of their observations.

===============================  =====================================================================================
the environment's space          what is learned
===============================  =====================================================================================
actions: Discrete from k         numbers from 0; the environment gets numpy's int64, from k
MultiDiscrete, MultiBinary       each combination is an action, up to MAX_COMBINATIONS, the last entry changes first
observations: Discrete,          one-hot <float32>, of each entry one after another
MultiDiscrete
Box of a stored dtype,           the same; an observation of another dtype is cast where that changes no value, but
MultiBinary                      booleans are refused where the network divides by 255, to 0 and 0.004
Box of a dtype in NARROWED       the dtype that it names
Dict, Tuple, of any depth        their entries as above, flattened into one vector, in the order of the space: of their
                                 dtype where all have the same one, else <float32>, bytes of 0 to 255 divided by 255;
                                 the schema has the entries, so that a network may tell them apart again
===============================  =====================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from actors.errors import ContractError, EnvError
from replay.chunk import DTYPES, MAX_NAME, ObsEntry

Array = npt.NDArray[Any]
Path = tuple[Any, ...]
"""The keys that lead to an entry of a Dict or Tuple."""

NARROWED = {"float64": "float32", "int64": "float32", "uint32": "float32", "uint64": "float32", "bool": "int8"}
"""Dtypes that are narrowed once, here; all others are stored as they are. float32 holds whole numbers to 2^24."""
BYTE_MAX = 255
MAX_ONE_HOT = 1 << 20
"""Numbers that a one-hot observation may have: 4 MB a row."""
MAX_COMBINATIONS = 4096
"""Combinations of a MultiDiscrete action that are numbered: each costs an output of the network."""


def numbered_actions(name: str, space: spaces.Space[Any]) -> tuple[int, Callable[[Any], Any] | None]:
    """Returns how many actions there are, and a function from an action's number to what the environment is given;
    None where that is the number itself.

    Raises:
        EnvError: the actions cannot be numbered, or are too many; the text has the remedy.
    """
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return int(space.n), (lambda number: np.int64(number + start)) if start else None
    if isinstance(space, spaces.MultiDiscrete):
        counts, first = np.asarray(space.nvec), np.asarray(space.start)
    elif isinstance(space, spaces.MultiBinary):
        counts, first = np.full(space.shape, 2), np.zeros(space.shape, np.int8)
    else:
        wrapper = "wrap it in gymnasium.wrappers.DiscretizeAction(env, bins=5)"
        if not isinstance(space, spaces.Box):
            wrapper = "offer a Discrete choice of its actions with gymnasium.wrappers.TransformAction"
        raise EnvError(
            f"{name} has the action space {short(space)}; Q-learning needs Discrete actions: {wrapper} where you "
            "register it"
        )
    number_of = math.prod(counts.ravel().tolist())  # of Python's whole numbers, which do not overflow
    if number_of > MAX_COMBINATIONS:
        raise EnvError(
            f"{name} has the action space {short(space)} of {number_of} combinations; up to {MAX_COMBINATIONS} are "
            "numbered: offer fewer of them with gymnasium.wrappers.TransformAction where you register it"
        )
    places = np.unravel_index(np.arange(number_of), tuple(counts.ravel().tolist()))
    table = (np.stack(places, 1).reshape(number_of, *counts.shape) + first).astype(space.dtype)
    return number_of, lambda number: table[number].copy()


class Observations(Protocol):
    """What is stored of an environment's observations."""

    space: spaces.Box[Any]
    entries: tuple[ObsEntry, ...]
    """Of a Dict or Tuple; else none."""
    as_is: tuple[np.dtype[Any] | None, tuple[int, ...]]
    """Dtype and shape of the arrays that are stored as they are; None where all are changed or copied."""

    def __call__(self, method: str, obs: Any) -> Any:
        """Returns what is stored of the observation that ``method`` returned, in the space's shape and dtype.

        Raises:
            ContractError: it is not of the environment's space.
        """


def observations_of(name: str, space: spaces.Space[Any], *, copies: bool = False, entry: str = "") -> Observations:
    """Makes what stores observations of this space. ``copies``: they may not share the environment's memory;
    ``entry``: where it is in a Dict or Tuple.

    Raises:
        EnvError: qherd does not store such observations; the text has the remedy.
    """
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return _Flattened(name, space)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return _OneHot(name, space, entry)
    if isinstance(space, spaces.MultiBinary):
        space = spaces.Box(0, 1, space.shape, np.int8)
    if not isinstance(space, spaces.Box):
        raise EnvError(
            f"{name} has the observation space {short(space)}{entry and f' as entry {entry}'}; qherd takes Box, "
            "Discrete, MultiDiscrete and MultiBinary, and Dict and Tuple of these: make it a Box with "
            "gymnasium.wrappers.TransformObservation where you register it: gymnasium.register(id, lambda **kwargs: "
            "TransformObservation(YourEnv(**kwargs), to_numbers, Box(...)))"
        )
    return _OfBox(name, space, copies, entry)


class _OfBox:
    """Observations that are arrays."""

    entries: tuple[ObsEntry, ...] = ()

    def __init__(self, name: str, space: spaces.Box, copies: bool, entry: str) -> None:
        _check_box(name, space)
        self._name, self._own, self._entry = name, space, entry
        self._shape, self._dtype = tuple(space.shape), np.dtype(space.dtype)
        self.space = _narrowed(space)
        self.as_is = (self._dtype if self.space.dtype == self._dtype and not copies else None, self._shape)

    def __call__(self, method: str, obs: Any) -> Any:
        """See ``Observations``."""
        if not (type(obs) is np.ndarray and obs.dtype is self._dtype and obs.shape == self._shape):
            obs = self._cast(method, obs)
        return obs.astype(self.space.dtype) if self.as_is[0] is None else obs

    def _cast(self, method: str, obs: Any) -> Array:
        """The observation in its space's shape and dtype. Whole numbers and flags have to keep their values; a space of
        floats takes any number."""
        wrong = f"{self._name}: {method}() returned an observation{self._entry} of"
        says = f"; its space {short(self._own)} says shape {self._shape} and dtype {self._dtype}"
        given = _array(obs, self._shape, wrong, says)
        if given.dtype.kind not in "biuf":
            raise ContractError(f"{wrong} dtype {given.dtype}{says}")
        if given.dtype.kind == "b" and divisor_of(self.space) > 1:
            raise ContractError(f"{wrong} dtype bool{says}; say Box(0, 1, dtype=bool), or return 0 and 255")
        with np.errstate(all="ignore"):
            cast = given.astype(self._dtype)
        if self._dtype.kind != "f" and not np.array_equal(cast, given):
            raise ContractError(f"{wrong} dtype {given.dtype}, with values that {self._dtype} cannot hold{says}")
        return cast


class _OneHot:
    """Observations that are one number of several, or an array of such."""

    entries: tuple[ObsEntry, ...] = ()
    as_is: tuple[np.dtype[Any] | None, tuple[int, ...]] = (None, ())

    def __init__(self, name: str, space: spaces.Discrete | spaces.MultiDiscrete, entry: str) -> None:
        self._name, self._own, self._entry = name, space, entry
        counts, first = (np.atleast_1d(np.asarray(each)) for each in _numbers_of(space))
        if (numbers := sum(counts.ravel().tolist())) > MAX_ONE_HOT:
            raise EnvError(
                f"{name} has the observation space {short(space)}{entry and f' as entry {entry}'}, which is stored "
                f"one-hot, {numbers} numbers; up to {MAX_ONE_HOT} are stored: make it a Box with "
                "gymnasium.wrappers.TransformObservation where you register it"
            )
        self._counts, self._first = counts.ravel().astype(np.int64), first.ravel().astype(np.int64)
        self._begin = np.cumsum(self._counts) - self._counts
        self._shape: tuple[int, ...] = space.shape or ()
        self.space: spaces.Box[Any] = spaces.Box(0.0, 1.0, (int(self._counts.sum()),), np.float32)

    def __call__(self, method: str, obs: Any) -> Array:
        """See ``Observations``."""
        wrong = f"{self._name}: {method}() returned an observation{self._entry} of"
        given = _array(obs, self._shape, wrong, f"; its space {short(self._own)} says shape {self._shape} of integers")
        index = (given.ravel() if given.dtype.kind in "biuf" else np.full(given.size, np.nan)) - self._first
        if not ((index >= 0) & (index < self._counts) & (index % 1 == 0)).all():
            last = self._first + self._counts - 1
            among = f"{self._first[0]} to {last[0]}" if not self._shape else f"{self._first} to {last}"
            raise ContractError(
                f"{self._name} returned the observation{self._entry} {given.tolist()!r:.80}; its space "
                f"{short(self._own)} has {among}"
            )
        hot = np.zeros(self.space.shape, np.float32)
        hot[self._begin + index.astype(np.int64)] = 1
        return hot


def _numbers_of(space: spaces.Discrete[Any] | spaces.MultiDiscrete[Any]) -> tuple[Any, Any]:
    """Returns how many numbers each entry has, and the first of each."""
    return (space.n, space.start) if isinstance(space, spaces.Discrete) else (space.nvec, space.start)


class _Flattened:
    """Observations that are a Dict or Tuple, of any depth."""

    as_is: tuple[np.dtype[Any] | None, tuple[int, ...]] = (None, ())

    def __init__(self, name: str, space: spaces.Dict | spaces.Tuple[Any]) -> None:
        self._name, self._own = name, space
        self._entries = [
            (path, observations_of(name, entry, entry="".join(f"[{key!r}]" for key in path)))
            for path, entry in _entries(space)
        ]
        stored = [entry.space for _, entry in self._entries]
        if not stored:
            raise EnvError(f"{name} has the observation space {short(space)}, which holds nothing to learn from")
        self.entries = tuple(_entry("/".join(map(str, path))[:MAX_NAME], entry.space) for path, entry in self._entries)
        alike = len({(each.dtype, divisor_of(each)) for each in stored}) == 1
        dtype = np.dtype(stored[0].dtype if alike else np.float32)
        self._divisors = [1 if alike else divisor_of(each) for each in stored]
        with_divisors = list(zip(stored, self._divisors, strict=True))
        low = np.concatenate([each.low.ravel() / divisor for each, divisor in with_divisors])
        high = np.concatenate([each.high.ravel() / divisor for each, divisor in with_divisors])
        self.space: spaces.Box[Any] = spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype.type)

    def __call__(self, method: str, obs: Any) -> Array:
        """See ``Observations``."""
        parts = []
        for (path, stored), divisor in zip(self._entries, self._divisors, strict=True):
            part = stored(method, self._entry(method, obs, path)).ravel()
            parts.append(part / np.float32(divisor) if divisor > 1 else part)
        return np.concatenate(parts, dtype=self.space.dtype, casting="unsafe")

    def _entry(self, method: str, obs: Any, path: Path) -> Any:
        for depth, key in enumerate(path):
            try:
                obs = obs[key]
            except (KeyError, IndexError, TypeError):
                where = "".join(f"[{each!r}]" for each in path[: depth + 1])
                raise ContractError(
                    f"{self._name}: {method}() returned an observation without {where}; its space is {short(self._own)}"
                ) from None
        return obs


def _entry(name: str, stored: spaces.Box) -> ObsEntry:
    shape = tuple(stored.shape)
    return ObsEntry(name, shape, np.dtype(stored.dtype).name, channels_last(shape))


def _entries(space: spaces.Space[Any], path: Path = ()) -> Iterator[tuple[Path, spaces.Space[Any]]]:
    """Yields the spaces that are no Dict or Tuple themselves, and the keys that lead to each."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        inside = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, entry in inside:
            yield from _entries(entry, (*path, key))
    else:
        yield path, space


def _array(obs: Any, shape: tuple[int, ...], wrong: str, says: str) -> Array:
    """Returns the observation as an array of this shape. Raises ContractError, from ``wrong`` to ``says``."""
    try:
        given = np.asarray(obs)
    except ValueError as error:  # lists of several lengths
        raise ContractError(f"{wrong} {type(obs).__name__} that is no array ({error}){says}") from None
    if given.shape != shape:
        raise ContractError(f"{wrong} shape {given.shape}{says}")
    return given


def _check_box(name: str, space: spaces.Box) -> None:
    """Raises EnvError for a dtype that is not stored, and for observations without a number."""
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


def divisor_of(space: spaces.Space[Any]) -> int:
    """Returns what a network divides the observations of this space by: 255 for bytes of the whole range, else 1.

    By the space's bounds, never by the dtype alone: MinAtar's bytes are 0 and 1.
    """
    whole = isinstance(space, spaces.Box) and space.dtype == np.uint8 and bool((space.high == BYTE_MAX).all())
    return BYTE_MAX if whole else 1


def channels_last(shape: tuple[int, ...]) -> bool:
    """Returns whether the last axis of a picture of this shape has its channels: unless the first one is shorter than
    both others."""
    return not (len(shape) == 3 and shape[0] < min(shape[1:]))


def _narrowed(space: spaces.Box) -> spaces.Box:
    """Returns the space as it is stored."""
    name = np.dtype(space.dtype).name
    if name not in NARROWED:
        return space
    dtype = np.dtype(NARROWED[name]).type
    with np.errstate(over="ignore"):  # float64's largest bound is float32's infinity
        low, high = np.asarray(space.low).astype(dtype), np.asarray(space.high).astype(dtype)
    return spaces.Box(low, high, space.shape, dtype)


def short(space: spaces.Space[Any]) -> str:
    """Returns the space in one line."""
    return " ".join(str(space).split())
