"""The mirror: the learner's copy of the newest rows, a ring in arrival order. It stores; it neither chooses nor learns.

A row's 64-bit id is its place in the order of arrival, for ever; its place in the arrays is ``id % capacity``. The rows
alive are ``[start, end)``: adding rows evicts the oldest. What a row needs to become a transition (its n-step return,
its discount, the row it bootstraps from) is written when its window closes; until then it is not sampleable.

A schema with a stack has one frame per row. The stack of a row is rebuilt from the rows before it in its lane::

    stack(i) = (frame_{i-k+1}, ..., frame_i), the episode's first frame repeated where the episode is younger than that

as gymnasium's FrameStackObservation pads. A row whose stack reaches a row that was lost or evicted is not sampleable.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from replay.chunk import FIRST, Chunk, Schema
from replay.nstep import Closed
from replay.state import State
from replay.storage import Ram, Storage

Array = npt.NDArray[Any]


class Batch(NamedTuple):
    """B transitions: s_tm1 and s_t <obs_dtype>[B, *input_shape], a_tm1 <int64>[B], r_t and discount_t <float32>[B]:
    numpy arrays, or the learner's tensors where the mirror lies on its device."""

    s_tm1: Any
    a_tm1: Any
    r_t: Any
    discount_t: Any
    s_t: Any


class Watcher(Protocol):
    """Learns of what becomes sampleable and what ceases to be."""

    def closed(self, rows: Array, td_error: Array) -> None:
        """Rows <int64>[M] that are sampleable from now on, and the actor's TD errors <float32>[M]."""

    def removed(self, rows: Array) -> None:
        """Rows <int64>[M] that were sampleable and are no more."""


class Mirror:
    """A ring of ``capacity_rows`` rows, preallocated in ``storage``; what is known about them stays in host memory."""

    def __init__(self, schema: Schema, capacity_rows: int, storage: Storage | None = None) -> None:
        self.schema = schema
        self.capacity_rows = capacity_rows
        self.end = 0
        self.sampleable_rows = 0
        self._watcher: Watcher | None = None
        self._storage = storage or Ram()
        self._obs, self._action, self._r_t, self._discount_t = (
            self._storage.allocate(capacity_rows, *kind)
            for kind in ((schema.obs_shape, schema.obs_dtype), ((), "int64"), ((), "float32"), ((), "float32"))
        )
        self._boot = np.zeros(capacity_rows, np.int64)
        self._sampleable = np.zeros(capacity_rows, np.bool_)
        links = capacity_rows if schema.stack > 1 else 0
        self._before = np.full(links, -1, np.int64)  # the row before in the episode; a first row's is itself
        self._behind = np.full(links, -1, np.int64)  # and the one behind; what an evicted row left is older than any

    @staticmethod
    def planned_bytes(schema: Schema, capacity_rows: int) -> int:
        """Bytes that a mirror of this size allocates."""
        links = 16 if schema.stack > 1 else 0
        return capacity_rows * (schema.obs_bytes + 8 + 4 + 4 + 8 + 1 + links)

    @property
    def start(self) -> int:
        """The oldest row alive."""
        return max(0, self.end - self.capacity_rows)

    @property
    def rows(self) -> int:
        """Rows alive."""
        return self.end - self.start

    def watch(self, watcher: Watcher) -> None:
        """Tell ``watcher`` from now on. There is one."""
        self._watcher = watcher

    def add(self, chunk: Chunk, last_row: Array) -> Array:
        """Append the chunk's rows, evicting the oldest; returns their ids <int64>[T, E]. None is sampleable yet.

        ``last_row`` <int64>[E]: the row before in each lane's episode, -1 where there is none or it was lost.
        """
        count = chunk.rows
        if count > self.capacity_rows:
            raise ValueError(f"a chunk of {count} rows does not fit a mirror of {self.capacity_rows}")
        self._evict(self.end + count - self.capacity_rows)
        ids = np.arange(self.end, self.end + count).reshape(chunk.flags.shape)
        at = self.end % self.capacity_rows
        head = min(count, self.capacity_rows - at)
        obs, action = chunk.obs.reshape(count, *self.schema.obs_shape), chunk.action.reshape(count)
        for place, rows in ((slice(at, at + head), slice(0, head)), (slice(0, count - head), slice(head, count))):
            self._storage.put(self._obs, place, obs[rows])
            self._storage.put(self._action, place, action[rows])
        self.end += count
        if self.schema.stack > 1:
            self._link(ids, (chunk.flags & FIRST) != 0, last_row)
        return ids

    def _link(self, ids: Array, first: Array, last_row: Array) -> None:
        """Note which row comes before each of ``ids`` in its episode."""
        before = np.concatenate((last_row[None], ids[:-1]))
        before[before < self.start] = -1
        before = np.where(first, ids, before)
        self._before[ids % self.capacity_rows] = before
        follows = (before >= 0) & ~first
        self._behind[before[follows] % self.capacity_rows] = ids[follows]

    def _evict(self, upto: int) -> None:
        """Let go of the rows before ``upto``, and of those whose stack reaches one of them."""
        rows = np.arange(self.start, upto)
        self._remove(rows)
        for _ in range(self.schema.stack - 1):
            rows = self._behind[rows % self.capacity_rows]
            rows = rows[rows >= upto]
            self._remove(rows)

    def _remove(self, rows: Array) -> None:
        rows = rows[self._sampleable.take(rows % self.capacity_rows)]
        self._sampleable[rows % self.capacity_rows] = False
        self.sampleable_rows -= len(rows)
        if self._watcher is not None:
            self._watcher.removed(rows)

    def close(self, closed: Closed) -> None:
        """Make rows sampleable. Those evicted meanwhile, and those without a whole stack, are passed over."""
        usable = self._whole(closed.row)
        if not usable.all():
            closed = Closed(*(column[usable] for column in closed))
        place = closed.row % self.capacity_rows
        self._storage.put(self._r_t, place, closed.r_t)
        self._storage.put(self._discount_t, place, closed.discount_t)
        self._boot[place] = closed.boot
        self._sampleable[place] = True
        self.sampleable_rows += len(place)
        if self._watcher is not None:
            self._watcher.closed(closed.row, closed.td_error)

    def _whole(self, rows: Array) -> Array:
        """Which of these rows are alive with all that their stacks need, <bool>[M]."""
        whole: Array = rows >= self.start
        for _ in range(self.schema.stack - 1):
            rows = np.where(whole, self._before[rows % self.capacity_rows], -1)
            whole &= rows >= self.start
        return whole

    def sampleable(self, rows: Array) -> Array:
        """Which of these live rows may be sampled, <bool>[B]."""
        return self._sampleable.take(rows % self.capacity_rows)

    def gather(self, rows: Array) -> Batch:
        """The transitions of sampleable rows <int64>[B], in contiguous arrays."""
        place = rows % self.capacity_rows
        return Batch(
            self._observations(place),
            self._storage.take(self._action, place),
            self._storage.take(self._r_t, place),
            self._storage.take(self._discount_t, place),
            self._observations(self._boot.take(place) % self.capacity_rows),
        )

    def _observations(self, place: Array) -> Any:
        """What the network sees at these places: <obs_dtype>[B, *input_shape]."""
        stack = self.schema.stack
        if stack == 1:
            return self._storage.take(self._obs, place)
        places = np.empty((len(place), stack), np.int64)
        for k in reversed(range(stack)):
            places[:, k] = place
            place = self._before.take(place) % self.capacity_rows
        return self._storage.take(self._obs, places.reshape(-1)).reshape(len(places), *self.schema.input_shape)

    def state(self) -> State:
        """See ``replay.state``. The arrays are the columns as far as they were ever filled."""
        filled = min(self.end, self.capacity_rows)
        arrays = {name: self._storage.host(column, filled) for name, column in self._stored_columns().items()}
        arrays |= {name: column[:filled] for name, column in self._book_columns().items()}
        return State({"end": self.end, "sampleable_rows": self.sampleable_rows}, arrays)

    def restore(self, state: State) -> None:
        """See ``replay.state``. The watcher is not told: it has a state of its own."""
        for name, column in self._stored_columns().items():
            self._storage.put(column, slice(0, len(state.arrays[name])), state.arrays[name])
        for name, column in self._book_columns().items():
            column[: len(state.arrays[name])] = state.arrays[name]
        self.end, self.sampleable_rows = state.values["end"], state.values["sampleable_rows"]

    def _stored_columns(self) -> dict[str, Any]:
        return {"obs": self._obs, "action": self._action, "r_t": self._r_t, "discount_t": self._discount_t}

    def _book_columns(self) -> dict[str, Array]:
        links = {"before": self._before, "behind": self._behind} if self.schema.stack > 1 else {}
        return {"boot": self._boot, "sampleable": self._sampleable, **links}
