"""When greedy returns show that a policy has solved its environment: pure functions, no process, no file.

A run looks many times, so each look spends a share of one error budget: the k-th confirmation of a run has the error
``alpha / (k (k + 1))``, whose sum over all k is ``alpha``. So that a later one can prove as much as the first, it plays
more episodes. A bound has to hold for returns that are skewed (a lander that crashes at times), of two values (won or
lost), or all alike:

=========================  =================================================================================
returns                    lower bound of the mean
=========================  =================================================================================
more than two values       Student's t, corrected for a skew to the left by Hall's transformation
two values                 Clopper and Pearson's exact bound of the share of the greater one
one value, and all others  no more than if failures had happened as often as they may without being seen:
                           n episodes without one allow a share of 1 - alpha^(1/n)
=========================  =================================================================================

Hall, "On the removal of skewness by transformation", J. R. Statist. Soc. B 54 (1992); Clopper and Pearson, Biometrika
26 (1934). No bound that is of use can hold for every distribution (Bahadur and Savage, Ann. Math. Statist. 27, 1956): a
failure that is rare, dear, and was seen in no episode of any policy that passed a screen is beyond this one.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Spent(NamedTuple):
    """What a run's confirmations so far have used up: their number, and the worst return of all policies that passed a
    screen."""

    confirmations: int = 0
    worst: float = math.inf


def error_of(alpha: float, confirmation: int) -> float:
    """Returns the error that the ``confirmation``-th confirmation (from 1) may have, of ``alpha`` for all of them."""
    return alpha / (confirmation * (confirmation + 1))


def episodes_of(first: int, alpha: float, confirmation: int) -> int:
    """Returns how many episodes the ``confirmation``-th confirmation plays where the first one plays ``first``.

    They grow with the logarithm of its error, as the squared distance does that a normal mean has to keep.
    """
    return math.ceil(first * math.log(error_of(alpha, confirmation)) / math.log(error_of(alpha, 1)))


def lower_bound(returns: Array, error: float, worst: Array | float = math.inf) -> Array:
    """Returns a lower bound <float64>[...] of the mean return of a policy that played ``returns`` [..., n], n >= 2: the
    true mean is below it with a probability of about ``error``.

    ``worst`` [...]: the worst return that comparable policies have had. Where all returns are alike and none was worse,
    a failure is taken to lose what the return is worth, and 1 at least.
    """
    n = returns.shape[-1]
    mean, least, greatest = returns.mean(-1), returns.min(-1), returns.max(-1)
    alike = mean - np.maximum(1.0, np.abs(mean))
    worst = np.minimum(worst, least)
    worst = np.where((least == greatest) & (worst == least), alike, worst)
    unseen = 1 - error ** (1 / n)
    bound = np.minimum(skewed_bound(returns, error), (1 - unseen) * mean + unseen * worst)
    wins = np.count_nonzero(returns == greatest[..., None], -1)
    losses = np.count_nonzero(returns == least[..., None], -1)
    exact = least + (greatest - least) * _binomial(n, error)[wins]
    exact = np.minimum(exact, (1 - unseen) * mean + unseen * worst)
    return np.asarray(np.where(wins + losses == n, exact, bound))


def skewed_bound(returns: Array, error: float) -> Array:
    """Returns Student's t lower bound [...], moved further down where the returns are skewed to the left."""
    n = returns.shape[-1]
    if n == 1:
        return np.asarray(returns[..., 0])
    off = returns - returns.mean(-1, keepdims=True)
    std = np.sqrt((off**2).sum(-1) / (n - 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        skew = np.minimum((off**3).mean(-1) / std**3, -1e-6)
    quantile = _student(n - 1, error) / math.sqrt(n)
    moved = 3 / skew * (np.cbrt(1 + skew * (quantile - skew / (6 * n))) - 1)
    return np.asarray(np.where(std > 0, returns.mean(-1) - std * moved, returns.mean(-1)))


@lru_cache(64)
def _student(freedom: int, error: float) -> float:
    """Returns the quantile of Student's t that is exceeded with the probability ``error``.

    With t = sqrt(freedom) tan(angle) the angle has the density cos(angle)^(freedom - 1).
    """
    angles = np.linspace(0, math.pi / 2, 1 << 15)
    density = np.cos(angles) ** (freedom - 1)
    beyond = np.cumsum((density[1:] + density[:-1])[::-1])[::-1] / (2 * (density[1:] + density[:-1]).sum())
    angle = np.interp(-math.log(error), -np.log(np.maximum(beyond, 1e-300)), angles[:-1])
    return math.sqrt(freedom) * math.tan(float(angle))


@lru_cache(64)
def _binomial(n: int, error: float) -> Array:
    """Returns Clopper and Pearson's lower bounds <float64>[n + 1] of a share, for each count of n: the share at which
    so many or more have the probability ``error``."""
    counts = np.arange(n + 1)
    log_choose = np.array([math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)])
    low, high = np.zeros(n + 1), np.ones(n + 1)
    for _ in range(50):
        share = (low + high) / 2
        log_terms = log_choose + counts * np.log(share)[:, None] + (n - counts) * np.log1p(-share)[:, None]
        reached = np.where(counts >= counts[:, None], np.exp(log_terms), 0).sum(1)
        low, high = np.where(reached < error, share, low), np.where(reached < error, high, share)
    return low
