"""The state of a run's part: what a checkpoint has of it, and what it is restored from.

Each part that has a state has two methods: ``state()``, which neither copies large arrays nor changes anything, and
``restore(state)``, after which the part does what the one that gave it would have done. ``learner/checkpoint.py`` puts
them on disk. What comes from there may be anything: ``restore`` raises ValueError, LookupError or TypeError where it is
no state of the part's, which is of no use then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class State(NamedTuple):
    """``values`` that JSON can say exactly, and ``arrays``, which may be views of what goes on changing."""

    values: Mapping[str, Any]
    arrays: Mapping[str, npt.NDArray[Any]]


MAX_COUNT = (1 << 63) - 1
"""No count of a state is greater: what an int64 holds."""


def count(value: Any, what: str) -> int:
    """Returns a value of a state that counts something. Raises ValueError where it counts nothing."""
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise ValueError(f"{what} is {value!r:.60}, and has to be a whole number from 0 to {MAX_COUNT}")
    return value


def counts(values: Any, what: str) -> dict[str, int]:
    """Returns counts by name, see ``count``."""
    if not isinstance(values, dict):
        raise ValueError(f"{what} is {values!r:.60}, and has to be counts by name")
    return {name: count(value, f"{what}.{name}") for name, value in values.items()}


def number(value: Any, what: str, least: float = -math.inf) -> float:
    """Returns a finite number of a state. Raises ValueError where it is none, or below ``least``."""
    if type(value) not in (int, float) or not math.isfinite(value) or value < least:
        bound = "" if least == -math.inf else f" of at least {least:g}"
        raise ValueError(f"{what} is {value!r:.60}, and has to be a finite number{bound}")
    return value  # type: ignore[no-any-return]


def array_in(state: State, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Returns an array of a state. Raises ValueError where it has another shape or dtype, KeyError where there is
    none."""
    found = state.arrays[name]
    if found.shape != shape or found.dtype != np.dtype(dtype):
        raise ValueError(
            f"{name} is <{found.dtype}>{list(found.shape)}, and has to be <{np.dtype(dtype)}>{list(shape)}"
        )
    return found


def rng_state(rng: np.random.Generator) -> dict[str, Any]:
    """Returns a generator's state as plain values (numpy has 128-bit integers in it, which JSON takes as they are)."""
    return dict(rng.bit_generator.state)


def restore_rng(rng: np.random.Generator, state: Mapping[str, Any]) -> None:
    """Sets a generator of the same kind to that state."""
    rng.bit_generator.state = dict(state)
