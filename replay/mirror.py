"""The mirror: the learner's copy of the newest rows (replay/ring.py), and of the transitions that they make.

It stores; it neither chooses nor learns. What a row needs to become a transition (its n-step return, its discount, the
row it bootstraps from) is written when its window closes; until then it is not sampleable. Nor is a row that is not
complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from replay.chunk import Schema
from replay.nstep import NewTransitions
from replay.ring import Ring
from replay.storage import Storage

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

    def part(self, which: slice) -> Batch:
        """Returns some of the transitions."""
        return self.map(itemgetter(which))


class Mirror(Ring):
    """A ring of rows that are sampled as transitions."""

    def __init__(self, schema: Schema, capacity_rows: int, storage: Storage | None = None) -> None:
        super().__init__(schema, capacity_rows, storage)
        self._r_t, self._discount_t = (self._storage.allocate(capacity_rows, (), "float32") for _ in range(2))
        self._bootstrap_row = np.zeros(capacity_rows, np.int64)

    @staticmethod
    def planned_bytes(schema: Schema, capacity_rows: int) -> int:
        """Returns the bytes that a mirror of this size allocates."""
        return Ring.bytes_of_rows(schema, capacity_rows) + capacity_rows * (4 + 4 + 8)

    @property
    def nbytes(self) -> int:
        """See ``Ring.nbytes``."""
        return self.planned_bytes(self.schema, self.capacity_rows)

    @property
    def sample_bytes(self) -> int:
        """See ``Ring.sample_bytes``: of both rows of a transition."""
        return 2 * self.schema.input_bytes

    @property
    def steps_per_sample(self) -> float:
        """See ``Ring.steps_per_sample``: a transition is one."""
        return 1.0

    def steps_of(self, rows: Array) -> int:
        """See ``Ring.steps_of``."""
        return len(rows)

    def _evict(self, upto: int) -> None:
        """Makes the rows before ``upto`` unsampleable, and those whose stack or head is one of them."""
        rows = np.arange(self.start, upto)
        self._remove(rows)
        if self._links is not None:
            for later in self._links.after(rows, upto):
                self._remove(later)
        if self._heads is not None and upto > 0:
            self._remove(self._heads.after(upto))

    def add_transitions(self, new: NewTransitions) -> None:
        """Makes rows sampleable. Those evicted meanwhile, and those without a full stack or their head, are passed
        over."""
        usable = self._is_complete(new.row)
        if not usable.all():
            new = NewTransitions(*(column[usable] for column in new))
        index = new.row % self.capacity_rows
        self._storage.put(self._r_t, index, new.r_t)
        self._storage.put(self._discount_t, index, new.discount_t)
        self._bootstrap_row[index] = new.bootstrap_row
        self._make_sampleable(new.row, new.td_error)

    def gather(self, rows: Array) -> Batch:
        """Returns the transitions of sampleable rows <int64>[B], in contiguous arrays."""
        index = rows % self.capacity_rows
        bootstrap = self._bootstrap_row.take(index) % self.capacity_rows
        batch = Batch(
            self._observations(index),
            self._storage.gather(self._columns["action"], index),
            self._storage.gather(self._r_t, index),
            self._storage.gather(self._discount_t, index),
            self._observations(bootstrap),
        )
        if self.schema.extras:
            batch.extras_tm1, batch.extras_t = self._extras(index), self._extras(bootstrap)
        return batch

    def join(self, one: Batch, other: Batch, batches: int) -> Batch:
        """Returns two samples of K batches of M and N transitions, gathered in this storage, as K batches of M + N."""

        def joined(first: Any, second: Any) -> Any:
            return self._storage.join(first, second, batches)

        extras = (
            {name: joined(column, theirs[name]) for name, column in mine.items()}
            for mine, theirs in ((one.extras_tm1, other.extras_tm1), (one.extras_t, other.extras_t))
        )
        return Batch(*map(joined, one, other), *extras)

    def _stored_columns(self) -> dict[str, Any]:
        return {**super()._stored_columns(), "r_t": self._r_t, "discount_t": self._discount_t}

    def _host_columns(self) -> dict[str, Array]:
        return {"boot": self._bootstrap_row, **super()._host_columns()}
