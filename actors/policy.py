"""Q values on an actor: the learner's network in numpy, without importing torch (175 MB and seconds per process)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class NumpyMlp:
    """``learner.networks.MlpQNetwork`` in numpy. It has the weights that ``load`` was given last."""

    def __init__(self, dueling: bool) -> None:
        self._dueling = dueling
        self._layers: list[tuple[Array, Array]] = []

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Take weights over: ``layers.{i}.weight`` <float32>[out, in] and ``layers.{i}.bias`` <float32>[out]."""
        count = len(arrays) // 2
        self._layers = [
            (np.ascontiguousarray(arrays[f"layers.{i}.weight"].T), arrays[f"layers.{i}.bias"]) for i in range(count)
        ]

    def state(self) -> dict[str, Array]:
        """The weights that ``load`` was given last; none before."""
        return {
            name: array
            for i, (weight, bias) in enumerate(self._layers)
            for name, array in ((f"layers.{i}.weight", np.ascontiguousarray(weight.T)), (f"layers.{i}.bias", bias))
        }

    def __call__(self, obs: Array) -> npt.NDArray[np.float32]:
        """obs <obs_dtype>[E, *input_shape] to Q values <float32>[E, A]."""
        x = obs.reshape(len(obs), -1).astype(np.float32, copy=False)
        if obs.dtype == np.uint8:
            x = x / np.float32(255)
        *hidden, (weight, bias) = self._layers
        for hidden_weight, hidden_bias in hidden:
            x = x @ hidden_weight
            x += hidden_bias
            np.maximum(x, 0, out=x)
        q: npt.NDArray[np.float32] = x @ weight + bias
        if not self._dueling:
            return q
        value, advantage = q[:, :1], q[:, 1:]
        dueling: npt.NDArray[np.float32] = value + advantage - advantage.mean(1, keepdims=True)
        return dueling


def explore(epsilon: Array, steps: int, num_actions: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """When to explore, and how: random actions <int64>[T, E] where a coin says so, -1 where the lane acts greedily.

    One coin per time step and lane, epsilon <float64>[E]; drawn for a whole chunk, since each call costs microseconds.
    """
    grid = (steps, len(epsilon))
    planned: npt.NDArray[np.int64] = np.where(rng.random(grid) < epsilon, rng.integers(0, num_actions, grid), -1)
    return planned
