"""The Q-network with the encoder ``mlp`` in numpy, for actors: without importing torch (175 MB, seconds a process)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from learner.networks.config import NetworkSpec
from learner.networks.portable import Operation, network
from learner.networks.program import program_of
from replay.chunk import Schema

Array = npt.NDArray[Any]


class NumpyMlp:
    """Computes what ``QNetwork`` does with an ``MlpEncoder``. It has the weights that ``load`` was given last."""

    def __init__(self, spec: NetworkSpec, schema: Schema) -> None:
        self._spec, self._schema = spec, schema
        self._arrays: dict[str, Array] = {}
        self._values: Operation

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Takes weights over, by the network's parameter names: <float32>[out, in] and <float32>[out]."""
        self._arrays = dict(arrays)
        if not arrays:  # the state of a policy that has none yet
            return
        layers = sum(name.startswith("encoder.layers.") for name in arrays) // 2  # as many as the weights are of
        config = self._spec.config.model_copy(update={"hidden": (1,) * layers})
        operations = program_of(replace(self._spec, config=config), self._schema)
        assert operations is not None
        self._values = network(operations, arrays)

    def state(self) -> dict[str, Array]:
        """Returns the weights that ``load`` was given last; none before."""
        return dict(self._arrays)

    def initial_state(self, lanes: int) -> Mapping[str, Array]:
        """Returns the empty state: the network is feed-forward."""
        del lanes
        return {}

    def __call__(self, obs: Array, state: Mapping[str, Array]) -> tuple[Array, Mapping[str, Array]]:
        """Maps obs <obs_dtype>[E, *input_shape] to Q values <float32>[E, A]; ``state`` is empty and stays so."""
        return self._values(obs), state
