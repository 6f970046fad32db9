"""Q-learning and double Q-learning on expected values (Mnih et al. 2015; van Hasselt et al., arXiv 1509.06461)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from learner.algorithms.loss import Loss, LossOutput, Network, Transitions
from learner.algorithms.masks import allowed
from learner.algorithms.munchausen import MunchausenLoss, munchausen_of
from learner.config import LearnerConfig
from learner.td import Transform, double_q_learning, huber, q_learning, signed_hyperbolic, signed_parabolic

RESCALED = Transform(signed_hyperbolic, signed_parabolic)


@dataclass(frozen=True)
class QLearningLoss:
    """The Huber loss of ``td.q_learning``: the target network chooses the bootstrap action and values it."""

    huber_delta: float
    transform: Transform | None = None

    def __call__(self, online: Network, target: Network, batch: Transitions) -> LossOutput:
        """See ``Loss``."""
        with torch.no_grad():
            q_t = allowed(target(batch.s_t).q, batch.extras_t)
        q_tm1 = online(batch.s_tm1).q
        error = q_learning(q_tm1, batch.a_tm1, batch.r_t, batch.discount_t, q_t, self.transform)
        return LossOutput(huber(error, self.huber_delta), error.detach(), q_tm1.detach())


@dataclass(frozen=True)
class DoubleQLearningLoss:
    """The Huber loss of ``td.double_q_learning``: the online network chooses, the target network values."""

    huber_delta: float
    transform: Transform | None = None

    def __call__(self, online: Network, target: Network, batch: Transitions) -> LossOutput:
        """See ``Loss``."""
        with torch.no_grad():
            q_t, q_t_selector = target(batch.s_t).q, allowed(online(batch.s_t).q, batch.extras_t)
        q_tm1 = online(batch.s_tm1).q
        error = double_q_learning(q_tm1, batch.a_tm1, batch.r_t, batch.discount_t, q_t, q_t_selector, self.transform)
        return LossOutput(huber(error, self.huber_delta), error.detach(), q_tm1.detach())


def scalar_loss(config: LearnerConfig) -> Loss:
    """Builds the loss that ``learner.double``, ``learner.munchausen`` and ``learner.value_rescale`` ask for."""
    if config.munchausen.enabled:
        return MunchausenLoss(munchausen_of(config), config.huber_delta)
    transform = RESCALED if config.value_rescale else None
    return (DoubleQLearningLoss if config.double else QLearningLoss)(config.huber_delta, transform)
