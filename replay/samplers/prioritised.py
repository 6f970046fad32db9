"""The prioritised sampler, over a sum tree (replay/sum_tree.py)."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from replay.config import ReplayConfig
from replay.metrics import counter, gauge
from replay.ring import Ring
from replay.samplers.base import SampledRows, check_any
from replay.state import State, array_in, count, number, restore_rng, rng_state

Array = npt.NDArray[Any]
PRIORITISED = "with `replay.sampler: prioritised`"
SMALLEST_ERROR = 1e-6
"""Added to every |TD error| (Schaul et al. call it epsilon), so that no row is lost for ever."""


class PrioritisedMetrics(NamedTuple):
    """How far the priorities are from uniform."""

    priority_mean: Annotated[
        float, gauge("Mean priority to the power alpha, over the rows that can be sampled.", when=PRIORITISED)
    ]
    importance_beta: Annotated[float, gauge("Exponent of the importance weights.", when=PRIORITISED)]
    priority_updates_missed: Annotated[
        int, counter("TD errors that came for rows evicted meanwhile.", when=PRIORITISED)
    ]


class PrioritisedSampler:
    """Proportional prioritisation (Schaul et al., arXiv 1511.05952, sections 3.3 and 3.4)::

        P(i) = p_i^alpha / sum_k p_k^alpha,  p_i = |TD error| + SMALLEST_ERROR
        w_i = (N P(i))^-beta / max over the batch

    N and the sum are over all sampleable rows. Each batch is stratified: one row from each of B equal shares of the
    sum. beta goes linearly from its start to 1 over ``beta_updates`` updates. A fresh row has the actor's own TD error
    (Ape-X, arXiv 1803.00933); where that is not finite, the greatest priority of the rows sampleable now.
    """

    section: str | None = "prioritised"
    metrics_type: type[Any] | None = PrioritisedMetrics

    def __init__(self, mirror: Ring, rng: np.random.Generator, alpha: float, beta: float, beta_updates: int) -> None:
        from replay.sum_tree import SumTree  # numba takes a third of a second to import

        self._mirror, self._rng = mirror, rng
        self._alpha, self._beta, self._beta_updates = alpha, beta, beta_updates
        self._tree = SumTree(mirror.capacity_rows)
        self._missed = 0
        self._newest_beta = beta
        mirror.watch(self)

    @classmethod
    def make(cls, config: ReplayConfig, mirror: Ring, rng: np.random.Generator) -> Self:
        """See ``Sampler.make``."""
        options = config.prioritised
        return cls(mirror, rng, options.alpha, options.beta, options.beta_updates)

    @staticmethod
    def planned_bytes(capacity_rows: int) -> int:
        """See ``Sampler.planned_bytes``: of the sum tree."""
        return 16 << max(1, (capacity_rows - 1).bit_length())

    def on_sampleable(self, rows: Array, td_error: Array) -> None:
        """See ``Watcher.on_sampleable``."""
        weights = self._weights_of(td_error)
        unknown = ~np.isfinite(weights)
        if unknown.any():
            weights[unknown] = self._tree.weights.max() or 1.0
        self._tree.set(rows % self._mirror.capacity_rows, weights)

    def on_unsampleable(self, rows: Array) -> None:
        """See ``Watcher.on_unsampleable``."""
        self._tree.set(rows % self._mirror.capacity_rows, np.zeros(len(rows)))

    def sample(self, batch: int, batches: int, updates: int) -> SampledRows:
        """See ``Sampler.sample``. All K batches see the same priorities."""
        check_any(self._mirror)
        total = self._tree.total
        # One row from each of B equal shares of the sum: share b holds the numbers from b to b + 1, of B.
        strata = np.arange(batch) + self._rng.random((batches, batch))
        # Rounding may give the sum itself, beyond the last row's part: the greatest number below it is in that part.
        indices = self._tree.find(np.minimum(strata * (total / batch), np.nextafter(total, 0)).reshape(-1))
        self._newest_beta = self.beta(updates)
        probability = self._tree.weights[indices].reshape(batches, batch) / total
        weights = (self._mirror.sampleable_rows * probability) ** -self._newest_beta
        weights /= weights.max(axis=1, keepdims=True)
        newest = self._mirror.end - 1
        rows = newest - (newest - indices) % self._mirror.capacity_rows  # the newest row of each index in the ring
        return SampledRows(rows, weights.astype(np.float32).reshape(-1))

    def beta(self, updates: int) -> float:
        """Returns the exponent of the importance weights after so many updates."""
        return min(1.0, self._beta + (1.0 - self._beta) * updates / self._beta_updates)

    def update(self, rows: Array, td_error: Array) -> None:
        """See ``Sampler.update``. Rows evicted meanwhile are passed over and counted; so is what is not finite."""
        weights = self._weights_of(td_error)
        known = (rows >= self._mirror.start) & np.isfinite(weights)
        known &= self._mirror.sampleable(rows)
        if not known.all():
            self._missed += int(np.count_nonzero(~known))
            rows, weights = rows[known], weights[known]
        self._tree.set(rows % self._mirror.capacity_rows, weights)

    def _weights_of(self, td_error: Array) -> Array:
        """Returns p^alpha as <float64>[M]."""
        weights: Array = (np.abs(td_error, dtype=np.float64) + SMALLEST_ERROR) ** self._alpha
        return weights

    def metrics(self) -> PrioritisedMetrics:
        """See ``Sampler.metrics``."""
        return PrioritisedMetrics(
            priority_mean=self._tree.total / max(1, self._mirror.sampleable_rows),
            importance_beta=self._newest_beta,
            priority_updates_missed=self._missed,
        )

    def state(self) -> State:
        """See ``Sampler.state``: the random numbers, and every row's p^alpha at its index in the ring. beta's position
        is the number of updates, which is the learner's."""
        filled = min(self._mirror.end, self._mirror.capacity_rows)
        values = {"rng": rng_state(self._rng), "missed": self._missed, "beta": self._newest_beta}
        return State(values, {"weights": self._tree.weights[:filled]})

    def restore(self, state: State, old_rows: Array, new_rows: Array) -> None:
        """See ``Sampler.restore``. Rows that could not be sampled then keep what the actor's TD error gave them."""
        restore_rng(self._rng, state.values["rng"])
        self._missed = count(state.values["missed"], "missed")
        self._newest_beta = number(state.values["beta"], "beta", 0)
        weights = array_in(state, "weights", (len(state.arrays["weights"]),), np.float64)
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise ValueError("weights has values that are no priority: each has to be a finite number of at least 0")
        weights = weights[old_rows % self._mirror.capacity_rows]
        known = self._mirror.sampleable(new_rows) & (weights > 0)
        self._tree.set(new_rows[known] % self._mirror.capacity_rows, weights[known])
