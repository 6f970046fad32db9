"""QR-DQN: quantiles of the return by quantile regression (Dabney et al., arXiv 1710.10044)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from learner.algorithms.bootstrap import Bootstrapping
from learner.algorithms.loss import Loss, LossOutput, Network, Transitions, distribution_of, of_action
from learner.algorithms.munchausen import bootstrapping_of
from learner.config import LearnerConfig
from learner.td import quantile_regression


@dataclass(frozen=True)
class QuantileLoss:
    """The quantile Huber loss between the quantiles of the action taken and those of the bootstrap's policy."""

    bootstrapping: Bootstrapping
    kappa: float

    def __call__(self, online: Network, target: Network, batch: Transitions) -> LossOutput:
        """See ``Loss``."""
        with torch.no_grad():
            at_t = target(batch.s_t)
            policy = self.bootstrapping(online, target, batch, at_t.q)
            target_tm1 = policy.target(batch.discount_t, distribution_of(at_t, "qr_dqn"))  # [B, N']
        at_tm1 = online(batch.s_tm1)
        theta_tm1 = of_action(distribution_of(at_tm1, "qr_dqn"), batch.a_tm1)  # [B, N]
        losses = quantile_regression(theta_tm1, target_tm1, self.kappa)
        return LossOutput(losses, target_tm1.mean(1) - theta_tm1.detach().mean(1), at_tm1.q.detach())


def quantile_loss(config: LearnerConfig) -> Loss:
    """Builds the loss of ``learner.qr_dqn``."""
    return QuantileLoss(bootstrapping_of(config), config.qr_dqn.kappa)
