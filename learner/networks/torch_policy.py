"""The Q-network itself as a policy, for networks that have no twin in numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from learner.networks import build_network
from learner.networks.config import NetworkSpec, acting_spec
from replay.chunk import Schema

Array = npt.NDArray[Any]


class TorchPolicy:
    """Computes Q values in torch on the CPU. It has the weights that ``load`` was given last."""

    def __init__(self, spec: NetworkSpec, schema: Schema) -> None:
        self._network = build_network(acting_spec(spec), schema).requires_grad_(False)
        self._arrays: dict[str, Array] = {}

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Takes weights over, by the network's parameter names."""
        self._arrays = dict(arrays)
        if not arrays:  # the state of a policy that has none yet
            return
        self._network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})

    def state(self) -> dict[str, Array]:
        """Returns the weights that ``load`` was given last; none before."""
        return dict(self._arrays)

    def initial_state(self, lanes: int) -> Mapping[str, Array]:
        """Returns the empty state: the network is feed-forward."""
        del lanes
        return {}

    def __call__(self, obs: Array, state: Mapping[str, Array]) -> tuple[npt.NDArray[np.float32], Mapping[str, Array]]:
        """Maps obs <obs_dtype>[E, *input_shape] to Q values <float32>[E, A]; ``state`` is empty and stays so."""
        q: npt.NDArray[np.float32] = self._network(torch.from_numpy(np.ascontiguousarray(obs))).q.numpy()
        return q, state
