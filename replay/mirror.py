"""The mirror: the learner's copy of the newest rows, a ring in arrival order. It stores; it neither chooses nor learns.

A row's 64-bit id is its place in the order of arrival, for ever; its place in the arrays is ``id % capacity``. The rows
alive are ``[start, end)``: adding rows evicts the oldest. What a row needs to become a transition (its n-step return,
its discount, the row it bootstraps from) is written when its window closes; until then it is not sampleable.

A schema with a stack has one frame per row. The stack of a row is rebuilt from the rows before it in its lane::

    stack(i) = (frame_{i-k+1}, ..., frame_i), the episode's first frame repeated where the episode is younger than that

as gymnasium's FrameStackObservation pads. A row whose stack reaches a row that was lost or evicted is not sampleable.

A column that is per chunk lies at each lane's first row in the chunk, the row's *head*. A row whose head was evicted is
not sampleable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from replay.chunk import FIRST, Chunk, Column, Schema
from replay.nstep import Closed
from replay.state import State, array_in, count
from replay.storage import Ram, Storage

Array = npt.NDArray[Any]


@dataclass(slots=True)
class Batch:
    """B transitions: s_tm1 and s_t <obs_dtype>[B, *input_shape], a_tm1 <int64>[B], r_t and discount_t <float32>[B]:
    numpy arrays, or the learner's tensors where the mirror lies on its device.

    ``extras_tm1`` and ``extras_t``: the schema's further columns by name, <dtype>[B, *shape], of the row of s_tm1 and
    of that of s_t. Unpacked or iterated over, a batch is the five arrays that every schema has.
    """

    s_tm1: Any
    a_tm1: Any
    r_t: Any
    discount_t: Any
    s_t: Any
    extras_tm1: Mapping[str, Any] = field(default_factory=dict)
    extras_t: Mapping[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.s_tm1, self.a_tm1, self.r_t, self.discount_t, self.s_t))

    def map(self, change: Callable[[Any], Any]) -> Batch:
        """Returns a batch of what ``change`` makes of each array."""
        extras = ({name: change(array) for name, array in each.items()} for each in (self.extras_tm1, self.extras_t))
        return Batch(*map(change, self), *extras)


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
        self._kept = _kept(schema)
        self._columns = {
            each.name: self._storage.allocate(capacity_rows, each.shape, each.dtype) for each in self._kept
        }
        self._r_t, self._discount_t = (self._storage.allocate(capacity_rows, (), "float32") for _ in range(2))
        self._boot = np.zeros(capacity_rows, np.int64)
        self._sampleable = np.zeros(capacity_rows, np.bool_)
        links = capacity_rows if schema.stack > 1 else 0
        self._before = np.full(links, -1, np.int64)  # the row before in the episode; a first row's is itself
        self._after = np.full(links, -1, np.int64)  # and the one after; what an evicted row left is older than any
        heads = capacity_rows if schema.lane_bytes else 0
        self._head = np.full(heads, -1, np.int64)  # its lane's first row in its chunk, which has the chunk's columns
        self._chunk_end = np.full(heads, -1, np.int64)  # the row after its chunk's last one

    @staticmethod
    def planned_bytes(schema: Schema, capacity_rows: int) -> int:
        """Returns the bytes that a mirror of this size allocates."""
        links, heads = 16 if schema.stack > 1 else 0, 16 if schema.lane_bytes else 0
        return capacity_rows * (sum(column.nbytes for column in _kept(schema)) + 4 + 4 + 8 + 1 + links + heads)

    @property
    def start(self) -> int:
        """The oldest row alive."""
        return max(0, self.end - self.capacity_rows)

    @property
    def rows(self) -> int:
        """Rows alive."""
        return self.end - self.start

    def watch(self, watcher: Watcher) -> None:
        """Tell ``watcher`` from now on. Raises ValueError where there is another: it would hear of nothing any more."""
        if self._watcher is not None:
            raise ValueError(f"the mirror has a watcher already, a {type(self._watcher).__name__}; make another mirror")
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
        self._store(chunk, ids)
        self.end += count
        if self.schema.stack > 1:
            self._link(ids, (chunk.flags & FIRST) != 0, last_row)
        if self.schema.lane_bytes:
            self._head[ids % self.capacity_rows] = ids[0]
            self._chunk_end[ids % self.capacity_rows] = self.end
        return ids

    def _store(self, chunk: Chunk, ids: Array) -> None:
        """Write the chunk's columns: from the newest row on and, where the ring's end is reached, from its start."""
        at, count, values = self.end % self.capacity_rows, chunk.rows, chunk.columns
        head = min(count, self.capacity_rows - at)
        parts = ((slice(at, at + head), slice(0, head)), (slice(0, count - head), slice(head, count)))
        for column in self._kept:
            stored, added = self._columns[column.name], values[column.name]
            if column.per == "chunk":
                self._storage.put(stored, ids[0] % self.capacity_rows, added)
                continue
            flat = added.reshape(count, *column.shape)
            for place, rows in parts:
                self._storage.put(stored, place, flat[rows])

    def _link(self, ids: Array, first: Array, last_row: Array) -> None:
        """Note which row comes before each of ``ids`` in its episode."""
        before = np.concatenate((last_row[None], ids[:-1]))
        before[before < self.start] = -1
        before = np.where(first, ids, before)
        self._before[ids % self.capacity_rows] = before
        follows = (before >= 0) & ~first
        self._after[before[follows] % self.capacity_rows] = ids[follows]

    def _evict(self, upto: int) -> None:
        """Let go of the rows before ``upto``, and of those whose stack or head is one of them."""
        rows = np.arange(self.start, upto)
        self._remove(rows)
        for _ in range(self.schema.stack - 1):
            rows = self._after[rows % self.capacity_rows]
            rows = rows[rows >= upto]
            self._remove(rows)
        if self.schema.lane_bytes and upto > 0:  # only the chunk of the newest evicted row can reach beyond it
            rows = np.arange(upto, self._chunk_end[(upto - 1) % self.capacity_rows])
            self._remove(rows[self._head[rows % self.capacity_rows] < upto])

    def _remove(self, rows: Array) -> None:
        rows = rows[self._sampleable.take(rows % self.capacity_rows)]
        self._sampleable[rows % self.capacity_rows] = False
        self.sampleable_rows -= len(rows)
        if self._watcher is not None:
            self._watcher.removed(rows)

    def close(self, closed: Closed) -> None:
        """Make rows sampleable. Those evicted meanwhile, and those without a whole stack or head, are passed over."""
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
        """Which of these rows are alive with all that belongs to them, <bool>[M]."""
        whole: Array = rows >= self.start
        if self.schema.lane_bytes:
            whole &= self._head[rows % self.capacity_rows] >= self.start
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
        boot = self._boot.take(place) % self.capacity_rows
        batch = Batch(
            self._observations(place),
            self._storage.take(self._columns["action"], place),
            self._storage.take(self._r_t, place),
            self._storage.take(self._discount_t, place),
            self._observations(boot),
        )
        if self.schema.extras:
            batch.extras_tm1, batch.extras_t = self._extras(place), self._extras(boot)
        return batch

    def _extras(self, place: Array) -> dict[str, Any]:
        """The further columns of the rows at these places."""
        extras: dict[str, Any] = {}
        for column in self.schema.extras:
            where = place if column.per == "row" else self._head.take(place) % self.capacity_rows
            extras[column.name] = self._storage.take(self._columns[column.name], where)
        return extras

    def _observations(self, place: Array) -> Any:
        """What the network sees at these places: <obs_dtype>[B, *input_shape]."""
        stack = self.schema.stack
        if stack == 1:
            return self._storage.take(self._columns["obs"], place)
        places = np.empty((len(place), stack), np.int64)
        for k in reversed(range(stack)):
            places[:, k] = place
            place = self._before.take(place) % self.capacity_rows
        frames = self._storage.take(self._columns["obs"], places.reshape(-1))
        return frames.reshape(len(places), *self.schema.input_shape)

    def state(self) -> State:
        """See ``replay.state``. The arrays are the columns as far as they were ever filled."""
        filled = min(self.end, self.capacity_rows)
        arrays = {name: self._storage.host(column, filled) for name, column in self._stored_columns().items()}
        arrays |= {name: column[:filled] for name, column in self._book_columns().items()}
        return State({"end": self.end, "sampleable_rows": self.sampleable_rows}, arrays)

    def restore(self, state: State) -> None:
        """See ``replay.state``. The watcher is not told: it has a state of its own."""
        self.end = count(state.values["end"], "end")
        filled = min(self.end, self.capacity_rows)
        for name, stored in self._stored_columns().items():
            like = self._storage.host(stored, 1)
            found = array_in(state, name, (filled, *like.shape[1:]), like.dtype)
            if found.dtype.kind == "f" and not np.isfinite(found).all():
                raise ValueError(f"{name} has values that are not finite")
            self._storage.put(stored, slice(0, filled), found)
        _check_within(state.arrays["column.action"], 0, self.schema.num_actions, "column.action")
        for name, book in self._book_columns().items():
            book[:filled] = array_in(state, name, (filled, *book.shape[1:]), book.dtype)
            if book.dtype == np.int64:  # ids of rows; chunk_end has those after the last ones
                _check_within(book[:filled], -1, self.end + 1, name)
        self.sampleable_rows = count(state.values["sampleable_rows"], "sampleable_rows")
        if (really := int(np.count_nonzero(self._sampleable[:filled]))) != self.sampleable_rows:
            raise ValueError(f"sampleable_rows is {self.sampleable_rows}, and {really} rows can be sampled")

    def _stored_columns(self) -> dict[str, Any]:
        columns = {f"column.{name}": stored for name, stored in self._columns.items()}
        return {**columns, "r_t": self._r_t, "discount_t": self._discount_t}

    def _book_columns(self) -> dict[str, Array]:
        links = {"before": self._before, "after": self._after} if self.schema.stack > 1 else {}
        heads = {"head": self._head, "chunk_end": self._chunk_end} if self.schema.lane_bytes else {}
        return {"boot": self._boot, "sampleable": self._sampleable, **links, **heads}


def _check_within(values: Array, least: int, beyond: int, name: str) -> None:
    """Raises ValueError unless all values are from ``least`` to below ``beyond``."""
    if values.size and not (least <= values.min() and values.max() < beyond):
        raise ValueError(f"{name} has values outside {least}..{beyond - 1}")


def _kept(schema: Schema) -> tuple[Column, ...]:
    """Returns the columns of a chunk that a mirror stores, as it stores them."""
    return Column("obs", schema.obs_dtype, schema.obs_shape), Column("action", "int64"), *schema.extras
