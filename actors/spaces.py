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
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from actors.errors import ContractError, EnvError
from learner.networks import portable
from learner.networks.portable import MAX_COMBINATIONS
from replay.chunk import DTYPES, MAX_NAME, ObsEntry

Path = tuple[Any, ...]
"""The keys that lead to an entry of a Dict or Tuple."""

NARROWED = {"float64": "float32", "int64": "float32", "uint32": "float32", "uint64": "float32", "bool": "int8"}
"""Dtypes that are narrowed once, here; all others are stored as they are. float32 holds whole numbers to 2^24."""
BYTE_MAX = 255
MAX_ONE_HOT = 1 << 20
"""Numbers that a one-hot observation may have: 4 MB a row."""


class Numbered(NamedTuple):
    """An environment's actions by number: how many there are; a function from a number to what the environment is
    given, None where that is the number itself; and the same as plain values (learner/networks/portable.py)."""

    size: int
    action_of: Callable[[Any], Any] | None
    about: dict[str, Any]


def numbered_actions(name: str, space: spaces.Space[Any]) -> Numbered:
    """Returns the actions of this space by number.

    Raises:
        EnvError: the actions cannot be numbered, or are too many; the text has the remedy.
    """
    if isinstance(space, spaces.Discrete):
        start, count = int(space.start), int(space.n)
        about = {"space": short(space), "n": count, "start": start}
        return Numbered(count, (lambda number: np.int64(number + start)) if start else None, about)
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
    if not counts.size:
        raise EnvError(f"{name} has the action space {short(space)}, which chooses nothing; Q-learning needs actions")
    number_of = math.prod(counts.ravel().tolist())  # of Python's whole numbers, which do not overflow
    if number_of > MAX_COMBINATIONS:
        raise EnvError(
            f"{name} has the action space {short(space)} of {number_of} combinations; up to {MAX_COMBINATIONS} are "
            "numbered: offer fewer of them with gymnasium.wrappers.TransformAction where you register it"
        )
    dtype = np.dtype(space.dtype).name
    table = portable.action_table(counts, first, dtype)
    about = {"space": short(space), "n": number_of, "counts": counts.tolist(), "first": first.tolist(), "dtype": dtype}
    return Numbered(number_of, lambda number: table[number].copy(), about)


class Usual(NamedTuple):
    """Arrays of this ``dtype`` and ``shape`` are stored as they are, or as a copy in the dtype ``stored_as`` where that
    is not None. ``dtype`` is None where each observation is looked at in full."""

    dtype: np.dtype[Any] | None
    shape: tuple[int, ...]
    stored_as: np.dtype[Any] | None


class Observations:
    """What is stored of an environment's observations."""

    def __init__(
        self, name: str, about: dict[str, Any], space: spaces.Box, entries: tuple[ObsEntry, ...], copies: bool
    ) -> None:
        """``about``: see ``learner.networks.portable.Observations``; ``space``: of what is stored; ``entries``: those
        of a Dict or Tuple; ``copies``: nothing that is returned shares the environment's memory."""
        self.about, self.space, self.entries, self._copies = about, space, entries, copies
        self._name, self._stored = name, portable.Observations(about)
        first, self.usual = about["entries"][0], Usual(None, (), None)
        """What most observations are."""
        if not about["flattened"] and "dtype" in first:
            given, stored = np.dtype(first["dtype"]), np.dtype(space.dtype)
            self.usual = Usual(given, tuple(space.shape), stored if copies or stored is not given else None)

    def __call__(self, method: str, obs: Any) -> Any:
        """Returns what is stored of the observation that ``method`` returned, in the space's shape and dtype.

        Raises:
            ContractError: it is not of the environment's space.
        """
        try:
            stored = self._stored(obs)
        except portable.Mismatch as error:
            raise ContractError(f"{self._name}: {method}() returned {error}") from None
        return stored.copy() if self._copies and stored is obs else stored


def observations_of(name: str, space: spaces.Space[Any], *, copies: bool = False) -> Observations:
    """Makes what stores observations of this space. ``copies``: they may not share the environment's memory.

    Raises:
        EnvError: qherd does not store such observations; the text has the remedy.
    """
    flattened = isinstance(space, spaces.Dict | spaces.Tuple)
    found = [(path, *_described(name, entry, path)) for path, entry in _entries(space)]
    if not found:
        raise EnvError(f"{name} has the observation space {short(space)}, which holds nothing to learn from")
    stored, entries, divided = found[0][2], tuple[ObsEntry, ...](), False
    if flattened:
        entries = tuple(_entry("/".join(map(str, path))[:MAX_NAME], each) for path, _, each in found)
        divided = len({(each.dtype, divisor_of(each)) for _, _, each in found}) > 1
        stored = _together([each for _, _, each in found], divided)
    about = {
        "space": short(space),
        "entries": [entry for _, entry, _ in found],
        "flattened": flattened,
        "divided": divided,
        "dtype": np.dtype(stored.dtype).name,
        "shape": list(stored.shape),
    }
    return Observations(name, about, stored, entries, copies)


def _described(name: str, space: spaces.Space[Any], path: Path) -> tuple[dict[str, Any], spaces.Box]:
    """Returns how an entry is stored, as plain values, and the space of what is stored. Raises EnvError."""
    where = "".join(f"[{key!r}]" for key in path)
    about = {"path": list(path), "space": short(space), "shape": list(space.shape or ())}
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        counts, first = (np.atleast_1d(np.asarray(each)).ravel().tolist() for each in _numbers_of(space))
        if not counts:
            raise EnvError(
                f"{name} has the observation space {short(space)}{where and f' as entry {where}'}, which holds nothing "
                "to learn from"
            )
        if (numbers := sum(counts)) > MAX_ONE_HOT:
            raise EnvError(
                f"{name} has the observation space {short(space)}{where and f' as entry {where}'}, which is stored "
                f"one-hot, {numbers} numbers; up to {MAX_ONE_HOT} are stored: make it a Box with "
                "gymnasium.wrappers.TransformObservation where you register it"
            )
        return about | {"counts": counts, "first": first}, spaces.Box(0.0, 1.0, (numbers,), np.float32)
    if isinstance(space, spaces.MultiBinary):
        space = spaces.Box(0, 1, space.shape, np.int8)
    if not isinstance(space, spaces.Box):
        raise EnvError(
            f"{name} has the observation space {short(space)}{where and f' as entry {where}'}; qherd takes Box, "
            "Discrete, MultiDiscrete and MultiBinary, and Dict and Tuple of these: make it a Box with "
            "gymnasium.wrappers.TransformObservation where you register it: gymnasium.register(id, lambda **kwargs: "
            "TransformObservation(YourEnv(**kwargs), to_numbers, Box(...)))"
        )
    _check_box(name, space)
    stored = _narrowed(space)
    dtypes = {"dtype": np.dtype(space.dtype).name, "stored": np.dtype(stored.dtype).name}
    return about | dtypes | {"divisor": divisor_of(stored)}, stored


def _numbers_of(space: spaces.Discrete[Any] | spaces.MultiDiscrete[Any]) -> tuple[Any, Any]:
    """Returns how many numbers each entry has, and the first of each."""
    return (space.n, space.start) if isinstance(space, spaces.Discrete) else (space.nvec, space.start)


def _together(stored: Sequence[spaces.Box], divided: bool) -> spaces.Box:
    """Returns the space of entries that are flattened into one vector; ``divided``: bytes of 0 to 255 by 255."""
    dtype = np.dtype(np.float32 if divided else stored[0].dtype)
    divisors = [divisor_of(each) if divided else 1 for each in stored]
    low, high = (
        np.concatenate([bound.ravel() / divisor for bound, divisor in zip(bounds, divisors, strict=True)]).astype(dtype)
        for bounds in ([each.low for each in stored], [each.high for each in stored])
    )
    return spaces.Box(low, high, dtype=dtype.type)


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
