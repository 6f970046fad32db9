"""The Q-network with the encoder ``mlp``, and a recurrent core if there is one, in numpy, for actors: without importing
torch (175 MB, seconds a process)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from learner.networks.config import NetworkSpec
from learner.networks.portable import Memory, PolicyState, Recurrent, recurrent
from learner.networks.program import core_of, program_of
from replay.chunk import Schema

Array = npt.NDArray[Any]


class NumpyMlp:
    """Computes what ``QNetwork`` does with an ``MlpEncoder``. It has the weights that ``load`` was given last."""

    def __init__(self, spec: NetworkSpec, schema: Schema) -> None:
        self._spec, self._schema = spec, schema
        self._arrays: dict[str, Array] = {}
        self._values: Recurrent
        self.initial_state = Memory.of(core_of(spec, schema.num_actions)).initial_state

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Takes weights over, by the network's parameter names: <float32>[out, in] and <float32>[out]."""
        self._arrays = dict(arrays)
        if not arrays:  # the state of a policy that has none yet
            return
        layers = sum(name.startswith("encoder.layers.") for name in arrays) // 2  # as many as the weights are of
        config = self._spec.config.model_copy(update={"hidden": (1,) * layers})
        operations = program_of(replace(self._spec, config=config), self._schema)
        assert operations is not None
        self._values = recurrent(operations, arrays)

    def state(self) -> dict[str, Array]:
        """Returns the weights that ``load`` was given last; none before."""
        return dict(self._arrays)

    def __call__(self, obs: Array, state: PolicyState) -> tuple[Array, PolicyState]:
        """Maps obs <obs_dtype>[E, *input_shape] and the lanes' state to Q values <float32>[E, A] and the state after
        them."""
        return self._values(obs, state)
