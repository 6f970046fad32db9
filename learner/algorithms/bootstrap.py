"""The policy that a transition bootstraps from: what algorithms of distributional heads have in common."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor
from torch.nn.functional import one_hot

from learner.algorithms.loss import Network, Transitions
from learner.algorithms.masks import allowed


class BootstrapPolicy(NamedTuple):
    """``r_t`` <float32>[B], with what the algorithm adds to the reward; ``probability`` <float32>[B, A], of each action
    in s_t; ``bonus`` <float32>[B, A], what is added to the value of each."""

    r_t: Tensor
    probability: Tensor
    bonus: Tensor | None = None

    def mean(self, values: Tensor) -> Tensor:
        """Returns the policy's mean <float32>[B, ...] of values <float32>[B, A, ...], bonus included."""
        further = (1,) * (values.dim() - 2)
        if self.bonus is not None:
            values = values + self.bonus.view(*self.bonus.shape, *further)
        mean: Tensor = (self.probability.view(*self.probability.shape, *further) * values).sum(1)
        return mean

    def target(self, discount_t: Tensor, values: Tensor) -> Tensor:
        """Returns ``r_t + discount_t * mean(values)`` <float32>[B, ...]; discount_t: <float32>[B]."""
        further = (1,) * (values.dim() - 2)
        return self.r_t.view(-1, *further) + discount_t.view(-1, *further) * self.mean(values)


class Bootstrapping(Protocol):
    """Chooses the policy that a batch bootstraps from. Called without gradient."""

    def __call__(self, online: Network, target: Network, batch: Transitions, q_t: Tensor) -> BootstrapPolicy:
        """``q_t`` <float32>[B, A]: the target network's expected values of s_t."""


def greedy(online: Network, target: Network, batch: Transitions, q_t: Tensor) -> BootstrapPolicy:
    """Chooses the action that the target network values most (Mnih et al. 2015)."""
    return _of_one_action(batch, q_t)


def double(online: Network, target: Network, batch: Transitions, q_t: Tensor) -> BootstrapPolicy:
    """Chooses the action that the online network values most (van Hasselt et al., arXiv 1509.06461)."""
    return _of_one_action(batch, online(batch.s_t).q)


def _of_one_action(batch: Transitions, q_t_selector: Tensor) -> BootstrapPolicy:
    action = allowed(q_t_selector, batch.extras_t).argmax(1)
    return BootstrapPolicy(batch.r_t, one_hot(action, q_t_selector.shape[1]).to(q_t_selector.dtype))
