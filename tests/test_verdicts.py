"""When returns show that an environment is solved: bounds by hand, and the rule's errors and power by simulation."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from actors.verdicts import Spent, episodes_of, error_of, lower_bound, skewed_bound

Array = npt.NDArray[Any]
Draw = Callable[[np.random.Generator, tuple[int, int]], Array]
ALPHA, SCREENS, SCREEN_EPISODES, CONFIRM_EPISODES = 0.05, 100, 20, 100


def test_the_errors_of_all_confirmations_sum_to_alpha() -> None:
    assert error_of(0.05, 1) == 0.025
    assert sum(error_of(0.05, k) for k in range(1, 100_000)) == pytest.approx(0.05, rel=1e-4)


def test_later_confirmations_play_as_many_episodes_as_prove_the_same() -> None:
    """The distance that a normal mean has to keep, in standard deviations, grows by a quarter at the most."""
    assert [episodes_of(100, 0.05, k) for k in (1, 2, 10, 100)] == [100, 130, 209, 332]
    first = NormalDist().inv_cdf(1 - 0.025) / 10
    for k in (2, 5, 20, 100):
        distance = NormalDist().inv_cdf(1 - error_of(0.05, k)) / math.sqrt(episodes_of(100, 0.05, k))
        assert first < distance < 1.25 * first


def test_bounds_by_hand() -> None:
    """Student's and Clopper and Pearson's from tables; of 100 successes the share is at least 0.025^(1/100)."""
    spread = np.array([-1.0, 0.0, 1.0] * 33 + [0.0])
    std = spread.std(ddof=1)
    assert skewed_bound(spread, 0.025) == pytest.approx(-1.98422 * std / 10, rel=1e-4)
    for wins, bound in ((50, 0.3983), (97, 0.9148), (99, 0.9455)):
        assert lower_bound(np.repeat([1.0, 0.0], [wins, 100 - wins]), 0.025) == pytest.approx(bound, abs=2e-4)
    assert lower_bound(np.ones(100), 0.025) == pytest.approx(0.025**0.01)
    assert skewed_bound(np.array([[1.0, 2.0, 3.0]]), 0.001) == pytest.approx(2 - 22.327 / math.sqrt(3), rel=1e-3)


def test_a_spread_of_nothing_is_no_certainty() -> None:
    """As many failures as 100 episodes may hide, at the worst that comparable policies returned."""
    hidden = 1 - 0.025**0.01
    assert lower_bound(np.full(100, 500.0), 0.025) == pytest.approx(500 * (1 - hidden))
    assert lower_bound(np.full(100, 500.0), 0.025, worst=300.0) == pytest.approx(500 - 200 * hidden)
    assert lower_bound(np.full(100, -13.0), 0.025) == pytest.approx(-13 - 13 * hidden)
    assert lower_bound(np.zeros(100), 0.025) == pytest.approx(-hidden)
    near = np.repeat([499.0, 500.0], 50)
    assert lower_bound(near, 0.025, worst=0.0) == pytest.approx(499.5 * (1 - hidden))


def test_a_skew_to_the_left_lowers_the_bound_and_one_to_the_right_does_not_raise_it() -> None:
    skewed = np.concatenate((np.linspace(240, 260, 96), [-100, -90, -80, -70]))
    plain = skewed.mean() - 1.98422 * skewed.std(ddof=1) / 10
    assert skewed_bound(skewed, 0.025) < plain - 5
    mirrored = 2 * skewed.mean() - skewed
    assert skewed_bound(mirrored, 0.025) == pytest.approx(plain, abs=0.1)


def test_rows_are_judged_one_by_one() -> None:
    """As if each were alone, whichever of the cases it is."""
    rng = np.random.default_rng(0)
    rows = np.stack((rng.normal(200, 40, 50), np.full(50, 3.0), rng.integers(0, 2, 50), np.exp(rng.normal(size=50))))
    worst = np.array([100.0, math.inf, -1.0, 0.0])
    alone = [float(lower_bound(row, 0.01, low)) for row, low in zip(rows, worst, strict=True)]
    assert lower_bound(rows, 0.01, worst).tolist() == pytest.approx(alone)


# -- the whole rule, as the evaluator applies it


def normal(mean: float) -> Draw:
    return lambda rng, shape: rng.normal(mean, 40, shape)


def lander(mean: float) -> Draw:
    """Most landings alike, 8 % slow or bad: a standard deviation of 41 and a skew of about -2."""

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
        bad = rng.random(shape) < 0.08
        return np.where(bad, rng.normal(110, 60, shape), rng.normal((mean - 0.08 * 110) / 0.92, 22, shape))

    return draw


def crashing(mean: float) -> Draw:
    """5 % crashes at -100 beside landings that are all alike: a skew of about -4."""

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
        crash = rng.random(shape) < 0.05
        return np.where(crash, rng.normal(-100, 50, shape), rng.normal((mean + 0.05 * 100) / 0.95, 25, shape))

    return draw


def won(share: float) -> Draw:
    return lambda rng, shape: (rng.random(shape) < share).astype(float)


def judged(draw: Draw, threshold: float, runs: int, screens: int = SCREENS) -> Array:
    """Which confirmation <int64>[runs] declared the policy solved, from 1; 0 where none did."""
    rng = np.random.default_rng(1)
    declared, number, worst = np.zeros(runs, np.int64), np.zeros(runs, np.int64), np.full(runs, np.inf)
    for _ in range(screens):
        screen = draw(rng, (runs, SCREEN_EPISODES))
        passed = (declared == 0) & (screen.mean(1) >= threshold)
        worst = np.where(passed, np.minimum(worst, screen.min(1)), worst)
        number += passed
        for k in np.unique(number[passed]).tolist():
            which = np.flatnonzero(passed & (number == k))
            count = episodes_of(CONFIRM_EPISODES, ALPHA, k)
            half = draw(rng, (len(which), count - count // 2))
            bounds = np.full(len(which), -np.inf)
            on = half.mean(1) >= threshold
            whole = np.concatenate((half[on], draw(rng, (int(on.sum()), count // 2))), axis=1)
            bounds[on] = lower_bound(whole, error_of(ALPHA, k), np.minimum(worst[which[on]], whole.min(1)))
            worst[which] = np.minimum(worst[which], half.min(1))
            worst[which[on]] = np.minimum(worst[which[on]], whole.min(1))
            declared[which[bounds >= threshold]] = k
    return declared


@pytest.mark.parametrize(
    ("draw", "threshold"),
    [
        pytest.param(normal(199), 200, id="normal"),
        pytest.param(lander(199), 200, id="lander"),
        pytest.param(crashing(199), 200, id="crashing"),
        pytest.param(won(0.94), 0.95, id="won or lost, high"),
        pytest.param(won(0.49), 0.5, id="won or lost, even"),
    ],
)
def test_a_policy_just_below_the_threshold_is_hardly_ever_called_solved(draw: Draw, threshold: float) -> None:
    """Over 100 screens and all their confirmations: alpha, and the simulation's own error."""
    runs = 200
    wrong = np.count_nonzero(judged(draw, threshold, runs)) / runs
    assert wrong <= ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / runs)


def test_a_rule_that_spends_nothing_would_err_often() -> None:
    """Mean - 2 standard errors at each of 100 screens: a policy of true mean 199 would be called solved in more than a
    third of all runs."""
    rng, runs, solved = np.random.default_rng(2), 200, 0
    for _ in range(runs):
        passed = int((rng.normal(199, 40, (SCREENS, SCREEN_EPISODES)).mean(1) >= 200).sum())
        confirmed = rng.normal(199, 40, (passed, CONFIRM_EPISODES))
        solved += bool((confirmed.mean(1) - 2 * confirmed.std(1, ddof=1) / 10 >= 200).any())
    assert solved / runs > 0.3


@pytest.mark.parametrize("draw", [normal(215), lander(215)], ids=["normal", "lander"])
def test_a_policy_that_is_better_is_called_solved_at_once(draw: Draw) -> None:
    """15 points above: by the first confirmation in most cases, by the third in nearly all."""
    declared = judged(draw, 200, 1000, screens=3)
    assert np.mean(declared == 1) > 0.75
    assert np.mean(declared > 0) > 0.95


def test_the_greatest_of_many_screens_is_too_high_and_its_hold_out_is_not() -> None:
    """Of policies that are all alike, without a threshold: what the best was chosen by promises too much."""
    rng, runs = np.random.default_rng(3), 400
    screens = rng.normal(150, 40, (runs, SCREENS, SCREEN_EPISODES))
    best = skewed_bound(screens, 0.025).argmax(1)
    promised = screens.mean(2)[np.arange(runs), best]
    held_out = rng.normal(150, 40, (runs, 100)).mean(1)
    assert promised.mean() > 150 + 10
    assert abs(held_out.mean() - 150) < 1


def test_nothing_is_spent_at_first() -> None:
    assert Spent() == (0, math.inf)
