"""Heads: what turns features into values, each with or without dueling (Wang et al., arXiv 1511.06581)."""

from __future__ import annotations

from torch import Tensor, nn

from learner.networks.config import NetworkSpec
from learner.networks.q_network import QOutput


class ValuesHead(nn.Module):
    """One expected value per action."""

    def __init__(self, features: int, num_actions: int, spec: NetworkSpec) -> None:
        super().__init__()
        self._dueling = spec.config.dueling
        self.linear = nn.Linear(features, num_actions + int(self._dueling))

    def forward(self, features: Tensor) -> QOutput:
        """Maps features <float32>[B, F] to values <float32>[B, A]."""
        x: Tensor = self.linear(features)
        return QOutput(duel(x) if self._dueling else x)


class QuantilesHead(nn.Module):
    """N quantiles of the return per action (Dabney et al., arXiv 1710.10044); their mean is the expected value."""

    def __init__(self, features: int, num_actions: int, spec: NetworkSpec) -> None:
        super().__init__()
        self._dueling, self._quantiles = spec.config.dueling, int(spec.options["quantiles"])
        self.linear = nn.Linear(features, (num_actions + int(self._dueling)) * self._quantiles)

    def forward(self, features: Tensor) -> QOutput:
        """Maps features <float32>[B, F] to quantiles <float32>[B, A, N] and their means <float32>[B, A]."""
        x = self.linear(features).unflatten(1, (-1, self._quantiles))
        quantiles = duel(x) if self._dueling else x
        return QOutput(quantiles.mean(2), quantiles)


def duel(x: Tensor) -> Tensor:
    """Combines a state's value and advantages <float32>[B, 1 + A, ...] to ``v + a - mean(a)`` <float32>[B, A, ...]."""
    value, advantage = x[:, :1], x[:, 1:]
    return value + advantage - advantage.mean(1, keepdim=True)
