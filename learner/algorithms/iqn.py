"""IQN: the return's quantile function at random fractions (Dabney et al., arXiv 1806.06923)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from learner.algorithms.bootstrap import Bootstrapping
from learner.algorithms.loss import Loss, LossOutput, Network, Transitions, of_action
from learner.algorithms.munchausen import bootstrapping_of
from learner.config import LearnerConfig
from learner.networks.heads import ImplicitQuantilesHead
from learner.td import quantile_regression, taken


@dataclass(frozen=True)
class ImplicitQuantileLoss:
    """The quantile Huber loss between ``samples`` random quantiles of the action taken and ``target_samples`` others of
    the policy that is bootstrapped from. TD errors are of the expected values that are acted on."""

    bootstrapping: Bootstrapping
    samples: int
    target_samples: int
    kappa: float

    def __call__(self, online: Network, target: Network, batch: Transitions) -> LossOutput:
        """See ``Loss``."""
        size, device = len(batch.a_tm1), batch.r_t.device
        with torch.no_grad():
            features_t, head = target.features(batch.s_t), _head(target)
            q_t = head(features_t).q
            policy = self.bootstrapping(online, target, batch, q_t)
            tau = torch.rand(size, self.target_samples, device=device)
            target_tm1 = policy.target(batch.discount_t, head.quantiles(features_t, tau))  # [B, N']
            expected = policy.target(batch.discount_t, q_t)
        features_tm1, head = online.features(batch.s_tm1), _head(online)
        tau = torch.rand(size, self.samples, device=device)
        theta_tm1 = of_action(head.quantiles(features_tm1, tau), batch.a_tm1)  # [B, N]
        losses = quantile_regression(theta_tm1, target_tm1, self.kappa, tau)
        with torch.no_grad():
            q_tm1 = head(features_tm1).q
        return LossOutput(losses, expected - taken(q_tm1, batch.a_tm1), q_tm1)


def implicit_quantile_loss(config: LearnerConfig) -> Loss:
    """Builds the loss of ``learner.iqn``."""
    options = config.iqn
    return ImplicitQuantileLoss(bootstrapping_of(config), options.samples, options.target_samples, options.kappa)


def _head(network: Network) -> ImplicitQuantilesHead:
    if not isinstance(network.head, ImplicitQuantilesHead):
        raise ValueError("the algorithm iqn needs the head implicit_quantiles")
    return network.head
