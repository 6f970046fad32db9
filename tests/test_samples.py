"""What is measured of the samples and of the learner's time: hand-worked numbers, then what always holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from learner.algorithms.loss import Transitions
from learner.algorithms.munchausen import most_added, munchausen_of
from learner.config import LearnerConfig, MunchausenConfig
from learner.metrics import SampleMetrics
from learner.phases import PHASES, Phases
from learner.samples import Samples, effective_sample_size, q_bound


class Clock:
    """A clock that goes by what is added to it."""

    def __init__(self) -> None:
        self.now_s = 5.0

    def __call__(self) -> float:
        return self.now_s


def test_every_second_is_charged_to_one_phase() -> None:
    clock = Clock()
    phases = Phases(clock)
    for phase, seconds in (("ingest", 1.0), ("compute", 2.0), ("ingest", 0.5)):
        clock.now_s += seconds
        phases.charge(phase)
    assert (phases.seconds["ingest"], phases.seconds["compute"], phases.seconds["wait"]) == (1.5, 2.0, 0.0)
    assert sum(phases.seconds.values()) == clock.now_s - 5.0
    assert phases.seconds.keys() == PHASES.keys()
    with pytest.raises(KeyError):
        phases.charge("lunch")


@pytest.mark.parametrize(
    ("weights", "size"),
    [
        (None, 4.0),
        ([1, 1, 1, 1], 4.0),
        ([1, 0, 0, 0], 1.0),
        ([1, 0.5, 0.5, 0], 4 / 1.5),
        ([1, 1, 1, 1, 1, 0, 0, 0], 2.5),  # two batches, of 4 and of 1
    ],
)
def test_the_effective_sample_size(weights: list[float] | None, size: float) -> None:
    given = None if weights is None else np.array(weights, np.float32)
    assert effective_sample_size(given, 4) == pytest.approx(size)


@pytest.mark.parametrize(
    ("r_t", "discount_t", "bound"),
    [
        ([1.0, -3.0], [0.0, 0.0], 3.0),  # ends: their own reward is all there is
        ([1.0, 1.0], [0.9, 0.0], 10.0),  # one a step, for ever
        ([2.71], [0.729], 10.0),  # the same, n = 3
        ([0.0], [1.0], 0.0),
        ([0.5], [1.0], math.inf),  # without discounting nothing bounds Q
    ],
)
def test_the_greatest_q_that_rewards_can_explain(r_t: list[float], discount_t: list[float], bound: float) -> None:
    assert q_bound(torch.tensor(r_t), torch.tensor(discount_t)) == pytest.approx(bound, rel=1e-5)


def test_the_greatest_q_has_what_an_algorithm_adds_to_rewards() -> None:
    assert q_bound(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.9]), 0.9) == pytest.approx(9.0)


@pytest.mark.parametrize(("alpha", "tau", "clip"), [(0.9, 0.03, -1.0), (0.0, 2.0, -math.inf), (1.0, 0.5, -3.0)])
def test_no_target_of_munchausens_leads_beyond_the_bound(alpha: float, tau: float, clip: float) -> None:
    """Of values within it, at either end, in states with all differences of values."""
    config = MunchausenConfig(enabled=True, alpha=alpha, tau=tau, clip=clip)
    actions, discount = 4, torch.full((200,), 0.9)
    r_t = torch.linspace(-2, 2, 200)
    bound = q_bound(r_t, discount, most_added(LearnerConfig(munchausen=config), actions))
    torch.manual_seed(0)
    q_t, q_tm1 = bound * (2 * torch.rand(2, 200, actions) - 1)
    q_t[::4], q_t[1::4] = bound, -bound
    batch = Transitions(q_t, torch.randint(actions, (200,)), r_t, discount, q_t)
    target = munchausen_of(LearnerConfig(munchausen=config)).policy(batch, q_t, q_tm1).target(discount, q_t)
    assert target.abs().max() <= bound * (1 + 1e-6)
    assert target.abs().max() > q_bound(r_t, discount), "rewards alone do not explain them"


def test_only_munchausen_adds_to_rewards() -> None:
    assert most_added(LearnerConfig(), 4) == 0


def test_the_samples_metrics() -> None:
    """Ages are counted in rows; the bound on Q keeps the greatest seen, and is absent where there is none."""
    samples = Samples(2)
    assert samples.metrics() is None
    rows, ends = np.array([90, 70, 99, 80]), torch.zeros(4)
    samples.record(rows, None, 100, torch.tensor([0.0, 5.0, 0.0, 0.0]), ends)
    assert samples.metrics() == SampleMetrics(2.0, 100 - 84.75, 30.0, effective_sample_size=2.0, q_bound=5.0)
    samples.record(rows, np.array([1, 0, 1, 1], np.float32), 100, torch.tensor([0.0, 1.0, 0.0, 0.0]), ends)
    assert samples.metrics() == SampleMetrics(2.0, 100 - 84.75, 30.0, effective_sample_size=1.5, q_bound=5.0)
    samples.record(rows, None, 100, torch.ones(4), torch.ones(4))
    newest = samples.metrics()
    assert newest is not None
    assert newest.q_bound is None
