"""The Q-network itself as a policy, for networks that have no twin in numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from learner.networks import build_network
from learner.networks.config import NetworkSpec, acting_spec
from learner.networks.portable import Memory, PolicyState
from learner.networks.program import core_of
from replay.chunk import Schema

Array = npt.NDArray[Any]


class TorchPolicy:
    """Computes Q values in torch on the CPU. It has the weights that ``load`` was given last."""

    def __init__(self, spec: NetworkSpec, schema: Schema) -> None:
        self._network = build_network(acting_spec(spec), schema).requires_grad_(False)
        self._arrays: dict[str, Array] = {}
        self.initial_state = Memory.of(core_of(spec, schema.num_actions)).initial_state

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Takes weights over, by the network's parameter names."""
        self._arrays = dict(arrays)
        if not arrays:  # the state of a policy that has none yet
            return
        self._network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})

    def state(self) -> dict[str, Array]:
        """Returns the weights that ``load`` was given last; none before."""
        return dict(self._arrays)

    def __call__(self, obs: Array, state: PolicyState) -> tuple[npt.NDArray[np.float32], PolicyState]:
        """Maps obs <obs_dtype>[E, *input_shape] and the lanes' state to Q values <float32>[E, A] and the state after
        them."""
        given = {name: torch.from_numpy(array) for name, array in state.items()}
        output, after = self._network.step(torch.from_numpy(np.ascontiguousarray(obs)), given)
        return output.q.numpy(), {name: tensor.numpy() for name, tensor in after.items()}
