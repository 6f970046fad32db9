"""Acting: from observations to Q values, and when to explore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from learner.networks import NetworkSpec, encoder_of
from learner.networks.numpy_mlp import NumpyMlp
from learner.networks.portable import PolicyState
from learner.networks.program import HEADS
from replay.chunk import Schema

Array = npt.NDArray[Any]


class Acting(Protocol):
    """Computes Q values, from observations and what it remembers of each lane's episode."""

    def initial_state(self, lanes: int) -> PolicyState:
        """Returns the recurrent state of so many lanes that begin an episode."""

    def __call__(self, obs: Array, state: PolicyState) -> tuple[npt.NDArray[np.float32], PolicyState]:
        """Maps obs <obs_dtype>[E, *input_shape] and the lanes' state to Q values <float32>[E, A] and the state after
        these observations. Leaves the given state's arrays as they are."""


class Policy(Acting, Protocol):
    """Computes Q values with the weights that it was given last."""

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Takes weights over, by the network's parameter names."""

    def state(self) -> dict[str, Array]:
        """Returns the weights that ``load`` was given last; none before."""


def make_policy(spec: NetworkSpec, schema: Schema) -> Policy:
    """Builds the policy of a network: in numpy, without importing torch, where the network has a twin there; else in
    torch, on as many threads as the process gives it (actors: one)."""
    if encoder_of(spec.config, schema) == "mlp" and spec.head in HEADS:
        return NumpyMlp(spec, schema)
    from learner.networks.torch_policy import TorchPolicy

    return TorchPolicy(spec, schema)


def flat(state: PolicyState) -> npt.NDArray[np.float32]:
    """Returns the lanes' state as a chunk has it <float32>[E, width]: its arrays one after another, in the order of
    their names."""
    return np.concatenate([state[name] for name in sorted(state)], 1)


def carried(policy: Acting, state: PolicyState, kept: Array, begun: Array) -> PolicyState:
    """Returns the state of the lanes ``kept`` <int>[K], in that order; of these, those at the positions ``begun``
    <int>[B] begin an episode."""
    following = {name: array[kept] for name, array in state.items()}  # copies: the policy may keep the given arrays
    if len(begun):
        for name, initial in policy.initial_state(len(begun)).items():
            following[name][begun] = initial
    return following


class EpsilonGreedy:
    """A policy whose lanes take a random action now and then: their Q values are random numbers then, of which the
    greatest, masked or not, is each allowed action equally often."""

    def __init__(self, policy: Acting, epsilon: float, rng: np.random.Generator) -> None:
        """``epsilon``: the probability of a random action."""
        self._policy, self._epsilon, self._rng = policy, epsilon, rng
        self.initial_state = policy.initial_state

    def __call__(self, obs: Array, state: PolicyState) -> tuple[npt.NDArray[np.float32], PolicyState]:
        """See ``Acting``."""
        q, state = self._policy(obs, state)
        explores = self._rng.random(len(q)) < self._epsilon
        return np.where(explores[:, None], self._rng.random(q.shape, np.float32), q), state


DRAWS = 1 << 31
"""Numbers that ``explore`` draws from where masks hold: ``draw`` makes allowed actions of them."""


def draw(planned: Array, mask: Array) -> npt.NDArray[np.int64]:
    """Returns for each lane one of the actions <int64>[E] that its mask <uint8>[E, A] allows, by a number
    <int64>[E] that ``explore`` drew from DRAWS."""
    nth = planned % np.maximum(mask.sum(1, dtype=np.int64), 1)
    drawn: npt.NDArray[np.int64] = ((mask.cumsum(1) > nth[:, None]) & (mask != 0)).argmax(1)
    return drawn


def explore(epsilon: Array, steps: int, num_actions: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draws when to explore, and how: random actions <int64>[T, E] by the toss of a coin, -1 where the lane is greedy.

    One coin per time step and lane, epsilon <float64>[E]; drawn for a whole chunk, since each call costs microseconds.
    """
    grid = (steps, len(epsilon))
    planned: npt.NDArray[np.int64] = np.where(rng.random(grid) < epsilon, rng.integers(0, num_actions, grid), -1)
    return planned
