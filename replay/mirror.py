"""The mirror: the learner's copy of the newest rows, a ring in arrival order. It stores; it neither chooses nor learns.

A row's 64-bit id is its place in the order of arrival, for ever; its place in the arrays is ``id % capacity``. The rows
alive are ``[start, end)``: adding rows evicts the oldest. What a row needs to become a transition (its n-step return,
its discount, the row it bootstraps from) is written when its window closes; until then it is not sampleable.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replay.chunk import Chunk, Schema
from replay.nstep import Closed

Array = npt.NDArray[Any]


class Batch(NamedTuple):
    """B transitions: s_tm1 and s_t <obs_dtype>[B, *obs_shape], a_tm1 <int64>[B], r_t and discount_t <float32>[B]."""

    s_tm1: Array
    a_tm1: Array
    r_t: Array
    discount_t: Array
    s_t: Array


class Mirror:
    """A ring of ``capacity_rows`` rows in RAM, preallocated."""

    def __init__(self, schema: Schema, capacity_rows: int) -> None:
        self.schema = schema
        self.capacity_rows = capacity_rows
        self.end = 0
        self.sampleable_rows = 0
        self._obs = np.zeros((capacity_rows, *schema.obs_shape), schema.obs_dtype)
        self._action = np.zeros(capacity_rows, np.int64)
        self._r_t = np.zeros(capacity_rows, np.float32)
        self._discount_t = np.zeros(capacity_rows, np.float32)
        self._boot = np.zeros(capacity_rows, np.int64)
        self._sampleable = np.zeros(capacity_rows, np.bool_)

    @staticmethod
    def planned_bytes(schema: Schema, capacity_rows: int) -> int:
        """Bytes that a mirror of this size allocates."""
        return capacity_rows * (schema.obs_bytes + 8 + 4 + 4 + 8 + 1)

    @property
    def start(self) -> int:
        """The oldest row alive."""
        return max(0, self.end - self.capacity_rows)

    @property
    def rows(self) -> int:
        """Rows alive."""
        return self.end - self.start

    def add(self, chunk: Chunk) -> Array:
        """Append the chunk's rows, evicting the oldest; returns their ids <int64>[T, E]. None is sampleable yet."""
        count = chunk.rows
        if count > self.capacity_rows:
            raise ValueError(f"a chunk of {count} rows does not fit a mirror of {self.capacity_rows}")
        ids = np.arange(self.end, self.end + count)
        at = self.end % self.capacity_rows
        head = min(count, self.capacity_rows - at)
        obs, action = chunk.obs.reshape(count, *self.schema.obs_shape), chunk.action.reshape(count)
        for place, rows in ((slice(at, at + head), slice(0, head)), (slice(0, count - head), slice(head, count))):
            self.sampleable_rows -= int(np.count_nonzero(self._sampleable[place]))
            self._sampleable[place] = False
            self._obs[place] = obs[rows]
            self._action[place] = action[rows]
        self.end += count
        return ids.reshape(chunk.flags.shape)

    def close(self, closed: Closed) -> None:
        """Make rows sampleable. Rows evicted meanwhile are passed over."""
        alive = closed.row >= self.start
        if not alive.all():
            closed = Closed(*(column[alive] for column in closed))
        place = closed.row % self.capacity_rows
        self._r_t[place] = closed.r_t
        self._discount_t[place] = closed.discount_t
        self._boot[place] = closed.boot
        self._sampleable[place] = True
        self.sampleable_rows += len(place)

    def sampleable(self, ids: Array) -> Array:
        """Which of these live rows may be sampled, <bool>[B]."""
        return self._sampleable.take(ids % self.capacity_rows)

    def gather(self, ids: Array) -> Batch:
        """The transitions of sampleable rows ``ids`` <int64>[B], in contiguous arrays."""
        place = ids % self.capacity_rows
        boot = self._boot.take(place) % self.capacity_rows
        return Batch(
            self._obs.take(place, axis=0),
            self._action.take(place),
            self._r_t.take(place),
            self._discount_t.take(place),
            self._obs.take(boot, axis=0),
        )
