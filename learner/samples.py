"""Statistics of the newest samples: kept by reference once per cycle, computed once per report."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learner.metrics import SampleMetrics

Array = npt.NDArray[Any]


class Samples:
    """The rows and importance weights of the newest cycle, and the greatest |Q| that the rewards sampled can explain.

    ``record`` keeps references and costs nothing; all arithmetic is in ``metrics``, on one cycle's samples.
    """

    def __init__(self, batch: int, most_added: float = 0.0) -> None:
        """``most_added``: see ``q_bound``."""
        self._batch, self._most_added = batch, most_added
        self._newest: tuple[Array, Array | None, int, Tensor, Tensor] | None = None
        self.bound = 0.0

    def record(self, rows: Array, weights: Array | None, end: int, r_t: Tensor, discount_t: Tensor) -> None:
        """Records a cycle's rows <int64>[K·B] (below 0: a dataset's), their weights <float32>[K·B] (None: all 1), r_t
        and discount_t <float32>[K·B], of sequences their rewards and discounts <float32>[T, K·B], and the row ``end``
        after the newest one inserted."""
        self._newest = rows, weights, end, r_t, discount_t

    def metrics(self) -> SampleMetrics | None:
        """Returns them; None before the first sample. An age is a difference of insert counters, not of clocks."""
        if self._newest is None:
            return None
        rows, weights, end, r_t, discount_t = self._newest
        rows = rows[rows >= 0]  # a dataset's have no age
        oldest, mean = (float(rows.min()), float(rows.mean())) if len(rows) else (end, end)
        self.bound = max(self.bound, q_bound(r_t, discount_t, self._most_added))
        return SampleMetrics(
            batch_size=float(self._batch),
            sample_age_rows=end - mean,
            sample_age_max_rows=end - oldest,
            effective_sample_size=effective_sample_size(weights, self._batch),
            q_bound=self.bound if math.isfinite(self.bound) else None,
        )


def effective_sample_size(weights: Array | None, batch: int) -> float:
    """Returns how many equally weighted transitions a batch is worth, the mean over the batches (Kish)::

        (sum w)^2 / sum w^2

    weights <float32>[K·B], or None where all are 1.
    """
    if weights is None:
        return float(batch)
    batches = weights.reshape(-1, batch).astype(np.float64)
    return float((batches.sum(1) ** 2 / (batches**2).sum(1)).mean())


def q_bound(r_t: Tensor, discount_t: Tensor, most_added: float = 0.0) -> float:
    """Returns the greatest |Q| that these transitions can explain, infinite without discounting::

        max (|r_t| + most_added) / (1 - discount_t)

    If |Q| <= bound everywhere then |r_t + discount_t · Q| + most_added <= bound, so no target leads beyond it. r_t,
    discount_t: <float32>[M]; ``most_added``: what the algorithm adds to a target at the most (Munchausen).
    """
    bounds = (r_t.abs() + most_added) / (1 - discount_t).clamp(min=0)
    return float(bounds.nan_to_num(nan=0.0, posinf=math.inf).amax())


def on_device(column: Any, device: torch.device) -> Tensor:
    """Returns a column on the device; a host's array is copied there unless it is the host itself."""
    if isinstance(column, Tensor) and column.device == device:
        return column  # two calls of torch fewer: a small network's update feels those of its columns
    return torch.as_tensor(column).to(device, non_blocking=True)
