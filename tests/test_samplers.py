"""The uniform sampler: every sampleable row with equal probability, and no other row ever."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from chunk_makers import CODEC, SCHEMA, FakeActor, reader_on

from replay.chunk import BOUNDARY
from replay.chunk_log.memory_log import MemoryLog
from replay.mirror import Mirror
from replay.samplers.uniform import UniformSampler

CAPACITY = 101


def filled(rows_at_least: int) -> tuple[Mirror, dict[int, int]]:
    """A mirror that an actor with many episode ends filled through the reader; and all rows' flags by observation."""
    log, mirror, actor = MemoryLog(), Mirror(SCHEMA, CAPACITY), FakeActor(lanes=2, seed=3, p_end=0.25)
    reader = reader_on(log, CODEC, mirror, n=1, gamma=0.9)
    reader.follow([0])
    flags: dict[int, int] = {}
    while mirror.end < rows_at_least:
        chunk = actor.send(log, time_steps=5)
        flags.update(zip(chunk.obs.ravel().astype(int).tolist(), chunk.flags.ravel().tolist(), strict=True))
        reader.poll()
    return mirror, flags


@pytest.mark.parametrize("rows", [60, 250], ids=["half full", "turned over"])
def test_every_sampleable_row_equally_often(rows: int) -> None:
    """Chi-square over 400 draws per row: within 5 standard deviations of its mean, neither above nor (as for rows
    taken in turn) below."""
    mirror, _ = filled(rows)
    alive = np.arange(mirror.start, mirror.end)
    sampleable = alive[mirror.sampleable(alive)]
    draws = 400 * len(sampleable)
    sampler = UniformSampler(mirror, np.random.default_rng(7))
    drawn = np.concatenate([sampler.sample(100).rows for _ in range(draws // 100)])
    counts = np.bincount(drawn - mirror.start, minlength=len(alive))[sampleable - mirror.start]
    assert counts.sum() == len(drawn)
    expected = len(drawn) / len(sampleable)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    freedom = len(sampleable) - 1
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_never_a_boundary_evicted_or_open_row() -> None:
    """Looked at after each chunk, while the ring turns over."""
    log, mirror, actor = MemoryLog(), Mirror(SCHEMA, CAPACITY), FakeActor(lanes=2, seed=4, p_end=0.4)
    reader = reader_on(log, CODEC, mirror, n=3, gamma=0.9)
    reader.follow([0])
    sampler = UniformSampler(mirror, np.random.default_rng(0))
    flags: dict[int, int] = {}
    for _ in range(60):
        chunk = actor.send(log, time_steps=4)
        flags.update(zip(chunk.obs.ravel().astype(int).tolist(), chunk.flags.ravel().tolist(), strict=True))
        reader.poll()
        if not mirror.sampleable_rows:
            continue
        ids = sampler.sample(300).rows
        assert mirror.start <= ids.min() <= ids.max() < mirror.end
        assert mirror.sampleable(ids).all()
        names = mirror.gather(ids).s_tm1[:, 0].astype(int)
        np.testing.assert_array_equal(names, ids)  # an observation's number is its row's: nothing stale was read
        assert not any(flags[name] & BOUNDARY for name in names.tolist())
    assert mirror.end > 4 * CAPACITY


class Counting(np.random.Generator):
    """Counts the most numbers that were drawn at once."""

    most = 0

    def integers(self, low: Any, high: Any = None, size: Any = None, *more: Any, **others: Any) -> Any:
        self.most = max(self.most, int(np.prod(size)))
        return super().integers(low, high, size, *more, **others)


def test_few_sampleable_rows_cost_no_more_memory_than_rows() -> None:
    """One row in a thousand, as at the start of a run with many lanes and long sequences, and batches of thousands."""
    mirror, actor, log = Mirror(SCHEMA, 1000), FakeActor(p_end=0.0), MemoryLog()
    reader = reader_on(log, CODEC, mirror, n=999, gamma=0.9)
    reader.follow([0])
    actor.send(log, time_steps=1000)
    reader.poll()
    assert (mirror.rows, mirror.sampleable_rows) == (1000, 1)
    rng = Counting(np.random.PCG64(0))
    assert set(UniformSampler(mirror, rng).sample(64, 50).rows.tolist()) == {0}
    assert rng.most <= 64 * 50


def test_one_sampleable_row_among_many_is_found() -> None:
    """Rejection ends also where nearly all is rejected."""
    mirror, actor = Mirror(SCHEMA, CAPACITY), FakeActor(p_end=0.0)
    log = MemoryLog()
    reader = reader_on(log, CODEC, mirror, n=50, gamma=0.9)
    reader.follow([0])
    actor.send(log, time_steps=51)
    reader.poll()
    assert mirror.sampleable_rows == 1
    assert set(UniformSampler(mirror, np.random.default_rng(0)).sample(64).rows.tolist()) == {0}


def test_nothing_to_sample_is_an_error_and_not_a_hang() -> None:
    """An empty mirror, and one with open windows only."""
    mirror = Mirror(SCHEMA, CAPACITY)
    sampler = UniformSampler(mirror, np.random.default_rng(0))
    with pytest.raises(ValueError, match="none of the mirror's 0 rows"):
        sampler.sample(1)
    mirror.add(FakeActor().chunk(4), np.array([-1]))
    with pytest.raises(ValueError, match="none of the mirror's 4 rows"):
        sampler.sample(1)


def test_same_seed_same_draws() -> None:
    """The inline mode is bit-for-bit reproducible."""
    mirror, _ = filled(150)
    first, second = (UniformSampler(mirror, np.random.default_rng(11)).sample(500).rows for _ in range(2))
    np.testing.assert_array_equal(first, second)
