"""Acting: from observations to Q values, and when to explore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from learner.networks import NetworkSpec, encoder_of
from learner.networks.numpy_mlp import NumpyMlp
from replay.chunk import Schema

Array = npt.NDArray[Any]


class Policy(Protocol):
    """Computes Q values with the weights that it was given last."""

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Takes weights over, by the network's parameter names."""

    def state(self) -> dict[str, Array]:
        """Returns the weights that ``load`` was given last; none before."""

    def __call__(self, obs: Array) -> npt.NDArray[np.float32]:
        """Maps obs <obs_dtype>[E, *input_shape] to Q values <float32>[E, A]."""


def make_policy(spec: NetworkSpec, schema: Schema) -> Policy:
    """Builds the policy of a network: in numpy, without importing torch, where the network has a twin there; else in
    torch, on as many threads as the process gives it (actors: one)."""
    if encoder_of(spec.config, schema) == "mlp" and spec.head in NumpyMlp.HEADS:
        return NumpyMlp(spec, schema)
    from learner.networks.torch_policy import TorchPolicy

    return TorchPolicy(spec, schema)


def explore(epsilon: Array, steps: int, num_actions: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """When to explore, and how: random actions <int64>[T, E] where a coin says so, -1 where the lane acts greedily.

    One coin per time step and lane, epsilon <float64>[E]; drawn for a whole chunk, since each call costs microseconds.
    """
    grid = (steps, len(epsilon))
    planned: npt.NDArray[np.int64] = np.where(rng.random(grid) < epsilon, rng.integers(0, num_actions, grid), -1)
    return planned
