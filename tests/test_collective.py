"""Two learners that share their updates keep the same weights to the bit, also where one of them alone has to skip."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.collective import Alone, Collective
from learner.config import LearnerConfig
from learner.learner import Learner
from learner.networks import NetworkConfig
from replay.chunk import Schema
from replay.mirror import Batch

SCHEMA = Schema((4,), "float32", 3)
CONFIG = LearnerConfig(network=NetworkConfig(hidden=(16,)), lr=1e-2, device="cpu", huber_delta=10.0)
pytestmark = pytest.mark.usefixtures("one_torch_thread")


class Pair:
    """What two threads hand each other."""

    def __init__(self) -> None:
        self._values: list[Tensor] = [torch.zeros(()), torch.zeros(())]
        self._barrier = threading.Barrier(2, timeout=30)

    def exchange(self, rank: int, value: Tensor) -> Tensor:
        """Returns both threads' values, [2, ...]."""
        self._values[rank] = value.detach().clone()
        self._barrier.wait()
        both = torch.stack(self._values)
        self._barrier.wait()
        return both


class Ranked(Alone):
    """One of the two."""

    def __init__(self, pair: Pair, rank: int) -> None:
        self._pair, self._rank = pair, rank

    def mean_(self, gradient: Tensor) -> None:
        gradient.copy_(self._pair.exchange(self._rank, gradient).mean(0))

    def any_(self, flag: Tensor) -> None:
        flag.copy_(self._pair.exchange(self._rank, flag).amax(0))


class GradientsOnly(Ranked):
    """Shares no flag: what must not be."""

    def any_(self, flag: Tensor) -> None:
        pass


def batch(seed: int, size: int = 32) -> Batch:
    rng = np.random.default_rng(seed)
    s_tm1, s_t = rng.normal(size=(2, size, 4)).astype(np.float32)
    r_t, discount_t = rng.normal(size=size).astype(np.float32), rng.choice([0.0, 0.97], size).astype(np.float32)
    return Batch(s_tm1, rng.integers(0, 3, size), r_t, discount_t, s_t)


def half(whole: Batch, rank: int) -> Batch:
    size = len(whole.r_t) // 2
    columns = [getattr(whole, each.name) for each in fields(whole)[:5]]
    return Batch(*(column[rank * size : (rank + 1) * size].copy() for column in columns))


def learner(collective: Collective | None = None) -> Learner:
    return Learner(CONFIG, SCHEMA, torch.device("cpu"), 1, collective)


def learn_together(kind: type[Ranked], batches: list[tuple[Batch, Batch]]) -> tuple[Learner, Learner]:
    """Two learners after these updates, each with its own half of every batch."""
    pair = Pair()
    first, second = (learner(kind(pair, rank)) for rank in range(2))

    def learn(rank: int, of: Learner) -> None:
        for each in batches:
            of.update(each[rank])

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(learn, 0, first), pool.submit(learn, 1, second)]:
            done.result(timeout=60)
    return first, second


def test_two_learners_with_half_a_batch_each_are_one_with_all_of_it() -> None:
    """The gradient is the mean of both: the same weights to the bit in both, and those of the one to rounding."""
    wholes = [batch(seed) for seed in range(10)]
    alone = learner()
    for whole in wholes:
        alone.update(whole)
    first, second = learn_together(Ranked, [(half(whole, 0), half(whole, 1)) for whole in wholes])
    for name, vector in first._vectors().items():
        assert torch.equal(vector, second._vectors()[name]), name
        torch.testing.assert_close(vector, alone._vectors()[name], rtol=1e-4, atol=1e-6)


def with_an_overflow() -> list[tuple[Batch, Batch]]:
    """Three updates; in the second the loss of the second learner is infinite, and its gradient is not."""
    halves = [(half(batch(seed), 0), half(batch(seed), 1)) for seed in range(3)]
    halves[1][1].r_t[3] = 1e38
    return halves


def test_where_one_learners_loss_overflows_both_skip() -> None:
    first, second = learn_together(Ranked, with_an_overflow())
    without = [each for update, each in enumerate(with_an_overflow()) if update != 1]
    expected, _ = learn_together(Ranked, without)
    for tested in (first, second):
        figures = tested.metrics()
        assert figures is not None
        assert (figures.updates_skipped, figures.skipped_in_a_row) == (1, 0)
        assert tested.updates == 3
        for name in ("online", "adam_m", "adam_v"):
            assert torch.equal(tested._vectors()[name], expected._vectors()[name]), name


def test_without_the_flag_the_learners_would_part() -> None:
    """The gradient is finite, so by it alone only one of them skips: the case is the one that the flag is for."""
    first, second = learn_together(GradientsOnly, with_an_overflow())
    skipped = [float(each._scalars()["skipped"]) for each in (first, second)]
    assert skipped == [0, 1]
    assert not torch.equal(first._parameters, second._parameters)
