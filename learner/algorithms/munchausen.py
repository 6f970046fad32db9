"""Munchausen Q-learning: a softmax policy, whose log probability is part of the reward (arXiv 2007.14430)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.algorithms.bootstrap import Bootstrapping, BootstrapPolicy, double, greedy
from learner.algorithms.loss import LossOutput, Network, Transitions
from learner.algorithms.masks import allowed
from learner.config import LearnerConfig
from learner.td import huber, scaled_log_policy, taken


@dataclass(frozen=True)
class Munchausen:
    """Bootstraps from the softmax policy of the target network, whose scaled entropy is added to the values; adds
    ``alpha`` of the scaled and clipped log probability of the action taken to the reward (the paper's equation 1).

    Of an n-step window only the first reward gets that: the later actions are no part of a transition.
    """

    alpha: float
    tau: float
    clip: float

    def __call__(self, online: Network, target: Network, batch: Transitions, q_t: Tensor) -> BootstrapPolicy:
        """See ``bootstrap.Bootstrapping``."""
        return self.policy(batch, q_t, target(batch.s_tm1).q)

    def policy(self, batch: Transitions, q_t: Tensor, q_tm1: Tensor) -> BootstrapPolicy:
        """Returns the policy by the target network's expected values <float32>[B, A] of s_t and of s_tm1."""
        at_t = scaled_log_policy(allowed(q_t, batch.extras_t), self.tau)
        at_tm1 = scaled_log_policy(allowed(q_tm1, batch.extras_tm1), self.tau)
        r_t = batch.r_t + self.alpha * taken(at_tm1, batch.a_tm1).clamp(self.clip, 0.0)
        return BootstrapPolicy(r_t, (at_t / self.tau).exp(), -at_t)


@dataclass(frozen=True)
class MunchausenLoss:
    """The Huber loss of Munchausen Q-learning on expected values."""

    munchausen: Munchausen
    huber_delta: float

    def __call__(self, online: Network, target: Network, batch: Transitions) -> LossOutput:
        """See ``Loss``."""
        with torch.no_grad():  # one pass for both: small ones cost what their weights do
            q_t, target_q_tm1 = target(torch.cat((batch.s_t, batch.s_tm1))).q.chunk(2)
            target_tm1 = self.munchausen.policy(batch, q_t, target_q_tm1).target(batch.discount_t, q_t)
        q_tm1 = online(batch.s_tm1).q
        error = target_tm1 - taken(q_tm1, batch.a_tm1)
        return LossOutput(huber(error, self.huber_delta), error.detach(), q_tm1.detach())


def munchausen_of(config: LearnerConfig) -> Munchausen:
    """Returns what ``learner.munchausen`` asks for."""
    return Munchausen(config.munchausen.alpha, config.munchausen.tau, config.munchausen.clip)


def most_added(config: LearnerConfig, num_actions: int) -> float:
    """Returns what is added to a reward or taken from it at the most: the clipped log probability of the action taken,
    or the entropy of a policy that does not prefer any; 0 without Munchausen."""
    options = config.munchausen
    if not options.enabled:
        return 0.0
    taken = options.alpha * -options.clip if options.alpha > 0 else 0.0  # the clip may be infinite
    return max(taken, options.tau * math.log(num_actions))


def bootstrapping_of(config: LearnerConfig) -> Bootstrapping:
    """Returns what ``learner.munchausen`` or else ``learner.double`` asks for."""
    if config.munchausen.enabled:
        return munchausen_of(config)
    return double if config.double else greedy
