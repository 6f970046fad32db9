"""Statistics of several runs: hand-worked numbers, oracles that count and draw one by one, and invariants."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.reporting.curves import POINTS, Curve, on_axis, together
from deploy.reporting.statistics import (
    DRAWS,
    MIN_RUNS,
    Scores,
    _draw,
    improvement_interval,
    iqm,
    iqm_band,
    iqm_interval,
    mean,
    probability_of_improvement,
    profile,
    profile_band,
    sd,
)

SCORES = st.lists(st.integers(-5, 5), min_size=1, max_size=12)


def scores(*values: float) -> Scores:
    return np.array(values, np.float64)


# -- hand-worked


def test_mean_and_sd() -> None:
    assert mean(scores(1, 2, 6)) == 3
    assert sd(scores(1, 2, 6)) == pytest.approx(7**0.5)  # (4 + 1 + 9) / 2
    assert sd(scores(4)) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((7,), 7),
        ((1, 2, 9), 4),  # a quarter of 3, rounded down, is none
        ((-100, 1, 3, 900), 2),
        ((50, 1, 2, 3, -50), 2),
        ((10, 9, 8, 7, 6, 5, 4, 3, 2, 1), 5.5),  # 3 to 8
    ],
)
def test_the_interquartile_mean(values: tuple[float, ...], expected: float) -> None:
    assert iqm(scores(*values)) == expected


def test_the_interquartile_mean_of_curves_is_that_of_each_point() -> None:
    curves = np.array([[0.0, 9.0], [1.0, 1.0], [3.0, 2.0], [9.0, 0.0]])
    assert iqm(curves).tolist() == [2.0, 1.5]


def test_the_profile_is_the_share_above_each_threshold() -> None:
    shares = profile([scores(1, 2, 2, 4)], scores(0, 1, 2, 3, 4))
    assert shares.tolist() == [1.0, 0.75, 0.25, 0.25, 0.0]


def test_the_profile_over_environments_is_their_mean_whatever_their_runs() -> None:
    assert profile([scores(1, 1, 1, 1), scores(0)], scores(0.5)).tolist() == [0.5]


def test_the_probability_of_improvement() -> None:
    """3 beats 1 and 2; 2 beats 1 and ties with 2: 3.5 of 4."""
    assert probability_of_improvement([(scores(3, 2), scores(1, 2))]) == 3.5 / 4
    assert probability_of_improvement([(scores(3, 2), scores(1, 2)), (scores(0), scores(1))]) == 3.5 / 8


def test_few_runs_have_no_interval() -> None:
    few, enough = scores(*range(MIN_RUNS - 1)), scores(*range(MIN_RUNS))
    assert iqm_interval([enough]) is not None
    assert iqm_interval([few]) is None
    assert iqm_interval([enough, few]) is None
    assert profile_band([few], scores(1)) is None
    assert improvement_interval([(enough, few)]) is None


# -- oracles


def drawn_runs(sizes: Sequence[int]) -> list[list[int]]:
    """The runs of each draw, by their places: as often as the counts have them."""
    return [[run for run, count in enumerate(counts) for _ in range(count)] for counts in _draw(tuple(sizes))]


def trimmed(values: Sequence[float]) -> float:
    cut = len(values) // 4
    kept = sorted(values)[cut : len(values) - cut]
    return float(sum(map(Fraction, kept)) / len(kept))


def test_the_interval_is_that_of_draws_made_one_by_one() -> None:
    rng = np.random.default_rng(3)
    strata = [rng.normal(size=(n, 3)).round(1) for n in (5, 7)]  # with ties
    low, high = iqm_band(strata) or (scores(), scores())
    pooled = np.concatenate(strata)
    for point in range(3):
        found = [trimmed(pooled[runs, point].tolist()) for runs in drawn_runs((5, 7))]
        assert [low[point], high[point]] == pytest.approx(np.percentile(found, [2.5, 97.5]))


def test_the_profiles_and_improvements_intervals_are_those_of_draws_made_one_by_one() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.integers(0, 4, 6).astype(float), rng.integers(0, 4, 5).astype(float)
    both = np.concatenate([x, y])
    won, above = list[float](), list[float]()
    for runs in drawn_runs((6, 5)):
        ours, theirs = both[runs[:6]], both[runs[6:]]
        won.append(sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in product(ours, theirs)) / 30)
        above.append(float(np.mean(ours > 1) + np.mean(theirs > 1)) / 2)
    assert improvement_interval([(x, y)]) == pytest.approx(tuple(np.percentile(won, [2.5, 97.5])))
    low, high = profile_band([x, y], scores(1)) or (scores(), scores())
    assert [low[0], high[0]] == pytest.approx(np.percentile(above, [2.5, 97.5]))


def test_draws_stay_within_their_stratum() -> None:
    counts = _draw((5, 8))
    assert counts.shape == (DRAWS, 13)
    assert set(counts[:, :5].sum(axis=1)) == {5}
    assert set(counts[:, 5:].sum(axis=1)) == {8}
    assert counts.mean(axis=0) == pytest.approx(np.ones(13), abs=0.1)


@given(SCORES, SCORES)
@settings(max_examples=50, deadline=None)
def test_the_probability_of_improvement_counts_pairs(x: list[int], y: list[int]) -> None:
    won = sum(Fraction(1) if a > b else Fraction(1, 2) if a == b else Fraction(0) for a in x for b in y)
    ours = probability_of_improvement([(scores(*x), scores(*y))])
    assert ours == pytest.approx(float(won / (len(x) * len(y))))
    assert ours + probability_of_improvement([(scores(*y), scores(*x))]) == pytest.approx(1)


# -- invariants


def test_the_same_scores_have_the_same_interval_and_it_is_about_the_iqm() -> None:
    values = np.random.default_rng(5).normal(10, 1, 20)
    interval = iqm_interval([values])
    assert interval == iqm_interval([values])
    assert interval is not None
    assert interval.low < float(iqm(values)) < interval.high


def test_runs_that_are_all_the_same_have_no_width() -> None:
    assert iqm_interval([scores(*[3.0] * 6)]) == (3.0, 3.0)


# -- curves


@pytest.mark.parametrize(
    ("at", "expected"),
    [(0.5, np.nan), (1, 10), (1.9, 10), (2, 21), (2.5, 21), (4, 21), (4.1, np.nan)],
)
def test_a_curve_has_the_last_value_known_at_each_point(at: float, expected: float) -> None:
    """The table of its docstring; at 2 it was measured twice."""
    curve = Curve(scores(1, 2, 2), scores(10, 20, 21), end=4)
    assert on_axis(curve, scores(at)) == pytest.approx(scores(expected), nan_ok=True)


def test_the_iqm_ends_with_the_first_run_and_begins_with_the_last() -> None:
    curves = [Curve(scores(0), scores(1), end=10), Curve(scores(2), scores(3), end=8)]
    found = together(curves, [True, True])
    known = found.x[np.isfinite(found.iqm)]
    assert (known.min(), known.max()) == (pytest.approx(2, abs=10 / POINTS), 8)
    assert set(found.iqm[np.isfinite(found.iqm)]) == {2.0}
    assert found.band is None
    assert found.runs[:, -1] == pytest.approx(scores(1, np.nan), nan_ok=True)


def test_a_run_that_does_not_count_is_drawn_and_left_out_of_the_iqm() -> None:
    curves = [Curve(scores(0), scores(1), end=10), Curve(scores(0), scores(99), end=2)]
    found = together(curves, [True, False])
    assert set(found.iqm) == {1.0}
    assert len(found.runs) == 2


def test_the_band_of_enough_runs_is_the_bootstraps() -> None:
    curves = [Curve(scores(0), scores(value), end=10 + value) for value in range(6)]
    found = together(curves, [True] * 6)
    assert found.band is not None
    interval = iqm_interval([scores(*range(6))])
    assert interval == (found.band[0][0], found.band[1][0])
    assert np.isnan(found.band[0][found.x > 10]).all()
