"""The ring: the newest rows in their order of arrival, and which of them name something that can be sampled.

A row's 64-bit id is its number in the order of arrival, for ever; its index in the arrays is ``id % capacity``. The
rows alive are ``[start, end)``: adding rows evicts the oldest. What can be sampled is a transition or a sequence, each
named by one row of its own; which, and what belongs to it, is the business of the mirrors, which are rings.

A schema with a stack has one frame per row. The stack of a row is rebuilt from the rows before it in its lane::

    stack(i) = (frame_{i-k+1}, ..., frame_i), the episode's first frame repeated where the episode is younger than that

as gymnasium's FrameStackObservation pads. A row whose stack reaches a row that was lost or evicted is not complete.

A column that is per chunk lies at each lane's first row in the chunk, the row's *head*. A row whose head was evicted is
not complete.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from replay.chunk import FIRST, Chunk, Column, Schema
from replay.nstep import NewTransitions
from replay.row_links import ChunkHeads, FrameLinks
from replay.state import State, array_in, count
from replay.storage import Ram, Storage

Array = npt.NDArray[Any]


class Watcher(Protocol):
    """Is called when rows become sampleable and when they cease to be."""

    def on_sampleable(self, rows: Array, td_error: Array) -> None:
        """Takes rows <int64>[M] that are sampleable from now on, and the actor's TD errors <float32>[M]."""

    def on_unsampleable(self, rows: Array) -> None:
        """Takes rows <int64>[M] that were sampleable and are no more."""


class Ring(ABC):
    """A ring of ``capacity_rows`` rows, preallocated in ``storage``; what is known about them stays in host memory."""

    lane_by_lane = False
    """Whether a chunk's rows arrive lane by lane, or time step by time step."""

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
        self._sampleable = np.zeros(capacity_rows, np.bool_)
        self._links = FrameLinks(capacity_rows, schema.stack) if schema.stack > 1 else None
        self._heads = ChunkHeads(capacity_rows) if _per_chunk(schema) else None

    @staticmethod
    def bytes_of_rows(schema: Schema, capacity_rows: int) -> int:
        """Returns the bytes that a ring of this size allocates, without what a mirror adds to it."""
        links = FrameLinks.planned_bytes(capacity_rows) if schema.stack > 1 else 0
        heads = ChunkHeads.planned_bytes(capacity_rows) if _per_chunk(schema) else 0
        return capacity_rows * (sum(column.nbytes for column in _kept(schema)) + 1) + links + heads

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Returns the bytes that it has allocated."""

    @property
    @abstractmethod
    def sample_bytes(self) -> int:
        """Returns the bytes of what is gathered for one sample."""

    @property
    @abstractmethod
    def steps_per_sample(self) -> float:
        """Returns the steps that a sample trains on, the mean over all that can be sampled."""

    @abstractmethod
    def steps_of(self, rows: Array) -> int:
        """Returns the steps that the samples of these rows <int64>[M] train on, all together."""

    @property
    def start(self) -> int:
        """Returns the oldest row alive."""
        return max(0, self.end - self.capacity_rows)

    @property
    def rows(self) -> int:
        """Rows alive."""
        return self.end - self.start

    def watch(self, watcher: Watcher) -> None:
        """Calls ``watcher`` from now on. Raises ValueError where there is another: it would be called no more."""
        if self._watcher is not None:
            raise ValueError(f"the mirror has a watcher already, a {type(self._watcher).__name__}; make another mirror")
        self._watcher = watcher

    def add(self, chunk: Chunk, last_row: Array) -> Array:
        """Appends the chunk's rows, evicting the oldest; returns their ids <int64>[T, E]. None is sampleable yet.

        ``last_row`` <int64>[E]: the row before in each lane's episode, -1 where there is none or it was lost.
        """
        count = chunk.rows
        if count > self.capacity_rows:
            raise ValueError(f"a chunk of {count} rows does not fit a mirror of {self.capacity_rows}")
        self._evict(self.end + count - self.capacity_rows)
        at = self.end % self.capacity_rows
        self.end += count
        ids = self.newest(*chunk.flags.shape)
        self._store(chunk, at, ids)
        if self._links is not None:
            self._links.add(ids, (chunk.flags & FIRST) != 0, last_row, self.start)
        if self._heads is not None:
            self._heads.add(ids, self.end)
        return ids

    def newest(self, steps: int, lanes: int) -> Array:
        """Returns the ids <int64>[T, E] of the newest chunk's rows."""
        ids = np.arange(self.end - steps * lanes, self.end)
        return ids.reshape(lanes, steps).T if self.lane_by_lane else ids.reshape(steps, lanes)

    def _store(self, chunk: Chunk, at: int, ids: Array) -> None:
        """Writes the chunk's columns: from the index ``at`` on and, where the ring's end is reached, from its start."""
        count, values = chunk.rows, chunk.columns
        head = min(count, self.capacity_rows - at)
        parts = ((slice(at, at + head), slice(0, head)), (slice(0, count - head), slice(head, count)))
        for column in self._kept:
            stored, added = self._columns[column.name], values[column.name]
            if column.per == "chunk":
                self._storage.put(stored, ids[0] % self.capacity_rows, added)
                continue
            flat = (added.swapaxes(0, 1) if self.lane_by_lane else added).reshape(count, *column.shape)
            for index, rows in parts:
                self._storage.put(stored, index, flat[rows])

    @abstractmethod
    def _evict(self, upto: int) -> None:
        """Makes unsampleable what has lost a row where those before ``upto`` are evicted."""

    @abstractmethod
    def add_transitions(self, new: NewTransitions) -> None:
        """Takes in the rows whose windows have closed."""

    @abstractmethod
    def gather(self, rows: Array) -> Any:
        """Returns what the sampleable rows <int64>[B] name, in contiguous arrays."""

    def _remove(self, rows: Array) -> None:
        """Makes those of these rows unsampleable that were sampleable."""
        rows = rows[self._sampleable.take(rows % self.capacity_rows)]
        self._sampleable[rows % self.capacity_rows] = False
        self.sampleable_rows -= len(rows)
        if self._watcher is not None:
            self._watcher.on_unsampleable(rows)

    def _make_sampleable(self, rows: Array, td_error: Array) -> None:
        """Makes these rows <int64>[M] sampleable, with the actor's TD errors <float32>[M]."""
        self._sampleable[rows % self.capacity_rows] = True
        self.sampleable_rows += len(rows)
        if self._watcher is not None:
            self._watcher.on_sampleable(rows, td_error)

    def _is_complete(self, rows: Array) -> Array:
        """Returns which of these rows are alive with all that belongs to them, <bool>[M]."""
        complete: Array = rows >= self.start
        if self._heads is not None:
            complete &= self._heads.complete(rows, self.start)
        if self._links is not None:
            complete = self._links.complete(rows, complete, self.start)
        return complete

    def sampleable(self, rows: Array) -> Array:
        """Returns which of these live rows may be sampled, <bool>[B]."""
        return self._sampleable.take(rows % self.capacity_rows)

    def _extras(self, index: Array) -> dict[str, Any]:
        """Returns the further columns of the rows at these indices <int64>[B] of the ring."""
        extras: dict[str, Any] = {}
        for column in self.schema.extras:
            where = index if self._heads is None or column.per == "row" else self._heads.indices(index)
            extras[column.name] = self._storage.gather(self._columns[column.name], where)
        return extras

    def _observations(self, index: Array) -> Any:
        """Returns what the network sees of the rows at these indices <int64>[B]: <obs_dtype>[B, *input_shape]."""
        if self._links is None:
            return self._storage.gather(self._columns["obs"], index)
        frames = self._storage.gather(self._columns["obs"], self._links.stacks(index).reshape(-1))
        return frames.reshape(len(index), *self.schema.input_shape)

    def state(self) -> State:
        """See ``replay.state``. The arrays are the columns as far as they were ever filled."""
        filled = min(self.end, self.capacity_rows)
        arrays = {name: self._storage.host(column, filled) for name, column in self._stored_columns().items()}
        arrays |= {name: column[:filled] for name, column in self._host_columns().items()}
        return State({"end": self.end, "sampleable_rows": self.sampleable_rows}, arrays)

    def restore(self, state: State) -> None:
        """See ``replay.state``. The watcher is not called: it has a state of its own."""
        self.end = count(state.values["end"], "end")
        filled = min(self.end, self.capacity_rows)
        for name, stored in self._stored_columns().items():
            like = self._storage.host(stored, 1)
            found = array_in(state, name, (filled, *like.shape[1:]), like.dtype)
            if found.dtype.kind == "f" and not np.isfinite(found).all():
                raise ValueError(f"{name} has values that are not finite")
            self._storage.put(stored, slice(0, filled), found)
        _check_within(state.arrays["column.action"], 0, self.schema.num_actions, "column.action")
        for name, column in self._host_columns().items():
            column[:filled] = array_in(state, name, (filled, *column.shape[1:]), column.dtype)
            if column.dtype == np.int64:  # ids of rows; chunk_end has those after the last ones
                _check_within(column[:filled], -1, self.end + 1, name)
        self.sampleable_rows = count(state.values["sampleable_rows"], "sampleable_rows")
        if (really := int(np.count_nonzero(self._sampleable[:filled]))) != self.sampleable_rows:
            raise ValueError(f"sampleable_rows is {self.sampleable_rows}, and {really} rows can be sampled")

    def _stored_columns(self) -> dict[str, Any]:
        return {f"column.{name}": stored for name, stored in self._columns.items()}

    def _host_columns(self) -> dict[str, Array]:
        known = {"sampleable": self._sampleable}
        for part in (self._links, self._heads):
            known |= {} if part is None else part.columns()
        return known


def _check_within(values: Array, least: int, beyond: int, name: str) -> None:
    """Raises ValueError unless all values are from ``least`` to below ``beyond``."""
    if values.size and not (least <= values.min() and values.max() < beyond):
        raise ValueError(f"{name} has values outside {least}..{beyond - 1}")


def _per_chunk(schema: Schema) -> bool:
    """Returns whether further columns are per chunk. Recurrent states are stored elsewhere (replay/core_states.py)."""
    return any(column.per == "chunk" for column in schema.extras)


def _kept(schema: Schema) -> tuple[Column, ...]:
    """Returns the columns of a chunk that a mirror stores, as it stores them."""
    return Column("obs", schema.obs_dtype, schema.obs_shape), Column("action", "int64"), *schema.extras
