"""The exploration ladder at both ends, by slot, and its annealing."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from actors.config import ActorConfig
from actors.epsilon import annealed, ladder


def test_both_ends_of_the_ladder() -> None:
    """epsilon for the first lane, epsilon^(1 + alpha) for the last, geometric in between (arXiv 1803.00933)."""
    rates = ladder(np.arange(9), 9, 0.4, 7.0)
    assert_allclose(rates[[0, 4, 8]], [0.4, 0.4**4.5, 0.4**8])
    assert_allclose(rates[1:] / rates[:-1], 0.4 ** (7 / 8))


def test_a_single_lane_has_the_base() -> None:
    assert_allclose(ladder(np.array([0]), 1, 0.4, 7.0), [0.4])


@pytest.mark.parametrize(("base", "expected"), [(0.0, 0.0), (1.0, 1.0)])
def test_the_extreme_bases(base: float, expected: float) -> None:
    assert_allclose(ladder(np.arange(4), 4, base, 7.0), expected)


def test_alpha_zero_is_level() -> None:
    assert_allclose(ladder(np.arange(4), 4, 0.05, 0.0), 0.05)


@pytest.mark.parametrize("lane", [-1, 4])
def test_lanes_off_the_ladder_are_refused(lane: int) -> None:
    with pytest.raises(ValueError, match=r"0\.\.3"):
        ladder(np.array([0, lane]), 4, 0.4, 7.0)


def test_annealing_starts_random_ends_at_the_floor_and_stays() -> None:
    floor = np.array([0.4, 0.0])
    assert_allclose(annealed(floor, 0, 1000), 1.0)
    assert_allclose(annealed(floor, 500, 1000), [0.7, 0.5])
    assert_allclose(annealed(floor, 1000, 1000), floor)
    assert_allclose(annealed(floor, 10**9, 1000), floor)


def test_without_annealing_the_floor_holds_at_once() -> None:
    assert_allclose(annealed(np.array([0.4]), 0, 0), [0.4])


def test_a_ladder_without_an_end_is_refused() -> None:
    """Its first lane would have an epsilon that is no number, and never explore."""
    with pytest.raises(ValueError, match=r"epsilon_alpha\n.*finite number"):
        ActorConfig(epsilon_alpha=float("inf"))
