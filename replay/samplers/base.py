"""What a sampler is: it chooses rows of the mirror; it neither stores nor assembles."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from replay.config import ReplayConfig
from replay.ring import Ring
from replay.state import State

Array = npt.NDArray[Any]


class SampledRows(NamedTuple):
    """K batches of B rows, one after the other: rows <int64>[K·B] and their importance weights <float32>[K·B], the
    greatest of each batch 1; None where all are 1."""

    rows: Array
    weights: Array | None


class Sampler(Protocol):
    """Chooses sampleable rows, with replacement."""

    section: str | None
    """The field of ``ReplayConfig`` with its options."""
    metrics_type: type[Any] | None
    """A NamedTuple of what it reports, see ``replay.metrics``."""

    @classmethod
    def make(cls, config: ReplayConfig, mirror: Ring, rng: np.random.Generator) -> Self:
        """Makes the sampler that a configuration describes, of a mirror that has no rows yet."""

    @staticmethod
    def planned_bytes(capacity_rows: int) -> int:
        """Returns the bytes that it allocates for a mirror of this size."""

    def sample(self, batch: int, batches: int, updates: int) -> SampledRows:
        """Samples rows for ``batches`` batches. ``updates`` done so far place the schedules.

        Raises ValueError where no row is sampleable.
        """

    def update(self, rows: Array, td_error: Array) -> None:
        """Takes the learner's TD errors <float32>[M] of rows <int64>[M] sampled before, in the order of their
        updates."""

    def metrics(self) -> NamedTuple | None:
        """Returns what it reports, a ``metrics_type``; None where it has none."""

    def state(self) -> State:
        """See ``replay.state``."""

    def restore(self, state: State, old_rows: Array, new_rows: Array) -> None:
        """See ``replay.state``; rows ``old_rows`` <int64>[M] of the state's mirror are ``new_rows`` of this one."""


def check_any(mirror: Ring) -> None:
    """Raises ValueError where no row of the mirror is sampleable."""
    if mirror.sampleable_rows == 0:
        raise ValueError(f"none of the mirror's {mirror.rows} rows can be sampled yet")
