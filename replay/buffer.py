"""The replay buffer: chunks go in, samples come out. A mirror stores, an assembler assembles, a sampler samples.

``append`` takes a chunk that was found good; ``sample`` gives batches, ``update_priorities`` takes the learner's TD
errors back, and ``trim`` returns from where on the log has to keep each slot's chunks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replay.assembler import NStepAssembler
from replay.chunk import Chunk
from replay.chunk_log.protocol import ChunkId
from replay.ring import Ring
from replay.samplers.base import Sampler
from replay.state import State, array_in

Array = npt.NDArray[Any]


class ChunkSpan(NamedTuple):
    """Where a chunk lies in the mirror: its id in the log, its first row and the row after its last one."""

    slot: int
    id: ChunkId
    start: int
    end: int


class Sample(NamedTuple):
    """K batches of B transitions or sequences, one after the other: these themselves, a ``Batch`` or a
    ``SequenceBatch``; the rows <int64>[K·B] that they are of, and their importance weights <float32>[K·B], None where
    all are 1. A row i of a dataset is -1 - i."""

    batch: Any
    rows: Array
    weights: Array | None


class ReplayBuffer:
    """The replay memory of one process, over rows that are numbered in their order of arrival (replay/mirror.py)."""

    def __init__(self, mirror: Ring, assembler: NStepAssembler, sampler: Sampler) -> None:
        """``assembler`` and ``sampler`` are those of this mirror, which has no rows yet."""
        self.mirror, self.assembler, self.sampler = mirror, assembler, sampler
        self._stored: deque[ChunkSpan] = deque()

    @property
    def rows(self) -> int:
        """Rows that can be learned from, by and by."""
        return self.mirror.rows

    @property
    def sampleable(self) -> bool:
        """Returns whether there is anything to sample."""
        return self.mirror.sampleable_rows > 0

    def append(self, chunk: Chunk, follows: bool) -> None:
        """Takes a chunk's rows in, evicting the oldest. ``follows``: see ``NStepAssembler.append``."""
        start = self.mirror.end
        self.assembler.append(chunk, follows)
        self._stored.append(ChunkSpan(chunk.slot, ChunkId.of(chunk), start, self.mirror.end))
        while self._stored[0].end <= self.mirror.start:
            self._stored.popleft()

    def sample(self, batch: int, batches: int = 1, updates: int = 0) -> Sample:
        """Returns ``batches`` batches, sampled by what is known now. ``updates`` done so far place the schedules.

        Raises ValueError where no row is sampleable.
        """
        rows, weights = self.sampler.sample(batch, batches, updates)
        return Sample(self.mirror.gather(rows), rows, weights)

    def update_priorities(self, rows: Array, td_error: Array) -> None:
        """Takes the learner's TD errors <float32>[M] of rows <int64>[M] sampled before, in the order of their
        updates."""
        self.sampler.update(rows, td_error)

    @property
    def log_rows(self) -> int:
        """Returns the rows that the log still has of those that were taken in, to within a chunk."""
        return self.mirror.end - self._stored[0].end if self._stored else 0

    def trim(self, keep_rows: int) -> dict[int, ChunkId]:
        """Returns the oldest chunk that the log has to keep of each slot that has one: of those that the mirror holds,
        and of the newest ``keep_rows`` rows."""
        oldest = max(self.mirror.start, self.mirror.end - keep_rows)
        while self._stored and self._stored[0].end <= oldest:
            self._stored.popleft()
        held: dict[int, ChunkId] = {}
        for stored in self._stored:
            held.setdefault(stored.slot, stored.id)
        return held

    def state(self, with_rows: bool) -> dict[str, State]:
        """Returns all that a buffer resumes from, by part; see ``replay.state``. ``with_rows``: the rows, too."""
        stored = [(each.slot, *each.id, each.start, each.end) for each in self._stored]
        parts = {
            "buffer": State({}, {"stored": np.array(stored, np.int64).reshape(-1, 5)}),
            "assembler": self.assembler.state(),
            "sampler": self.sampler.state(),
        }
        return {**parts, "mirror": self.mirror.state()} if with_rows else parts

    def restore(
        self,
        parts: Mapping[str, State],
        refill: Callable[[list[ChunkSpan]], tuple[Array, Array]],
        reading: Callable[[str], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Resumes from a state. Where it has no rows, ``refill`` appends again what can be had of the chunks that it is
        given, and returns which rows <int64>[M] of the state's mirror are which <int64>[M] of this one. Each part is
        read within the context that ``reading`` gives for its name."""
        with reading("buffer"):
            stored = _stored(parts["buffer"])
        if "mirror" in parts:
            with reading("mirror"):
                self.mirror.restore(parts["mirror"])
            with reading("assembler"):
                self.assembler.restore(parts["assembler"])
            self._stored = deque(stored)
            old_rows = new_rows = np.arange(self.mirror.start, self.mirror.end)
        else:
            old_rows, new_rows = refill(stored)
        with reading("sampler"):
            self.sampler.restore(parts["sampler"], old_rows, new_rows)


def _stored(state: State) -> list[ChunkSpan]:
    """Raises ValueError where rows cannot be."""
    spans = array_in(state, "stored", (len(state.arrays["stored"]), 5), np.int64)
    stored = [
        ChunkSpan(slot, ChunkId(incarnation, seq), start, end) for slot, incarnation, seq, start, end in spans.tolist()
    ]
    if not all(0 <= each.start <= each.end for each in stored):
        raise ValueError("stored has rows that no chunk can have")
    return stored
