"""Sequences: consecutive rows of one episode in one lane, for recurrent learning, and the mirror that gathers them.

A sequence is a few rows of burn-in, through which the recurrent state is only carried, then rows that are trained on,
then those that the last of them bootstrap from (R2D2, Kapturowski et al., ICLR 2019). Which rows make one
decides ``replay.sequence_assembler``. A sequence is named by its first trained row. It can be sampled as long as all
of its rows are alive, and the frames of their stacks.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from replay.chunk import ACTION_MASK, Chunk, Schema
from replay.compiled import compiled
from replay.core_states import CoreStates
from replay.nstep import NewTransitions
from replay.ring import Ring
from replay.state import State
from replay.storage import Storage

Array = npt.NDArray[Any]


class SequenceSpec(NamedTuple):
    """What sequences are like: at most so many steps of burn-in, then ``trained`` ones, of which the next sequence has
    the last ``overlap`` again; then the ``bootstrap`` ones that an n-step window sees beyond its first. ``eta``: the
    weight of the greatest |TD error| in a sequence's priority, see ``mixture``."""

    burn_in: int
    trained: int
    overlap: int
    bootstrap: int
    eta: float = 0.9

    @property
    def steps(self) -> int:
        """Time steps of a batch."""
        return self.burn_in + self.trained + self.bootstrap

    @property
    def period(self) -> int:
        """Steps from a sequence's first trained row to the next one's."""
        return self.trained - self.overlap


class SequenceBatch(NamedTuple):
    """B sequences over T = burn_in + trained + bootstrap time steps, time first. The first trained row of each lies at
    t = burn_in; before and after its rows the first and the last one are repeated.

    obs <obs_dtype>[T, B, *input_shape], actions <int64>[T, B] and masks <uint8>[T, B, A] (None: all actions are
    allowed): numpy arrays, or the learner's tensors where the mirror lies on its device. rewards and discounts
    <float32>[T, B]: of each step, as they are trained on; a discount is 0 where the step terminated its episode, and
    both are 0 beside the sequence's rows and in a boundary row. trained <bool>[T, B]: rows with a TD target, which
    bootstraps from the n-th row after it, or from the last valid one where that comes before; valid <bool>[T, B]: the
    sequence's rows. core_state <float32>[B, core]: the state before the first valid row.
    """

    obs: Any
    actions: Any
    rewards: Any
    discounts: Any
    masks: Any
    trained: Array
    valid: Array
    core_state: Any

    def map(self, change: Callable[[Any], Any]) -> Self:
        """Returns a batch of what ``change`` makes of each array, but for ``trained`` and ``valid``, which stay."""
        masks = None if self.masks is None else change(self.masks)
        changed = {name: change(getattr(self, name)) for name in ("obs", "actions", "rewards", "discounts")}
        return self._replace(**changed, masks=masks, core_state=change(self.core_state))

    def part(self, which: slice) -> Self:
        """Returns some of the sequences."""
        names = ("obs", "actions", "rewards", "discounts", "trained", "valid")
        masks = None if self.masks is None else self.masks[:, which]
        parts = {name: getattr(self, name)[:, which] for name in names}
        return self._replace(**parts, masks=masks, core_state=self.core_state[which])


class NewSequences(NamedTuple):
    """Sequences that are complete, <int64>[M] each: the row that names each, which is its first trained one, its first
    row, the rows of burn-in, those from the name on that are trained where their window has a sum that is finite, and
    all of its rows."""

    name: Array
    first: Array
    burn_in: Array
    trained: Array
    length: Array


_STORED = {"first": "i8", "burn_in": "i4", "trained": "i4", "length": "i4", "steps": "i4"}
"""What is stored of a sequence: the columns of ``NewSequences``, and how many of its rows are trained on."""
_STORED_TYPE = np.dtype(list(_STORED.items()))


def mixture(td_error: Array, trained: Array, eta: float) -> Array:
    """Returns the priority of sequences <float32>[M] by the |TD errors| of their trained rows::

        eta max_t |e_t| + (1 - eta) mean_t |e_t|

    td_error <float32>[T, M], trained <bool>[T, M], at least one in each. R2D2, section 2.3.
    """
    size = np.where(trained, np.abs(td_error), np.float32(0))
    mean = size.sum(0, dtype=np.float64) / trained.sum(0)  # errors that float32 holds one by one it may not in sum
    return np.asarray(eta * size.max(0) + (1 - eta) * mean, np.float32)


class SequenceMirror(Ring):
    """A ring of rows that are sampled as sequences, which lie together within a chunk."""

    lane_by_lane = True

    def __init__(
        self,
        schema: Schema,
        capacity_rows: int,
        spec: SequenceSpec,
        storage: Storage | None = None,
        *,
        reuse: bool = False,
    ) -> None:
        """``reuse``: a batch's observations lie in an array that the next ``gather`` writes again, where the storage
        is host memory."""
        super().__init__(schema, capacity_rows, storage)
        self.spec, self._reuse = spec, reuse
        self.trained_steps = 0
        self._next = np.zeros(capacity_rows, np.int64)  # by index, the index of the lane's next row
        self._reward, self._discount, self._td_error = (np.zeros(capacity_rows, np.float32) for _ in range(3))
        self._trainable = np.zeros(capacity_rows, np.bool_)
        self._sequences = np.zeros(capacity_rows, _STORED_TYPE)  # by index, the one that a row names
        self._core = CoreStates(schema.core)
        self._oldest: list[tuple[int, int]] = []  # a heap: the oldest row that each sequence needs, and its name
        self._buffer: Array | None = None

    @staticmethod
    def planned_bytes(schema: Schema, capacity_rows: int) -> int:
        """Returns the bytes that a mirror of this size allocates, before any recurrent states have come."""
        return Ring.bytes_of_rows(schema, capacity_rows) + capacity_rows * (8 + 3 * 4 + 1 + _STORED_TYPE.itemsize)

    @staticmethod
    def planned_sample_bytes(schema: Schema, steps: int) -> int:
        """Returns the bytes of a sequence of so many time steps in a batch: of each step what the network sees, index
        and action (8 each), reward and discount (4 each) and two flags; and the recurrent state."""
        return steps * (schema.input_bytes + 2 * 8 + 2 * 4 + 2) + 4 * schema.core

    @property
    def nbytes(self) -> int:
        """See ``Ring.nbytes``."""
        return self.planned_bytes(self.schema, self.capacity_rows) + self._core.nbytes

    @property
    def sample_bytes(self) -> int:
        """See ``Ring.sample_bytes``: of all rows of a sequence."""
        return self.planned_sample_bytes(self.schema, self.spec.steps)

    @property
    def steps_per_sample(self) -> float:
        """See ``Ring.steps_per_sample``."""
        return self.trained_steps / max(1, self.sampleable_rows)

    def steps_of(self, rows: Array) -> int:
        """See ``Ring.steps_of``."""
        return int(self._sequences["steps"][rows % self.capacity_rows].sum())

    def add(self, chunk: Chunk, last_row: Array) -> Array:
        """See ``Ring.add``."""
        ids = super().add(chunk, last_row)
        index = ids % self.capacity_rows
        self._trainable[index] = False
        self._next[index[:-1]] = index[1:]
        follows = last_row >= self.start  # another row may lie where an evicted one lay
        self._next[last_row[follows] % self.capacity_rows] = index[0][follows]
        if chunk.core_state is not None:
            self._core.add(ids[0], chunk.core_state)
        return ids

    def add_steps(self, rows: Array, reward: Array, discount: Array) -> None:
        """Takes the reward and the discount <float32>[T, E] of each step that left one of ``rows`` <int64>[T, E]."""
        index = rows % self.capacity_rows
        self._reward[index], self._discount[index] = reward, discount

    def add_transitions(self, new: NewTransitions) -> None:
        """Takes in the rows that can be trained on, with the actor's TD errors. None is sampleable by that."""
        alive = new.row >= self.start
        index = new.row[alive] % self.capacity_rows
        self._trainable[index], self._td_error[index] = True, new.td_error[alive]

    def add_sequences(self, new: NewSequences) -> None:
        """Makes sequences sampleable. Those that have lost a row or a frame are passed over, and those without a row to
        train on."""
        new = NewSequences(*(column[self._is_complete(new.first)] for column in new))
        laid = self._lay_out(new)
        steps = laid.trained.sum(0, dtype=np.int32)
        some = steps > 0
        new, steps = NewSequences(*(column[some] for column in new)), steps[some]
        if not len(steps):
            return
        with np.errstate(over="ignore", invalid="ignore"):  # a sampler is shown what is not finite
            errors = self._td_error.take(laid.at[:, some])
            priority = mixture(errors, laid.trained[:, some], self.spec.eta)
        index = new.name % self.capacity_rows
        for name, values in zip(_STORED, (*new[1:], steps), strict=True):
            self._sequences[name][index] = values
        self.trained_steps += int(steps.sum())
        for oldest, name in zip(self._oldest_needed(new.first).tolist(), new.name.tolist(), strict=True):
            heapq.heappush(self._oldest, (oldest, name))
        self._make_sampleable(new.name, priority)

    def _oldest_needed(self, first: Array) -> Array:
        """Returns the oldest rows that sequences need whose first rows <int64>[M] are complete: of the first stack."""
        return first if self._links is None else self._links.oldest(first)

    def _evict(self, upto: int) -> None:
        names: list[int] = []
        while self._oldest and self._oldest[0][0] < upto:
            names.append(heapq.heappop(self._oldest)[1])
        if names:
            rows = np.array(names, np.int64)
            self.trained_steps -= self.steps_of(rows)
            self._remove(rows)
        self._core.evict(upto)

    def gather(self, rows: Array) -> SequenceBatch:
        """See ``Ring.gather``."""
        named = self._named(rows)
        laid = self._lay_out(named)
        grid, flat = laid.at.shape, laid.at.reshape(-1)
        actions = self._storage.gather(self._columns["action"], flat).reshape(grid)
        masks = None
        if ACTION_MASK in self._columns:
            masks = self._storage.gather(self._columns[ACTION_MASK], flat).reshape(*grid, self.schema.num_actions)
        return SequenceBatch(
            self._frames(flat).reshape(*grid, *self.schema.input_shape),
            actions,
            laid.rewards,
            laid.discounts,
            masks,
            laid.trained,
            laid.valid,
            self._core.before(named.first),
        )

    def _named(self, rows: Array) -> NewSequences:
        """Returns the sequences that these rows <int64>[B] name."""
        stored = self._sequences.take(rows % self.capacity_rows)
        return NewSequences(rows, *(stored[name].astype(np.int64) for name in NewSequences._fields[1:]))

    def _frames(self, index: Array) -> Any:
        """Returns the frames of the rows at these indices <int64>[M], those of a stack one after the other."""
        if self._links is not None:
            index = self._links.stacks(index).reshape(-1)
        if not self._reuse:
            return self._storage.gather(self._columns["obs"], index)
        if self._buffer is None or len(self._buffer) < len(index):
            self._buffer = np.empty((len(index), *self.schema.obs_shape), self.schema.obs_dtype)
        return self._storage.gather(self._columns["obs"], index, self._buffer[: len(index)])

    def _lay_out(self, sequences: NewSequences) -> _LaidOut:
        """Returns where the rows of sequences are, and what is known of them on the host."""
        grid = (self.spec.steps, len(sequences.first))
        laid = _LaidOut(
            np.empty(grid, np.int64),
            np.empty(grid, np.bool_),
            np.empty(grid, np.bool_),
            np.empty(grid, np.float32),
            np.empty(grid, np.float32),
        )
        _compiled_walk()(
            self._next,
            self._trainable,
            self._reward,
            self._discount,
            sequences.first % self.capacity_rows,
            sequences.burn_in,
            sequences.trained,
            sequences.length,
            self.spec.burn_in,
            *laid,
        )
        return laid

    def state(self) -> State:
        """See ``replay.state``."""
        values, arrays = super().state()
        return State(values, {**arrays, **self._core.columns()})

    def restore(self, state: State) -> None:
        """See ``replay.state``."""
        super().restore(state)
        self._core.restore(state, self.end)
        filled = min(self.end, self.capacity_rows)
        names = self.start + np.flatnonzero(self._sampleable.take(np.arange(self.start, self.end) % self.capacity_rows))
        self._check_restored(filled, names % self.capacity_rows)
        first = self._sequences["first"][names % self.capacity_rows]
        self._oldest = list(zip(self._oldest_needed(first).tolist(), names.tolist(), strict=True))
        heapq.heapify(self._oldest)
        self.trained_steps = self.steps_of(names)

    def _check_restored(self, filled: int, named: Array) -> None:
        """Raises ValueError where the rows of the sequences that are named at these indices cannot be found."""
        first, burn_in, trained, length, steps = (self._sequences[name][named] for name in _STORED)
        within = (burn_in >= 0) & (burn_in <= self.spec.burn_in) & (trained >= 1) & (trained <= self.spec.trained)
        within &= (length > burn_in) & (length - burn_in <= self.spec.trained + self.spec.bootstrap)
        within &= (steps >= 1) & (steps <= trained) & (first >= self.start)
        nexts = self._next[:filled]
        if not (within.all() and (nexts >= 0).all() and (nexts < max(1, filled)).all()):
            raise ValueError("first, burn_in, trained, length, steps or next have values that no sequence can have")
        if not (np.isfinite(self._reward[:filled]).all() and np.isfinite(self._discount[:filled]).all()):
            raise ValueError("reward or discount has values that are not finite")

    def _host_columns(self) -> dict[str, Array]:
        names = ("next", "reward", "discount", "td_error", "trainable")
        known = {name: getattr(self, f"_{name}") for name in names}
        known |= {name: self._sequences[name] for name in _STORED}
        return {**known, **super()._host_columns()}


class _LaidOut(NamedTuple):
    """By time step and sequence, [T, M] each: ``at`` <int64>, the index of the row in the ring; ``valid`` and
    ``trained`` <bool>, ``rewards`` and ``discounts`` <float32> as in a ``SequenceBatch``."""

    at: Array
    valid: Array
    trained: Array
    rewards: Array
    discounts: Array


@functools.cache
def _compiled_walk() -> Callable[..., None]:
    """Returns ``_walk``, compiled when sequences are first laid out: every command imports this module."""
    return compiled(
        "void(int64[::1], boolean[::1], float32[::1], float32[::1], int64[::1], int64[::1], int64[::1], int64[::1], "
        "int64, int64[:, ::1], boolean[:, ::1], boolean[:, ::1], float32[:, ::1], float32[:, ::1])"
    )(_walk)


def _walk(
    following: Array,
    trainable: Array,
    reward: Array,
    discount: Array,
    row: Array,
    before: Array,
    trained: Array,
    length: Array,
    burn_in: int,
    index: Array,
    valid: Array,
    trains: Array,
    rewards: Array,
    discounts: Array,
) -> None:
    """Fills the last five, [T, M] each, from the columns that come first. ``row`` <int64>[M]: the indices of the first
    rows, which it moves on; ``before``, ``trained`` and ``length`` <int64>[M]: rows of burn-in, those from the name on
    that may be trained, all. A time step at a time for all sequences, and what does not depend on what a row holds in
    loops of its own: the more loads are under way at once, the more of their cache misses overlap."""
    steps, many = index.shape
    begin = burn_in - before
    end = begin + length
    for t in range(steps):
        for m in range(many):
            if begin[m] < t < end[m]:
                row[m] = following[row[m]]
            index[t, m] = row[m]
    for t in range(steps):
        for m in range(many):
            valid[t, m] = (begin[m] <= t) & (t < end[m])
            trains[t, m] = (burn_in <= t) & (t < burn_in + trained[m])
    for t in range(steps):
        for m in range(many):
            at = index[t, m]
            trains[t, m] &= trainable[at]
            rewards[t, m] = reward[at] * valid[t, m]
            discounts[t, m] = discount[at] * valid[t, m]
