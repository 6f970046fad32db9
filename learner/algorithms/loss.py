"""What an algorithm is to the learner: a function of two networks and a batch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from learner.networks.q_network import QOutput


class Transitions(NamedTuple):
    """A batch on the device: s_tm1, s_t [B, *input_shape], scaled, a_tm1 <int64>[B], r_t, discount_t <float32>[B].

    ``r_t`` is the window's discounted sum of rewards, ``discount_t`` what its bootstrap is multiplied by.
    ``extras_tm1`` and ``extras_t`` are the schema's further columns at s_tm1 and at s_t, <dtype>[B, *shape] by name.
    """

    s_tm1: Tensor
    a_tm1: Tensor
    r_t: Tensor
    discount_t: Tensor
    s_t: Tensor
    extras_tm1: Mapping[str, Tensor] = MappingProxyType({})
    extras_t: Mapping[str, Tensor] = MappingProxyType({})


class LossOutput(NamedTuple):
    """``losses`` <float32>[B], before importance weights, with gradient; ``td_error`` <float32>[B], of expected values
    whatever the loss is of, so that priorities are comparable with those that actors give; ``q_tm1`` <float32>[B, A],
    expected values, for metrics. The last two without gradient."""

    losses: Tensor
    td_error: Tensor
    q_tm1: Tensor


class Network(Protocol):
    """A ``QNetwork``, or one that is unrolled over sequences (learner/sequences.py)."""

    @property
    def head(self) -> nn.Module:
        """What turns features into values."""

    def __call__(self, obs: Tensor) -> QOutput:
        """Returns the values of observations."""

    def features(self, obs: Tensor) -> Tensor:
        """Returns what the head is given of observations <float32>[B, F]."""


class Loss(Protocol):
    """Computes the loss of each transition."""

    def __call__(self, online: Network, target: Network, batch: Transitions) -> LossOutput:
        """Returns losses, TD errors and Q values of a batch."""


def distribution_of(output: QOutput, algorithm: str) -> Tensor:
    """Returns the head's distributions <float32>[B, A, N]. Raises ValueError where the head has none."""
    if output.distribution is None:
        raise ValueError(f"the algorithm {algorithm} needs a head that returns distributions")
    return output.distribution


def of_action(values: Tensor, action: Tensor) -> Tensor:
    """Returns the values <float32>[B, N] of one action each <int64>[B]; values: <float32>[B, A, N]."""
    return values[torch.arange(len(action), device=action.device), action]
