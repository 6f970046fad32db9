"""Prioritised replay (arXiv 1511.05952): its distribution, its weights and its priorities against a naive sampler."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from chunk_makers import CODEC, SCHEMA, FakeActor, append, reader_on
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.chunk_log.memory_log import MemoryLog
from replay.config import PrioritisedConfig, ReplayConfig
from replay.mirror import Mirror
from replay.nstep import NewTransitions
from replay.samplers import make_sampler
from replay.samplers.prioritised import SMALLEST_ERROR, PrioritisedSampler
from replay.samplers.uniform import UniformSampler

Array = npt.NDArray[Any]
ALPHA, BETA = 0.6, 0.4


class Replay:
    """Actors, log, reader, mirror and sampler; and beside them what a naive sampler would keep, by row."""

    def __init__(self, capacity: int, n: int = 3, gamma: float = 0.9, lanes: int = 2, seed: int = 0) -> None:
        numbers = itertools.count()
        self.actors = [FakeActor(slot, lanes, seed, 0.2, numbers) for slot in range(2)]
        self.log, self.mirror = MemoryLog(), Mirror(SCHEMA, capacity)
        self.sampler = PrioritisedSampler(self.mirror, np.random.default_rng(seed), ALPHA, BETA, 100)
        self.reader = reader_on(self.log, CODEC, self.mirror, n, gamma)
        self.reader.follow(range(2))
        self.q_taken: dict[int, float] = {}
        self.q_max: dict[int, float] = {}
        self.errors: dict[int, float] = {}

    def arrive(self, slot: int, time_steps: int) -> None:
        """One chunk comes in; the naive sampler works out what each new row's TD error is."""
        chunk = self.actors[slot].chunk(time_steps)
        append(self.log, chunk)
        rows = chunk.obs.ravel().astype(int).tolist()  # observations count up in order of arrival, as rows do
        self.q_taken.update(zip(rows, chunk.q_taken.ravel().tolist(), strict=True))
        self.q_max.update(zip(rows, chunk.q_max.ravel().tolist(), strict=True))
        self.reader.poll()
        for row in self.sampleable():
            if row not in self.errors:
                self.errors[row] = self.actor_error(row)

    def actor_error(self, row: int) -> float:
        """r_t + discount_t max Q(s_t) - Q(s_tm1, a_tm1) by the actor's values."""
        batch = self.mirror.gather(np.array([row]))
        boot = int(batch.s_t[0, 0])
        return float(batch.r_t[0] + batch.discount_t[0] * self.q_max[boot] - self.q_taken[row])

    def sampleable(self) -> list[int]:
        alive = np.arange(self.mirror.start, self.mirror.end)
        found: list[int] = alive[self.mirror.sampleable(alive)].tolist()
        return found

    def learn(self, rows: list[int], errors: list[float]) -> None:
        """The learner's TD errors come back, some for rows that are gone."""
        self.sampler.update(np.array(rows, np.int64), np.array(errors, np.float32))
        alive = set(self.sampleable())
        self.errors.update({row: error for row, error in zip(rows, errors, strict=True) if row in alive})

    def weights(self) -> dict[int, float]:
        """p^alpha by row, as the naive sampler has it."""
        return {row: (abs(self.errors[row]) + SMALLEST_ERROR) ** ALPHA for row in self.sampleable()}

    def tree(self) -> dict[int, float]:
        """p^alpha by row, as the sampler has it, of all rows that it could ever choose."""
        places = np.flatnonzero(self.sampler._tree.weights)
        newest, capacity = self.mirror.end - 1, self.mirror.capacity_rows
        rows = newest - (newest - places) % capacity
        return dict(zip(rows.tolist(), self.sampler._tree.weights[places].tolist(), strict=True))


def test_initial_priority_is_the_actors_own_n_step_error_also_across_chunks() -> None:
    """Hand-worked: n = 2, gamma 0.5, one lane cut into chunks of one row each. Row 0: r 1 + 2/2 + q_max(2)/4 - q(0)."""
    log, mirror = MemoryLog(), Mirror(SCHEMA, 8)
    sampler = PrioritisedSampler(mirror, np.random.default_rng(0), 1.0, BETA, 100)
    reader = reader_on(log, CODEC, mirror, n=2, gamma=0.5)
    reader.follow([0])
    actor = FakeActor(p_end=0.0)
    for reward, q_taken, q_max in ((1.0, 0.25, 9.0), (2.0, 0.5, 9.0), (4.0, 7.0, 8.0)):
        chunk = actor.chunk(1)
        chunk.reward[:], chunk.q_taken[:], chunk.q_max[:] = reward, q_taken, q_max
        append(log, chunk)
        reader.poll()
    assert sampler._tree.weights.tolist()[:3] == pytest.approx([1 + 1 + 2 - 0.25, 0, 0])


STEPS = st.one_of(
    st.tuples(st.just("arrive"), st.integers(0, 1), st.integers(1, 5)),
    st.tuples(st.just("learn"), st.lists(st.integers(0, 200), max_size=8), st.integers(0, 1 << 16)),
)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(capacity=st.integers(10, 50), n=st.integers(1, 4), steps=st.lists(STEPS, max_size=25))
def test_priorities_equal_a_naive_samplers_after_any_history(capacity: int, n: int, steps: list[Any]) -> None:
    """Arrivals that evict, windows that close in later chunks, updates with duplicates and for rows long gone."""
    replay = Replay(capacity, n)
    for kind, what, size in steps:
        if kind == "arrive":
            replay.arrive(what, size)
        else:
            rows = [replay.mirror.end - 1 - back for back in what if back < replay.mirror.end]
            errors = np.random.default_rng(size).normal(size=len(rows)).astype(np.float32).tolist()
            replay.learn(rows, errors)
        assert replay.tree() == pytest.approx(replay.weights(), rel=1e-5)
        assert replay.sampler._tree.total == pytest.approx(sum(replay.weights().values()), rel=1e-5)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(seed=st.integers(0, 1 << 16), chunks=st.integers(3, 12), batch=st.integers(1, 9), batches=st.integers(1, 4))
def test_choice_and_weights_equal_a_naive_samplers(seed: int, chunks: int, batch: int, batches: int) -> None:
    """One row from each stratum of the running sum, in the ring's order; w = (N P)^-beta over the batch's greatest."""
    replay = Replay(capacity=31, seed=seed)
    for chunk in range(chunks):
        replay.arrive(chunk % 2, 4)
    if not replay.mirror.sampleable_rows:
        return
    rows, weights = replay.sampler.sample(batch, batches, updates=50)
    known = replay.weights()
    total = sum(known.values())
    assert weights is not None
    order = sorted(known, key=lambda row: row % 31)
    ends = dict(zip(order, itertools.accumulate(known[row] for row in order), strict=True))
    beta = BETA + (1 - BETA) / 2
    for b in range(batches):
        ours = rows[b * batch : (b + 1) * batch].tolist()
        naive = [(len(known) * known[row] / total) ** -beta for row in ours]
        assert weights[b * batch : (b + 1) * batch].tolist() == pytest.approx([w / max(naive) for w in naive], rel=1e-4)
        for stratum, row in enumerate(ours):
            lower, upper = stratum * total / batch, (stratum + 1) * total / batch
            assert ends[row] - known[row] <= upper * (1 + 1e-6)
            assert ends[row] >= lower * (1 - 1e-6)


def test_rows_come_in_proportion_to_their_priority() -> None:
    """Chi-square of 200,000 draws over the live rows, while the ring has turned: within 5 standard deviations."""
    replay = Replay(capacity=53)
    for chunk in range(30):
        replay.arrive(chunk % 2, 3)
    known = replay.weights()
    # batches of 1 draw independently; larger ones are stratified, which makes the counts steadier than chi-square's
    drawn = replay.sampler.sample(1, 200_000, 0).rows
    counts = {row: int((drawn == row).sum()) for row in known}
    assert sum(counts.values()) == len(drawn), "a row was drawn that cannot be sampled"
    total = sum(known.values())
    expected = {row: len(drawn) * weight / total for row, weight in known.items()}
    chi_square = sum((counts[row] - expected[row]) ** 2 / expected[row] for row in known)
    freedom = len(known) - 1
    assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)


def test_alpha_zero_is_uniform_with_equal_weights() -> None:
    mirror, rows = Mirror(SCHEMA, 64), np.arange(40)
    sampler = PrioritisedSampler(mirror, np.random.default_rng(1), 0.0, BETA, 100)
    fill(mirror, 40, np.linspace(-5, 5, 40))
    drawn, weights = sampler.sample(1, 40_000, 0)
    counts = np.bincount(drawn, minlength=40)[rows]
    assert weights is not None
    assert (weights == 1).all()
    assert abs(((counts - 1000.0) ** 2 / 1000.0).sum() - 39) < 5 * math.sqrt(78)


def fill(mirror: Mirror, count: int, td_error: Array) -> None:
    """``count`` rows of one lane, each closed with this TD error."""
    chunk = FakeActor(p_end=0.0).chunk(count)
    ids = mirror.add(chunk, np.array([-1])).ravel()
    zeros = np.zeros(count, np.float32)
    mirror.add_transitions(NewTransitions(ids, zeros, zeros, ids, td_error.astype(np.float32)))


def test_unknown_error_takes_the_greatest_live_priority() -> None:
    """Neither 1 nor the greatest ever seen (ray#2927): the row of error 100 is evicted before the unknown one comes."""
    mirror = Mirror(SCHEMA, 4)
    sampler = PrioritisedSampler(mirror, np.random.default_rng(0), 1.0, BETA, 100)
    fill(mirror, 1, np.array([100.0]))
    fill(mirror, 4, np.array([2.0, 3.0, 1.0, 0.5]))
    fill(mirror, 1, np.array([np.inf]))
    assert sorted(sampler._tree.weights.tolist()) == pytest.approx([0.5, 1.0, 3.0, 3.0], abs=1e-5)


def test_updates_for_evicted_rows_and_broken_numbers_are_counted_and_change_nothing() -> None:
    """64-bit row ids: row 0's place now belongs to row 4."""
    mirror = Mirror(SCHEMA, 4)
    sampler = PrioritisedSampler(mirror, np.random.default_rng(0), 1.0, BETA, 100)
    fill(mirror, 4, np.ones(4))
    fill(mirror, 1, np.array([2.0]))
    sampler.update(np.array([0, 1, 2]), np.array([50.0, 7.0, np.nan], np.float32))
    assert sampler._tree.weights.tolist() == pytest.approx([2.0, 7.0, 1.0, 1.0], abs=1e-5)
    assert sampler.metrics().priority_updates_missed == 2


def test_of_duplicates_in_an_update_the_last_counts() -> None:
    """Rows chosen twice in a cycle: the later batch was computed with the newer network."""
    mirror = Mirror(SCHEMA, 4)
    sampler = PrioritisedSampler(mirror, np.random.default_rng(0), 1.0, BETA, 100)
    fill(mirror, 4, np.ones(4))
    sampler.update(np.array([1, 1, 2, 1]), np.array([5.0, 6.0, 8.0, 7.0], np.float32))
    assert sampler._tree.weights.tolist() == pytest.approx([1, 7, 8, 1], abs=1e-5)


@pytest.mark.parametrize(("updates", "beta"), [(0, 0.4), (50, 0.7), (100, 1.0), (1000, 1.0)])
def test_beta_rises_with_updates(updates: int, beta: float) -> None:
    """Linear, then 1 for good; the schedule is a function of the learner's counter, not of calls."""
    mirror = Mirror(SCHEMA, 4)
    sampler = PrioritisedSampler(mirror, np.random.default_rng(0), ALPHA, 0.4, 100)
    assert sampler.beta(updates) == pytest.approx(beta)
    fill(mirror, 4, np.ones(4))
    sampler.sample(2, 1, updates)
    assert sampler.metrics().importance_beta == pytest.approx(beta)


def test_nothing_to_sample_is_an_error_and_not_a_hang() -> None:
    """As with the uniform sampler."""
    mirror = Mirror(SCHEMA, 8)
    sampler = PrioritisedSampler(mirror, np.random.default_rng(0), ALPHA, BETA, 100)
    with pytest.raises(ValueError, match="none of the mirror's 0 rows"):
        sampler.sample(1, 1, 0)


def test_the_configuration_chooses() -> None:
    """And hands its numbers on."""
    mirror, rng = Mirror(SCHEMA, 8), np.random.default_rng(0)
    assert isinstance(make_sampler(ReplayConfig(), mirror, rng), UniformSampler)
    config = ReplayConfig(sampler="prioritised", prioritised=PrioritisedConfig(alpha=0.5, beta=0.2, beta_updates=10))
    sampler = make_sampler(config, mirror, rng)
    assert isinstance(sampler, PrioritisedSampler)
    assert sampler.beta(5) == pytest.approx(0.6)
    fill(mirror, 4, np.full(4, 9.0))
    assert sampler._tree.total == pytest.approx(4 * 3.0, rel=1e-5)
