"""What a part of a run gives to a checkpoint, and is made from again.

Each part that has a state has two methods: ``state()``, which neither copies large arrays nor changes anything, and
``restore(state)``, after which the part goes on as the one that gave it would have. ``learner/checkpoint.py`` puts them
on disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class State(NamedTuple):
    """``values`` that JSON can say exactly, and ``arrays``, which may be views of what goes on changing."""

    values: Mapping[str, Any]
    arrays: Mapping[str, npt.NDArray[Any]]


def rng_state(rng: np.random.Generator) -> dict[str, Any]:
    """A generator's state as plain values (numpy has 128-bit integers in it, which JSON takes as they are)."""
    return dict(rng.bit_generator.state)


def restore_rng(rng: np.random.Generator, state: Mapping[str, Any]) -> None:
    """Have a generator of the same kind go on from there."""
    rng.bit_generator.state = dict(state)
