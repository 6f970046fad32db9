"""The mirror: what goes in can be gathered until it is evicted, whole, in its own dtype, and never a moment longer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from chunk_makers import SCHEMA, FakeActor

from replay.chunk import Chunk, Schema
from replay.mirror import Mirror
from replay.nstep import NewTransitions
from replay.samplers.prioritised import PrioritisedSampler


def closed(*rows: tuple[int, float, float, int]) -> NewTransitions:
    """Windows given as (row, r_t, discount_t, boot)."""
    row, r_t, discount_t, boot = zip(*rows, strict=True)
    zeros = np.zeros(len(row), np.float32)
    return NewTransitions(
        np.array(row), np.array(r_t, np.float32), np.array(discount_t, np.float32), np.array(boot), zeros
    )


def add(mirror: Mirror, chunk: Chunk) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Add a chunk whose lanes nothing came before."""
    return mirror.add(chunk, np.full(chunk.flags.shape[1], -1))


def test_ids_count_up_in_order_of_arrival() -> None:
    """Time-major, as the chunk's arrays lie; for ever, also when the ring has turned."""
    mirror, actor = Mirror(SCHEMA, 10), FakeActor(lanes=2)
    assert add(mirror, actor.chunk(3)).tolist() == [[0, 1], [2, 3], [4, 5]]
    assert add(mirror, actor.chunk(2)).tolist() == [[6, 7], [8, 9]]
    assert (mirror.start, mirror.end, mirror.rows) == (0, 10, 10)
    assert add(mirror, actor.chunk(2)).tolist() == [[10, 11], [12, 13]]
    assert (mirror.start, mirror.end, mirror.rows) == (4, 14, 10)


def test_row_and_its_bootstrap_across_the_seam() -> None:
    """Row 5 lies at the end of a ring of 6, its s_t (row 7) at the start."""
    mirror, actor = Mirror(SCHEMA, 6), FakeActor()
    add(mirror, actor.chunk(4))
    chunk = actor.chunk(4)  # rows 4..7, places 4, 5, 0, 1
    add(mirror, chunk)
    mirror.add_transitions(closed((5, 1.5, 0.25, 7)))
    batch = mirror.gather(np.array([5]))
    assert batch.s_tm1.tolist() == [[5.0]]
    assert batch.s_t.tolist() == [[7.0]]
    assert batch.a_tm1.tolist() == [chunk.action[1, 0]]
    assert (batch.r_t.tolist(), batch.discount_t.tolist()) == ([1.5], [0.25])


def test_no_row_is_sampleable_before_its_window_closes() -> None:
    """An open window is absent, never wrong."""
    mirror = Mirror(SCHEMA, 6)
    ids = add(mirror, FakeActor().chunk(4)).ravel()
    assert not mirror.sampleable(ids).any()
    mirror.add_transitions(closed((1, 1.0, 0.5, 2), (0, 1.0, 0.5, 1)))
    assert mirror.sampleable(ids).tolist() == [True, True, False, False]
    assert mirror.sampleable_rows == 2


def test_eviction_takes_sampleability_with_it() -> None:
    """The new row at an old row's place is not sampleable because the old one was."""
    mirror, actor = Mirror(SCHEMA, 6), FakeActor()
    add(mirror, actor.chunk(6))
    mirror.add_transitions(closed(*((row, 1.0, 0.5, row + 1) for row in range(5))))
    assert mirror.sampleable_rows == 5
    add(mirror, actor.chunk(2))  # evicts rows 0 and 1
    assert mirror.sampleable_rows == 3
    assert mirror.sampleable(np.arange(2, 8)).tolist() == [True] * 3 + [False] * 3


def test_window_that_closes_after_its_row_was_evicted_is_passed_over() -> None:
    """Row 1's place now holds row 7: closing row 1 late must not make row 7 sampleable, nor count."""
    mirror, actor = Mirror(SCHEMA, 6), FakeActor()
    add(mirror, actor.chunk(6))
    add(mirror, actor.chunk(2))
    mirror.add_transitions(closed((1, 1.0, 0.5, 6), (2, 2.0, 0.5, 6)))
    assert mirror.sampleable_rows == 1
    assert mirror.sampleable(np.arange(2, 8)).tolist() == [True] + [False] * 5
    assert mirror.gather(np.array([2])).r_t.tolist() == [2.0]


def test_chunk_as_big_as_the_ring_replaces_all_of_it() -> None:
    """At an odd place, so that it wraps."""
    mirror, actor = Mirror(SCHEMA, 6), FakeActor()
    add(mirror, actor.chunk(3))
    add(mirror, actor.chunk(6))
    mirror.add_transitions(closed(*((row, 0.0, 1.0, row + 1) for row in range(3, 8))))
    assert mirror.gather(np.arange(3, 8)).s_tm1.ravel().tolist() == [3, 4, 5, 6, 7]
    assert mirror.gather(np.arange(3, 8)).s_t.ravel().tolist() == [4, 5, 6, 7, 8]


def test_chunk_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    """The error states the value and the bound."""
    mirror, actor = Mirror(SCHEMA, 6), FakeActor()
    add(mirror, actor.chunk(2))
    with pytest.raises(ValueError, match="7 rows does not fit a mirror of 6"):
        add(mirror, actor.chunk(7))
    assert mirror.end == 2


def test_batch_keeps_dtype_and_shape_and_owns_its_rows() -> None:
    """uint8 stays uint8 (cpprb#130); arrays are contiguous, and later chunks do not change a batch."""
    schema = Schema((2, 3), "uint8", 4)
    mirror, actor = Mirror(schema, 8), FakeActor()
    chunk = actor.chunk(8)
    pictures = np.arange(8 * 6, dtype=np.uint8).reshape(8, 1, 2, 3)
    add(mirror, replace(chunk, obs=pictures))
    mirror.add_transitions(closed((0, 1.0, 0.5, 1), (3, 2.0, 0.0, 5)))
    batch = mirror.gather(np.array([3, 0, 3]))
    add(mirror, replace(actor.chunk(8), obs=np.zeros_like(pictures)))
    np.testing.assert_array_equal(batch.s_tm1, pictures[[3, 0, 3], 0])
    np.testing.assert_array_equal(batch.s_t, pictures[[5, 1, 5], 0])
    dtypes = [np.uint8, np.int64, np.float32, np.float32, np.uint8]
    assert [array.dtype for array in batch] == dtypes
    assert all(array.flags.c_contiguous for array in batch)


def test_plan_is_what_is_allocated() -> None:
    """Memory is planned and printed at start: the figure has to be true."""
    schema = Schema((4, 5), "uint8", 3)
    mirror = Mirror(schema, 1000)
    held = [*vars(mirror).values(), *mirror._columns.values()]
    allocated = sum(value.nbytes for value in held if isinstance(value, np.ndarray))
    assert Mirror.planned_bytes(schema, 1000) == allocated


def test_a_second_watcher_is_refused() -> None:
    """Put in the first one's place it would leave a sampler that never hears of a row."""
    mirror, rng = Mirror(SCHEMA, 8), np.random.default_rng(0)
    PrioritisedSampler(mirror, rng, 0.6, 0.4, 100)
    with pytest.raises(ValueError, match="has a watcher already, a PrioritisedSampler"):
        PrioritisedSampler(mirror, rng, 0.6, 0.4, 100)
