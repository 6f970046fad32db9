"""A replay buffer beside a dataset: a part of each batch comes from rows that nobody evicts.

The dataset's rows are in a buffer of their own, with a mirror, an assembler and a sampler like the first one's. Of B
transitions of a batch ``dataset_part`` are its, always as many within what is sampled together::

    share given      floor(share B + 1/2)
    none given       floor(d / (d + s) B + 1/2),   d = min(dataset's rows, capacity - rows of the actors)

with s sampleable rows of the actors: the dataset fills what of the capacity their rows do not take yet. All of a batch
is the dataset's at the start, nothing once the ring is full.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from replay.buffer import ChunkSpan, ReplayBuffer, Sample
from replay.errors import QherdError
from replay.mirror import Mirror
from replay.state import State
from replay.storage import Ram

Array = npt.NDArray[Any]
HOST = Ram()


class OtherDataset(QherdError, ValueError):
    """A dataset that is another one than a run began with."""


class MixedBuffer(ReplayBuffer):
    """The actors' rows, and a dataset's beside them. Importance weights are each part's own: the greatest of a part of
    a batch is 1."""

    def __init__(
        self, online: ReplayBuffer, dataset: ReplayBuffer, share: float | None, name: str, digest: str
    ) -> None:
        """``online``: without rows yet; ``dataset``: complete. ``digest`` tells datasets of the same ``name`` apart."""
        super().__init__(online.mirror, online.assembler, online.sampler)
        assert isinstance(online.mirror, Mirror)
        self._join = online.mirror.join
        self.dataset, self.share, self._name, self._digest = dataset, share, name, digest

    @property
    def rows(self) -> int:
        return self.mirror.rows + self.filling_rows

    @property
    def filling_rows(self) -> int:
        """Returns the dataset's rows that stand for rows of the actors which are yet to come; 0 where it has a
        share."""
        free = self.mirror.capacity_rows - self.mirror.rows
        return 0 if self.share is not None else min(self.dataset.mirror.sampleable_rows, free)

    @property
    def sampleable(self) -> bool:
        return super().sampleable or self.share == 1 or self.filling_rows > 0

    def summary_line(self) -> str:
        """Returns one line for the start of a run."""
        rows = self.dataset.mirror.sampleable_rows
        how = "fills the replay memory" if self.share is None else f"is {self.share:g} of each batch"
        return f"dataset {self._name}, {rows:,} env steps, {how}"

    def dataset_part(self, batch: int) -> int:
        """Returns how many of a batch's transitions are the dataset's now."""
        share = self.share
        if share is None:
            filling, own = self.filling_rows, self.mirror.sampleable_rows
            share = filling / (filling + own) if filling else 0.0
        return math.floor(share * batch + 0.5)

    def sample(self, batch: int, batches: int = 1, updates: int = 0) -> Sample:
        theirs = self.dataset_part(batch)
        if theirs == 0:
            return super().sample(batch, batches, updates)
        given = self.dataset.sample(theirs, batches, updates)
        given = given._replace(rows=-1 - given.rows)
        if theirs == batch:
            return given
        own = super().sample(batch - theirs, batches, updates)
        weights = None
        if own.weights is not None and given.weights is not None:
            weights = HOST.join(own.weights, given.weights, batches)
        return Sample(self._join(own.batch, given.batch, batches), HOST.join(own.rows, given.rows, batches), weights)

    def update_priorities(self, rows: Array, td_error: Array) -> None:
        theirs = rows < 0
        if not theirs.all():
            super().update_priorities(rows[~theirs], td_error[~theirs])
        if theirs.any():
            self.dataset.update_priorities(-1 - rows[theirs], td_error[theirs])

    def state(self, with_rows: bool) -> dict[str, State]:
        """See ``ReplayBuffer.state``. The dataset's rows are read again."""
        parts = {"dataset": State({"digest": self._digest}, {}), "dataset-sampler": self.dataset.sampler.state()}
        return {**super().state(with_rows), **parts}

    def restore(
        self,
        parts: Mapping[str, State],
        refill: Callable[[list[ChunkSpan]], tuple[Array, Array]],
        reading: Callable[[str], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """See ``ReplayBuffer.restore``.

        Raises:
            OtherDataset: the dataset has changed.
        """
        with reading("dataset"):
            digest = str(parts["dataset"].values["digest"])
        if digest != self._digest:
            raise OtherDataset(
                f"dataset {self._name} has changed since this run began: its rows' sha256 begins with "
                f"{self._digest[:12]}, it was {digest[:12]}; put it back as it was, or begin a new run"
            )
        super().restore(parts, refill, reading)
        rows = np.arange(self.dataset.mirror.start, self.dataset.mirror.end)
        with reading("dataset-sampler"):
            self.dataset.sampler.restore(parts["dataset-sampler"], rows, rows)
