"""How far a transition sees at an update: the length and the discount of n-step windows, fixed or annealed."""

from __future__ import annotations

from typing import NamedTuple

from learner.config import LearnerConfig


class Horizon(NamedTuple):
    """``n`` rewards are summed before the bootstrap; ``gamma`` is the discount of one env step."""

    n: int
    gamma: float


def horizon_at(config: LearnerConfig, updates: int) -> Horizon:
    """Returns the horizon after so many updates. While it is annealed, with f the share of ``anneal.updates``::

        n = round(n_0 (n_1 / n_0)^f),    1 - gamma = (1 - gamma_0) ((1 - gamma_1) / (1 - gamma_0))^f

    as BBF does (Schwarzer et al., arXiv 2305.19452); a gamma of 1 at either end is gone to linearly.
    """
    anneal = config.anneal
    if updates >= anneal.updates:
        return Horizon(config.n_step, config.gamma)
    done = updates / anneal.updates
    n = round(anneal.n_step * (config.n_step / anneal.n_step) ** done)
    first, last = 1 - anneal.gamma, 1 - config.gamma
    left = first + (last - first) * done if first == 0 or last == 0 else first * (last / first) ** done
    return Horizon(n, 1 - left)


def longest_n_step(config: LearnerConfig) -> int:
    """Returns the greatest ``n`` that there will be."""
    return max(config.n_step, config.anneal.n_step) if config.anneal.updates else config.n_step
