"""Samples per insert as an equation over rows: how far the learner may run ahead of the actors, and they of it.

The rule is Reverb's SampleToInsertRatio (arXiv 2102.04736, section 3.2), with one number::

    error     = samples_per_insert * (inserts - min_rows) - samples + carried
    half_band = (samples_per_insert * (window + 1) + batch) / 2
    room      = (half_band - error) / samples_per_insert            rows that may still come in, from min_rows on

The learner takes a batch only where that keeps ``error`` at or above -half_band. Actors hold credit for no more than
``room`` rows (replay/credit.py), which keeps ``error`` at or below half_band, whatever the learner does meanwhile.
Where the learner waits for rows, ``room`` is at least ``window``, which is at least a chunk: one side may always go on.

``carried`` takes off what earns no samples:

* While the mirror has nothing to sample, no row does: ``error`` stays where the learner waits. Rows that come in
  together with min_rows bring it to half_band at the most.
* Rows that the ring evicts take with them what they had still to get: ``error`` is at most samples_per_insert *
  capacity / 2. Of a backlog of B rows in a full ring, with nothing sampled meanwhile, the k-th row to be evicted has
  missed k / capacity of its samples, which leaves B - B^2 / (2 * capacity) rows' worth, at most capacity / 2. The rows
  of such a backlog are then sampled 1.5 times as often as others, at the most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from replay.state import count, number

CHUNKS_EACH = 8
"""Chunks that each actor may have on their way and the learner not yet taken in: they cover the time of an update cycle
and of the way back of the credit."""
WINDOW_SHARE = 4
"""All actors together hold credit for no more than this part of the replay beyond ``min_rows``."""


@dataclass
class Limiter:
    """Holds the realised samples per insert near ``samples_per_insert``.

    An insert is a row of an env step that reached the mirror, a sample a transition that was trained on, or a trained
    step of a sequence; ``batch`` is the most of them in an update.
    """

    samples_per_insert: float
    min_rows: int
    capacity_rows: int
    batch: int
    inserts: int = 0
    samples: int = 0
    carried: float = 0.0
    window_rows: int = 0

    def __post_init__(self) -> None:
        if self.samples_per_insert <= 0:
            raise ValueError(f"samples_per_insert is {self.samples_per_insert}; it has to be above 0")
        if self.min_rows < 1:
            raise ValueError(f"min_rows is {self.min_rows}; it has to be at least 1")
        self.fit(1, 1)

    def fit(self, actors: int, chunk_rows: int) -> None:
        """Sets the window from the chunks of so many actors. Raises ValueError, and changes nothing, where the replay
        could not hold a single chunk beyond what the first batch needs."""
        batch_rows = math.ceil(self.batch / self.samples_per_insert)
        beyond = self.capacity_rows - self.min_rows - batch_rows - 1
        if beyond < chunk_rows:
            raise ValueError(
                f"a capacity of {self.capacity_rows} rows is too small for min_rows {self.min_rows}, {batch_rows} rows "
                f"that allow a batch and a chunk of {chunk_rows}: at least "
                f"{self.min_rows + batch_rows + chunk_rows + 1} are needed; raise replay.capacity_rows, or lower "
                "replay.min_rows, learner.batch, actors.lanes or actors.chunk_steps"
            )
        self.window_rows = max(chunk_rows, min(CHUNKS_EACH * actors * chunk_rows, beyond // WINDOW_SHARE))

    @property
    def half_band(self) -> float:
        """Returns how far from 0 the error may be."""
        return (self.samples_per_insert * (self.window_rows + 1) + self.batch) / 2

    @property
    def error(self) -> float:
        """Returns the samples that the inserts allow, less the samples taken."""
        return _error(self.samples_per_insert, self.min_rows, self.inserts, self.samples, self.carried)

    def insert(self, rows: int, sampleable: bool) -> None:
        """Counts rows that came in. ``sampleable``: whether the mirror has anything to sample."""
        first = self.inserts < self.min_rows
        self.inserts += rows
        if self.inserts < self.min_rows:
            return
        if not sampleable:
            most = self.batch - self.half_band
        else:
            most = self.half_band if first else self.samples_per_insert * self.capacity_rows / 2
        self.carried -= max(0.0, self.error - most)

    def fill(self, rows: int) -> None:
        """Counts rows that the replay memory begins with, as a backlog that came in at once."""
        self.inserts += rows

    @property
    def room_rows(self) -> int:
        """Returns the rows that may still come in, those for which actors hold credit included."""
        if self.inserts < self.min_rows:
            return self.min_rows - self.inserts + self.window_rows
        return max(0, math.floor(min(self.half_band - self.error, 2 * self.half_band) / self.samples_per_insert))

    @property
    def may_sample(self) -> bool:
        """Returns whether the learner may take a batch."""
        return self._may_sample_after(self.samples)

    def allowed_batches(self, most: int) -> int:
        """Returns how many batches the learner may take one after the other, at most ``most``."""
        batches = 0
        while batches < most and self._may_sample_after(self.samples + batches * self.batch):
            batches += 1
        return batches

    def _may_sample_after(self, samples: int) -> bool:
        if self.inserts < self.min_rows:
            return False
        error = _error(self.samples_per_insert, self.min_rows, self.inserts, samples, self.carried)
        return error - self.batch >= -self.half_band

    def state(self) -> dict[str, float]:
        """Returns what ``restore`` continues from."""
        names = ("samples_per_insert", "min_rows", "inserts", "samples", "carried")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues. Another ratio, or another min_rows, holds from here on and not for the past, for which the learner
        would else train on and on, or wait."""
        self.inserts, self.samples = (count(state[name], name) for name in ("inserts", "samples"))
        self.carried = number(state["carried"], "carried")
        ratio = number(state["samples_per_insert"], "samples_per_insert", 0)
        min_rows = count(state["min_rows"], "min_rows")
        if (self.samples_per_insert, self.min_rows) != (ratio, min_rows):
            begun = self.inserts >= min_rows
            error = _error(ratio, min_rows, self.inserts, self.samples, self.carried) if begun else 0.0
            past = self.samples_per_insert * max(0, self.inserts - self.min_rows)
            self.carried = error + self.samples - past

    @property
    def realised(self) -> float:
        """Returns the samples per insert so far, counted from ``min_rows`` on; 0 before."""
        beyond = self.inserts - self.min_rows
        return self.samples / beyond if beyond > 0 else 0.0


def _error(samples_per_insert: float, min_rows: int, inserts: int, samples: int, carried: float) -> float:
    return samples_per_insert * (inserts - min_rows) - samples + carried
