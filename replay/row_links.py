"""What a mirror knows of rows that belong together: the frames of a stack, and the rows of a chunk.

All of it is in host memory, by index in the ring (``id % capacity``), and holds ids of rows, which are for ever: an id
below ``start`` is of a row that was evicted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class FrameLinks:
    """The rows before and after each row in its episode; a first row's previous one is itself.

    Both may hold ids of evicted rows: whoever follows them drops those.
    """

    def __init__(self, capacity_rows: int, stack: int) -> None:
        self._capacity_rows, self._stack = capacity_rows, stack
        self._prev_row, self._next_row = np.full(capacity_rows, -1, np.int64), np.full(capacity_rows, -1, np.int64)

    @staticmethod
    def planned_bytes(capacity_rows: int) -> int:
        """Returns the bytes that it allocates."""
        return 16 * capacity_rows

    def add(self, ids: Array, first: Array, last_row: Array, start: int) -> None:
        """Links rows <int64>[T, E], of which those that are ``first`` <bool>[T, E] begin an episode. ``last_row``: see
        ``Mirror.add``."""
        previous = np.concatenate((last_row[None], ids[:-1]))
        previous[previous < start] = -1
        previous = np.where(first, ids, previous)
        self._prev_row[ids % self._capacity_rows] = previous
        follows = (previous >= 0) & ~first
        self._next_row[previous[follows] % self._capacity_rows] = ids[follows]

    def after(self, rows: Array, upto: int) -> Iterator[Array]:
        """Yields the rows from ``upto`` on that have lost a frame where ``rows``, all before it, are evicted: of a
        stack of k frames, along each lane the k - 1 rows after an evicted one."""
        for _ in range(self._stack - 1):
            rows = self._next_row[rows % self._capacity_rows]
            rows = rows[rows >= upto]  # no next row, or an id that an evicted row has left there
            yield rows

    def complete(self, rows: Array, alive: Array, start: int) -> Array:
        """Returns which of these rows <int64>[M] are ``alive`` <bool>[M] with all frames of their stack, <bool>[M]."""
        for _ in range(self._stack - 1):
            rows = np.where(alive, self._prev_row[rows % self._capacity_rows], -1)
            alive = alive & (rows >= start)
        return alive

    def stacks(self, index: Array) -> Array:
        """Returns the indices of the frames of the rows at these indices <int64>[B], the oldest first: [B, k]."""
        indices = np.empty((len(index), self._stack), np.int64)
        for k in reversed(range(self._stack)):
            indices[:, k] = index
            index = self._prev_row.take(index) % self._capacity_rows
        return indices

    def oldest(self, rows: Array) -> Array:
        """Returns the oldest frames of the stacks of these rows <int64>[M], which are complete."""
        for _ in range(self._stack - 1):
            rows = self._prev_row[rows % self._capacity_rows]
        return rows

    def columns(self) -> dict[str, Array]:
        """Returns what a state has of them."""
        return {"before": self._prev_row, "after": self._next_row}


class ChunkHeads:
    """Each row's head: its lane's first row in its chunk, where the columns lie that are per chunk."""

    def __init__(self, capacity_rows: int) -> None:
        self._capacity_rows = capacity_rows
        self._head = np.full(capacity_rows, -1, np.int64)
        self._chunk_end = np.full(capacity_rows, -1, np.int64)  # the row after its chunk's last one

    @staticmethod
    def planned_bytes(capacity_rows: int) -> int:
        """Returns the bytes that it allocates."""
        return 16 * capacity_rows

    def add(self, ids: Array, end: int) -> None:
        """Adds the rows of a chunk <int64>[T, E], which ends before row ``end``."""
        self._head[ids % self._capacity_rows] = ids[0]
        self._chunk_end[ids % self._capacity_rows] = end

    def after(self, upto: int) -> Array:
        """Returns the rows from ``upto`` on that have lost their head where all rows before it are evicted. Chunks lie
        one after the other: only that of the newest evicted row can reach beyond it."""
        rows = np.arange(upto, self._chunk_end[(upto - 1) % self._capacity_rows])
        lost: Array = rows[self._head[rows % self._capacity_rows] < upto]
        return lost

    def complete(self, rows: Array, start: int) -> Array:
        """Returns which of these rows <int64>[M] have their head, <bool>[M]."""
        return np.asarray(self._head[rows % self._capacity_rows] >= start)

    def indices(self, index: Array) -> Array:
        """Returns the indices of the heads of the rows at these indices <int64>[B]."""
        return np.asarray(self._head.take(index) % self._capacity_rows)

    def columns(self) -> dict[str, Array]:
        """Returns what a state has of them."""
        return {"head": self._head, "chunk_end": self._chunk_end}
