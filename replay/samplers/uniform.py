"""The uniform sampler."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from replay.config import ReplayConfig
from replay.ring import Ring
from replay.samplers.base import SampledRows, check_any
from replay.state import State, restore_rng, rng_state

Array = npt.NDArray[Any]


class UniformSampler:
    """Every sampleable row with equal probability."""

    section: str | None = None
    metrics_type: type[Any] | None = None

    def __init__(self, mirror: Ring, rng: np.random.Generator) -> None:
        self._mirror, self._rng = mirror, rng

    @classmethod
    def make(cls, config: ReplayConfig, mirror: Ring, rng: np.random.Generator) -> Self:
        """See ``Sampler.make``: there is nothing to configure."""
        return cls(mirror, rng)

    @staticmethod
    def planned_bytes(capacity_rows: int) -> int:
        """See ``Sampler.planned_bytes``: none."""
        return 0

    def sample(self, batch: int, batches: int = 1, updates: int = 0) -> SampledRows:
        """See ``Sampler.sample``.

        Rejection: rows alive are drawn uniformly and kept where sampleable, which leaves the sampleable ones uniform.
        As many are drawn as it takes on average, and a quarter more: of sequences only one row in some names one. Where
        that is more than there are rows, the sampleable ones are listed instead.
        """
        mirror, wanted = self._mirror, batch * batches
        check_any(mirror)
        each = 1.25 * mirror.rows / mirror.sampleable_rows
        if wanted * each > mirror.rows:
            alive = np.arange(mirror.start, mirror.end)
            return SampledRows(self._rng.choice(alive[mirror.sampleable(alive)], wanted), None)
        drawn = np.zeros(0, np.int64)
        while len(drawn) < wanted:
            rows = self._rng.integers(mirror.start, mirror.end, math.ceil((wanted - len(drawn)) * each))
            drawn = np.concatenate((drawn, rows[mirror.sampleable(rows)]))
        return SampledRows(drawn[:wanted], None)

    def update(self, rows: Array, td_error: Array) -> None:
        """See ``Sampler.update``: nothing depends on TD errors here."""

    def metrics(self) -> None:
        """See ``Sampler.metrics``: it has none."""

    def state(self) -> State:
        """See ``Sampler.state``: the random numbers."""
        return State({"rng": rng_state(self._rng)}, {})

    def restore(self, state: State, old_rows: Array, new_rows: Array) -> None:
        """See ``Sampler.restore``."""
        restore_rng(self._rng, state.values["rng"])
