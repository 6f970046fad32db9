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

    HEADS = ("values", "atoms", "quantiles", "implicit_quantiles")

    def __init__(self, spec: NetworkSpec, schema: Schema) -> None:
        self._spec, self._divisor = spec, np.float32(schema.obs_divisor)
        self._dueling, self._atoms = spec.config.dueling, None
        if spec.head == "atoms":
            options = spec.options
            self._atoms = np.linspace(options["v_min"], options["v_max"], int(options["atoms"]), dtype=np.float32)
        self._arrays: dict[str, Array] = {}
        self._hidden: list[tuple[Array, Array]] = []
        self._norms: list[tuple[Array, Array]] = []
        self._head: tuple[Array, Array]

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Takes weights over, by the network's parameter names: <float32>[out, in] and <float32>[out]."""
        self._arrays = dict(arrays)
        if not arrays:  # the state of a policy that has none yet
            return
        count = sum(name.startswith("encoder.layers.") for name in arrays) // 2
        names = [f"encoder.layers.{layer}" for layer in range(count)]
        self._hidden = [_layer(arrays[f"{name}.weight"], arrays[f"{name}.bias"]) for name in names]
        names = [f"encoder.norms.{layer}" for layer in range(count)] if self._spec.config.layer_norm else []
        self._norms = [(arrays[f"{name}.weight"], arrays[f"{name}.bias"]) for name in names]
        self._head = _layer(*_linear_head(self._spec, arrays))

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
        for index, (weight, bias) in enumerate(self._hidden):
            x = x @ weight
            x += bias
            if self._norms:
                x = _normalised(x, *self._norms[index])
            np.maximum(x, 0, out=x)
        weight, bias = self._head
        q: npt.NDArray[np.float32] = x @ weight + bias
        if self._atoms is None:
            return (_duel(q) if self._dueling else q), state
        logits = q.reshape(len(q), -1, len(self._atoms))
        return _expected(_duel(logits) if self._dueling else logits, self._atoms), state


def _linear_head(spec: NetworkSpec, arrays: Mapping[str, Array]) -> tuple[Array, Array]:
    """Returns the linear layer <float32>[out, in], [out] that gives a head's expected values, of atoms its logits.

    The mean over linear outputs is the output of their mean weights, and the mean over products of the features with
    embeddings is the product with the mean embedding: each is taken once per ``load`` rather than once per step.
    """
    weight, bias = arrays["head.linear.weight"], arrays["head.linear.bias"]
    if spec.head == "quantiles":
        per_action = int(spec.options["quantiles"])
        return weight.reshape(-1, per_action, weight.shape[1]).mean(1), bias.reshape(-1, per_action).mean(1)
    if spec.head == "implicit_quantiles":
        count, cosines = int(spec.options["fractions"]), int(spec.options["cosines"])
        midpoints = (np.arange(count, dtype=np.float32) + np.float32(0.5)) / np.float32(count)
        basis = np.cos(np.float32(np.pi) * np.arange(cosines, dtype=np.float32) * midpoints[:, None])
        embedded = basis @ arrays["head.embedding.weight"].T + arrays["head.embedding.bias"]
        return weight * np.maximum(embedded, 0).mean(0), bias
    return weight, bias


def _layer(weight: Array, bias: Array) -> tuple[Array, Array]:
    return np.ascontiguousarray(weight.T), bias


def _normalised(x: Array, weight: Array, bias: Array) -> Array:
    """See ``torch.nn.LayerNorm``; x: <float32>[E, units]."""
    x = x - x.mean(1, keepdims=True)
    variance = np.square(x).mean(1, keepdims=True)
    normalised: Array = x / np.sqrt(variance + np.float32(1e-5)) * weight + bias
    return normalised


def _duel(x: Array) -> npt.NDArray[np.float32]:
    """See ``heads.duel``."""
    value, advantage = x[:, :1], x[:, 1:]
    dueling: npt.NDArray[np.float32] = value + advantage - advantage.mean(1, keepdims=True)
    return dueling


def _expected(logits: Array, atoms: Array) -> npt.NDArray[np.float32]:
    """Returns the means <float32>[E, A] of the distributions that logits <float32>[E, A, N] give the atoms."""
    weight = np.exp(logits - logits.max(2, keepdims=True))
    mean: npt.NDArray[np.float32] = (weight @ atoms) / weight.sum(2)
    return mean
