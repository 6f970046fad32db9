"""Heads: what turns features into values, each with or without dueling (Wang et al., arXiv 1511.06581)."""

from __future__ import annotations

import math

import torch
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


class AtomsHead(nn.Module):
    """Probabilities of N returns, evenly spaced between two bounds, per action (arXiv 1707.06887)."""

    def __init__(self, features: int, num_actions: int, spec: NetworkSpec) -> None:
        super().__init__()
        options = spec.options
        self._dueling, self._atoms = spec.config.dueling, int(options["atoms"])
        self._v_min, self._v_max = options["v_min"], options["v_max"]
        self.linear = nn.Linear(features, (num_actions + int(self._dueling)) * self._atoms)

    def forward(self, features: Tensor) -> QOutput:
        """Maps features <float32>[B, F] to logits <float32>[B, A, N] and expected values <float32>[B, A]."""
        x = self.linear(features).unflatten(1, (-1, self._atoms))
        logits = duel(x) if self._dueling else x
        return QOutput(logits.softmax(2) @ atoms_of(self._v_min, self._v_max, self._atoms, logits), logits)


def atoms_of(v_min: float, v_max: float, count: int, like: Tensor) -> Tensor:
    """Returns evenly spaced returns <float32>[count], on the device of ``like``."""
    return torch.linspace(v_min, v_max, count, dtype=like.dtype, device=like.device)


class ImplicitQuantilesHead(nn.Module):
    """The return's quantile function per action (IQN, Dabney et al., arXiv 1806.06923)::

        quantiles(f, tau) = linear(f * relu(embedding(cos(pi i tau)))),    i = 0, 1, ...

    Here the product is with the encoder's features, after its last linear layer; the paper has one more layer after
    it. So expected values are the output for the mean of the embeddings, and cost what a scalar head's do.
    """

    def __init__(self, features: int, num_actions: int, spec: NetworkSpec) -> None:
        super().__init__()
        options = spec.options
        self._dueling = spec.config.dueling
        self._cosines, self._fractions = int(options["cosines"]), int(options["fractions"])
        self.embedding = nn.Linear(self._cosines, features)
        self.linear = nn.Linear(features, num_actions + int(self._dueling))

    def forward(self, features: Tensor) -> QOutput:
        """Maps features <float32>[B, F] to expected values <float32>[B, A]: means over ``fractions`` midpoints."""
        midpoints = (
            torch.arange(self._fractions, dtype=features.dtype, device=features.device) + 0.5
        ) / self._fractions
        x = self.linear(features * self._embed(midpoints).mean(0))
        return QOutput(duel(x) if self._dueling else x)

    def quantiles(self, features: Tensor, tau: Tensor) -> Tensor:
        """Maps features <float32>[B, F] and fractions <float32>[B, N] to quantiles <float32>[B, A, N]."""
        x = self.linear(features.unsqueeze(1) * self._embed(tau)).movedim(2, 1)
        return duel(x) if self._dueling else x

    def _embed(self, tau: Tensor) -> Tensor:
        """Maps fractions <float32>[...] to embeddings <float32>[..., F]."""
        cosines = torch.cos(
            math.pi * torch.arange(self._cosines, dtype=tau.dtype, device=tau.device) * tau.unsqueeze(-1)
        )
        return torch.relu(self.embedding(cosines))


def duel(x: Tensor) -> Tensor:
    """Combines a state's value and advantages <float32>[B, 1 + A, ...] to ``v + a - mean(a)`` <float32>[B, A, ...]."""
    value, advantage = x[:, :1], x[:, 1:]
    return value + advantage - advantage.mean(1, keepdim=True)
