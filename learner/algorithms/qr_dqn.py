"""QR-DQN: quantiles of the return by quantile regression (Dabney et al., arXiv 1710.10044)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.algorithms.loss import Loss, LossOutput, Transitions
from learner.config import LearnerConfig
from learner.networks.q_network import QNetwork
from learner.td import quantile_regression


@dataclass(frozen=True)
class QuantileLoss:
    """The quantile Huber loss between the taken action's quantiles and those of the bootstrap action, which has the
    greatest mean: by the online network where ``double``, else by the target network."""

    double: bool
    kappa: float

    def __call__(self, online: QNetwork, target: QNetwork, batch: Transitions) -> LossOutput:
        """See ``Loss``."""
        with torch.no_grad():
            at_t = target(batch.s_t)
            a_t = (online(batch.s_t) if self.double else at_t).q.argmax(1)
            bootstrap = _of_action(at_t.distribution, a_t)  # [B, N']
            target_tm1 = batch.r_t.unsqueeze(1) + batch.discount_t.unsqueeze(1) * bootstrap
        at_tm1 = online(batch.s_tm1)
        theta_tm1 = _of_action(at_tm1.distribution, batch.a_tm1)  # [B, N]
        losses = quantile_regression(theta_tm1, target_tm1, self.kappa)
        return LossOutput(losses, target_tm1.mean(1) - theta_tm1.detach().mean(1), at_tm1.q.detach())


def quantile_loss(config: LearnerConfig) -> Loss:
    """Builds the loss of ``learner.qr_dqn``."""
    return QuantileLoss(config.double, config.qr_dqn.kappa)


def _of_action(quantiles: Tensor | None, action: Tensor) -> Tensor:
    """Returns quantiles <float32>[B, A, N] of one action each <int64>[B], as [B, N]."""
    if quantiles is None:
        raise ValueError("the algorithm qr_dqn needs a head that returns quantiles")
    return quantiles[torch.arange(len(action), device=action.device), action]
