"""The Q-network with the encoder ``mlp`` in numpy, for actors: without importing torch (175 MB, seconds a process)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from learner.networks.config import NetworkSpec
from replay.chunk import Schema

Array = npt.NDArray[Any]


class NumpyMlp:
    """Computes what ``QNetwork`` does with an ``MlpEncoder``. It has the weights that ``load`` was given last."""

    HEADS = ("values", "quantiles")

    def __init__(self, spec: NetworkSpec, schema: Schema) -> None:
        self._dueling, self._divisor = spec.config.dueling, np.float32(schema.obs_divisor)
        self._per_action = int(spec.options.get("quantiles", 1))
        self._arrays: dict[str, Array] = {}
        self._hidden: list[tuple[Array, Array]] = []
        self._head: tuple[Array, Array]

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Takes weights over, by the network's parameter names: <float32>[out, in] and <float32>[out]."""
        self._arrays = dict(arrays)
        if not arrays:  # the state of a policy that has none yet
            return
        count = len(arrays) // 2 - 1
        names = [f"encoder.layers.{layer}" for layer in range(count)]
        self._hidden = [_layer(arrays[f"{name}.weight"], arrays[f"{name}.bias"]) for name in names]
        # the mean over an action's linear outputs is the output of their mean weights
        weight = arrays["head.linear.weight"].reshape(-1, self._per_action, arrays["head.linear.weight"].shape[1])
        self._head = _layer(weight.mean(1), arrays["head.linear.bias"].reshape(-1, self._per_action).mean(1))

    def state(self) -> dict[str, Array]:
        """Returns the weights that ``load`` was given last; none before."""
        return dict(self._arrays)

    def initial_state(self, lanes: int) -> Mapping[str, Array]:
        """Returns the empty state: the network is feed-forward."""
        del lanes
        return {}

    def __call__(self, obs: Array, state: Mapping[str, Array]) -> tuple[npt.NDArray[np.float32], Mapping[str, Array]]:
        """Maps obs <obs_dtype>[E, *input_shape] to Q values <float32>[E, A]; ``state`` is empty and stays so."""
        x = obs.reshape(len(obs), -1).astype(np.float32, copy=False)
        if self._divisor != 1:
            x = x / self._divisor
        for weight, bias in self._hidden:
            x = x @ weight
            x += bias
            np.maximum(x, 0, out=x)
        weight, bias = self._head
        q: npt.NDArray[np.float32] = x @ weight + bias
        if not self._dueling:
            return q, state
        value, advantage = q[:, :1], q[:, 1:]
        dueling: npt.NDArray[np.float32] = value + advantage - advantage.mean(1, keepdims=True)
        return dueling, state


def _layer(weight: Array, bias: Array) -> tuple[Array, Array]:
    return np.ascontiguousarray(weight.T), bias
