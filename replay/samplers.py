"""Samplers choose rows of the mirror; they neither store nor assemble."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from replay.mirror import Mirror


class UniformSampler:
    """Every sampleable row with equal probability, with replacement."""

    def __init__(self, mirror: Mirror, rng: np.random.Generator) -> None:
        self._mirror, self._rng = mirror, rng

    def choose(self, count: int) -> npt.NDArray[Any]:
        """``count`` row ids <int64>[count]. Raises ValueError where no row is sampleable.

        Rejection: rows alive are drawn uniformly and kept where sampleable, which leaves the sampleable ones uniform.
        """
        mirror = self._mirror
        if mirror.sampleable_rows == 0:
            raise ValueError(f"none of the mirror's {mirror.rows} rows can be sampled yet")
        drawn = self._rng.integers(mirror.start, mirror.end, count)
        missing = np.flatnonzero(~mirror.sampleable(drawn))
        while len(missing):
            drawn[missing] = self._rng.integers(mirror.start, mirror.end, len(missing))
            missing = missing[~mirror.sampleable(drawn[missing])]
        return drawn
