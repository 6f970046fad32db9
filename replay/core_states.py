"""Recurrent states by the row that they precede: the states that actors sent at their chunks' first rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from replay.state import State, array_in

Array = npt.NDArray[Any]


class CoreStates:
    """The states of the rows alive that are their lane's first in a chunk, in host memory, the oldest first.

    How many there are depends on how long chunks are, which the actors decide: the arrays grow with what comes.
    """

    def __init__(self, core: int) -> None:
        self._rows, self._states = np.zeros(0, np.int64), np.zeros((0, core), np.float32)
        self._begin = self._end = 0

    @staticmethod
    def planned_bytes(core: int, states: int) -> int:
        """Returns the bytes that so many states take at the most: there may be twice the room."""
        return 2 * states * (8 + 4 * core)

    @property
    def nbytes(self) -> int:
        """Returns the bytes that it has allocated."""
        return self._rows.nbytes + self._states.nbytes

    def add(self, rows: Array, states: Array) -> None:
        """Adds the states <float32>[E, core] before ``rows`` <int64>[E], which ascend and are newer than all here."""
        if self._end + len(rows) > len(self._rows):
            self._make_room(len(rows))
        self._rows[self._end : self._end + len(rows)] = rows
        self._states[self._end : self._end + len(rows)] = states
        self._end += len(rows)

    def _make_room(self, more: int) -> None:
        """Moves what is alive to the front: of longer arrays, where it fills more than half of these."""
        alive = slice(self._begin, self._end)
        count = self._end - self._begin
        room = max(len(self._rows), 2 * (count + more))
        rows, states = np.zeros(room, np.int64), np.zeros((room, self._states.shape[1]), np.float32)
        rows[:count], states[:count] = self._rows[alive], self._states[alive]
        self._rows, self._states, self._begin, self._end = rows, states, 0, count

    def evict(self, upto: int) -> None:
        """Drops the states before rows that are older than ``upto``."""
        self._begin += int(np.searchsorted(self._rows[self._begin : self._end], upto))

    def before(self, rows: Array) -> Array:
        """Returns the states <float32>[B, core] before ``rows`` <int64>[B]: zero where none was sent, at an episode's
        start within a chunk."""
        known = self._rows[self._begin : self._end]
        at = np.searchsorted(known, rows)
        found = at < len(known)
        found[found] = known[at[found]] == rows[found]
        states = np.zeros((len(rows), self._states.shape[1]), np.float32)
        states[found] = self._states[self._begin + at[found]]
        return states

    def columns(self) -> dict[str, Array]:
        """Returns what a state has of them."""
        alive = slice(self._begin, self._end)
        return {"core_rows": self._rows[alive], "core_states": self._states[alive]}

    def restore(self, state: State, end: int) -> None:
        """See ``replay.state``; ``end``: the row after the newest one."""
        count = len(state.arrays["core_rows"])
        rows = array_in(state, "core_rows", (count,), np.int64)
        states = array_in(state, "core_states", (count, self._states.shape[1]), np.float32)
        if count and not (rows[0] >= 0 and rows[-1] < end and (np.diff(rows) > 0).all()):
            raise ValueError(f"core_rows has no ascending rows from 0 to {end - 1}")
        if not np.isfinite(states).all():
            raise ValueError("core_states has values that are not finite")
        self._rows, self._states, self._begin, self._end = np.array(rows), np.array(states), 0, count
