"""Statistics of several runs' scores, after Agarwal et al. 2021 (https://arxiv.org/abs/2108.13264): the interquartile
mean, stratified bootstrap intervals, performance profiles and the probability of improvement.

A stratum holds the scores of one environment's runs <float64>[N]; draws with replacement stay within their stratum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]
DRAWS = 2000
"""Bootstrap draws of every interval."""
LEVEL = 0.95
MIN_RUNS = 5
"""With fewer runs in a stratum there is no interval: what can be drawn from 3 or 4 values covers far less."""
_SEED = 20210813
"""Of the draws: the same scores always have the same intervals."""


class Interval(NamedTuple):
    """The bounds of a LEVEL interval."""

    low: float
    high: float


def mean(scores: Scores) -> float:
    """Returns the mean of ``scores`` <float64>[N]."""
    return float(np.mean(scores))


def sd(scores: Scores) -> float | None:
    """Returns the standard deviation of the sample, with N - 1; None for one score."""
    return float(np.std(scores, ddof=1)) if len(scores) > 1 else None


def iqm(values: Scores) -> Scores:
    """Returns the interquartile mean over the runs: the mean without the floor(N / 4) smallest and as many greatest.

    Args:
        values: <float64>[N, ...], a row per run.

    Returns:
        <float64>[...].
    """
    cut = len(values) // 4
    kept: Scores = np.sort(values, axis=0)[cut : len(values) - cut]
    return np.asarray(kept.mean(axis=0))


def iqm_interval(strata: Sequence[Scores]) -> Interval | None:
    """Returns the interval of the IQM of all scores together; None where a stratum has fewer than MIN_RUNS."""
    band = iqm_band([stratum[:, None] for stratum in strata])
    return None if band is None else Interval(float(band[0][0]), float(band[1][0]))


def iqm_band(strata: Sequence[Scores]) -> tuple[Scores, Scores] | None:
    """Returns the interval of the IQM at each of P points of a curve.

    A run is drawn with the whole of its curve. How often each is drawn settles a draw's IQM: of its N sorted values,
    each as often as it was drawn, those between the ranks floor(N / 4) and N - floor(N / 4) count.

    Args:
        strata: <float64>[N_k, P] each, a row per run.

    Returns:
        Both bounds <float64>[P]; None where a stratum has fewer than MIN_RUNS.
    """
    if any(len(stratum) < MIN_RUNS for stratum in strata):
        return None
    values = np.concatenate(strata)
    counts = _draw(tuple(map(len, strata)))
    runs, points = values.shape
    cut = runs // 4
    order = np.argsort(values, axis=0)
    ordered = np.take_along_axis(values, order, axis=0)
    drawn = np.empty((DRAWS, points))
    for point in range(points):  # all at once would take DRAWS x N x P numbers
        ranks = np.clip(np.cumsum(counts[:, order[:, point]], axis=1), cut, runs - cut)
        drawn[:, point] = np.diff(ranks, axis=1, prepend=cut) @ ordered[:, point] / (runs - 2 * cut)
    low, high = _bounds(drawn)
    return low, high


def profile(strata: Sequence[Scores], thresholds: Scores) -> Scores:
    """Returns the performance profile: the share of runs whose score is above each threshold, the mean over strata.

    Args:
        strata: <float64>[N_k] each.
        thresholds: <float64>[T].

    Returns:
        <float64>[T].
    """
    shares = [np.mean(stratum[:, None] > thresholds, axis=0) for stratum in strata]
    return np.asarray(np.mean(shares, axis=0))


def profile_band(strata: Sequence[Scores], thresholds: Scores) -> tuple[Scores, Scores] | None:
    """Returns the interval of the performance profile at each threshold <float64>[T]; None where a stratum has fewer
    than MIN_RUNS."""
    if any(len(stratum) < MIN_RUNS for stratum in strata):
        return None
    counts = np.split(_draw(tuple(map(len, strata))), np.cumsum(list(map(len, strata)))[:-1], axis=1)
    shares = [
        drawn @ (stratum[:, None] > thresholds) / len(stratum) for drawn, stratum in zip(counts, strata, strict=True)
    ]
    low, high = _bounds(np.mean(shares, axis=0))
    return low, high


def probability_of_improvement(pairs: Sequence[tuple[Scores, Scores]]) -> float:
    """Returns the probability that a run of X scores better than one of Y in the same environment, a tie being half:
    P(X > Y) + P(X = Y) / 2, Mann-Whitney's U / (N M), the mean over environments.

    Args:
        pairs: X's scores <float64>[N_k] and Y's <float64>[M_k], a pair per environment.
    """
    return float(np.mean([_wins(x, y).mean() for x, y in pairs]))


def improvement_interval(pairs: Sequence[tuple[Scores, Scores]]) -> Interval | None:
    """Returns the interval of ``probability_of_improvement``; None where a side has fewer than MIN_RUNS somewhere."""
    sizes = tuple(len(side) for pair in pairs for side in pair)
    if min(sizes) < MIN_RUNS:
        return None
    counts = np.split(_draw(sizes), np.cumsum(sizes)[:-1], axis=1)
    drawn = [
        np.einsum("dn,nm,dm->d", ours, _wins(x, y), theirs, optimize=True) / (len(x) * len(y))
        for (x, y), ours, theirs in zip(pairs, counts[::2], counts[1::2], strict=True)
    ]
    low, high = _bounds(np.mean(drawn, axis=0)[:, None])
    return Interval(float(low[0]), float(high[0]))


def _wins(x: Scores, y: Scores) -> Scores:
    """Returns 1 where a score of X is above one of Y, 1/2 where they are the same, else 0, <float64>[N, M]."""
    return np.asarray((x[:, None] > y) + 0.5 * (x[:, None] == y))


def _draw(sizes: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Returns how often each draw has each run, <int64>[DRAWS, sum of sizes]: as many as there are, within strata."""
    rng = np.random.default_rng(_SEED)
    return np.concatenate([rng.multinomial(n, np.full(n, 1 / n), size=DRAWS) for n in sizes], axis=1)


def _bounds(drawn: Scores) -> tuple[Scores, Scores]:
    """Returns the percentiles between which LEVEL of the draws <float64>[DRAWS, P] lie, <float64>[P] each."""
    outside = 50 * (1 - LEVEL)
    low, high = np.percentile(drawn, [outside, 100 - outside], axis=0)
    return low, high
